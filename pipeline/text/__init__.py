"""Texts: cleaning, language, normalising, matching."""

"""The query list: what an alt-text must contain to be kept, and how often."""

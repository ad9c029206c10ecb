"""The published folder: shards, samples, report, checks."""

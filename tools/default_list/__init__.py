"""Makes the query list that comes with the project, from packages that may be passed on (queries/data/README.md)."""

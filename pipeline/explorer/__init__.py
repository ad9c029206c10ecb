"""The explorer: an index of a whole set, the search in it, and the local server that shows both as a page."""

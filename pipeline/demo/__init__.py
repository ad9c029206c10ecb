"""A small web, its archives, and a data set made of them."""

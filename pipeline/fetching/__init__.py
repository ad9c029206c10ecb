"""Fetching: from a URL to the bytes of an image, and from bytes to the JPEG that is kept.

`downloader.fetch_rows` is the entry point. It uses `client` (HTTP), `addresses` (which addresses may be reached),
`robots` (what sites forbid), `images` (decode, resize, encode, hash) and `helper` (the decoding process). Nothing is
imported here: the decoding process imports this package and must start fast.
"""

"""Fetching: from a URL to the bytes of an image, and from bytes to the JPEG that is kept.

`downloader.fetch_rows` is the door. Behind it: `client` (HTTP), `addresses` (which addresses may be reached), `robots`
(who does not want to be read), `images` (decode, resize, encode, hash) and `helper` (the process that decodes).
Nothing is imported here: the decoding process imports this package and must start fast.
"""

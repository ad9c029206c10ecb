"""Path patterns of robots.txt (RFC 9309, sections 2.2.2 and 2.2.3), for rules that are no Allow and no Disallow.

"*" stands for any text, "$" at the end for the end. Paths are compared in one spelling of their escapes. The most
specific match is that of the longest pattern. A match takes no backtracking: every part is searched once.
"""

from __future__ import annotations

import re
import urllib.parse

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_KEPT = "!#$%&'()*+,/:;=?@[]~"


def spelling(path: str) -> str:
    """A path or pattern with escapes in upper case, other characters escaped, unreserved ones not."""

    def one(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else match[0].upper()

    return _ESCAPE.sub(one, urllib.parse.quote(path, safe=_KEPT, errors="replace"))


def path_of(url: str) -> str:
    """Path and query of a URL in the spelling that `matches` takes."""
    rest = url.partition("://")[2]
    start = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    path = rest[start:].partition("#")[0]
    return spelling(path if path.startswith("/") else "/" + path)


def matches(pattern: str, path: str) -> bool:
    """True if a pattern matches a path from its beginning. Both have the spelling of `spelling`."""
    ends = pattern.endswith("$")
    first, *parts = (pattern[:-1] if ends else pattern).split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not parts:
        return not ends or at == len(path)
    for part in parts[:-1]:
        at = path.find(part, at)
        if at < 0:
            return False
        at += len(part)
    last = parts[-1]
    if ends:
        return path.endswith(last) and len(path) - len(last) >= at
    return path.find(last, at) >= 0

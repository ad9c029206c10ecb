"""Makes the links of a page absolute, as browsers do (URL standard, WHATWG).

`can_ada` (the parser of Node.js) decides. Links in the usual form are appended to a piece of the base without parsing;
`url_kernel` does the same for whole files. Both leave such a link as it is written: `clean` gives all URLs one form.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import can_ada

MAX_URL = 16_384  # characters
# Characters of a base. A page may have a link for every 20 bytes, and each would get so many more.
MAX_BASE = 2_048
SPACES = "".join(map(chr, range(33)))  # C0 controls and the blank: removed at the ends of a link
WEB = ("http://", "https://")
_LONE = re.compile("[\ud800-\udfff]")

# Forms of links that are appended: //host..., /path, path. In a path there is no dot segment, no empty segment (but
# after a host), no backslash and no semicolon. A query or fragment is not empty.
_TAIL = r"(?:[?#][^?#\x00-\x20\[\]]+)*+"
_BYTE = r"[^/?#;\x00-\x20\[\]\\]"
_AFTER_SCHEME = re.compile(rf"//[^/?#\x00-\x20\x7f-\U0010ffff\[\]\\]++(?:/(?!\.)|{_BYTE})*+{_TAIL}")
_AFTER_ORIGIN = re.compile(rf"(?=/)(?:/(?![/.])|{_BYTE})*+{_TAIL}")
_AFTER_FOLDER = re.compile(rf"[^./:?#;\x00-\x20\[\]\\][^/:?#;\x00-\x20\[\]\\]*+(?:/(?![/.])|(?<=/){_BYTE}++)*+{_TAIL}")
_ORIGIN = re.compile(r"https?://[^/?#\x00-\x20\x7f-\U0010ffff\[\]\\]+(?=[/?#]|\Z)")
_ODD_FOLDER = re.compile(r"//|/\.|\\")


def base_of(page_url: str, href: str | None) -> str:
    """The URL against which the links of a page are resolved: its `<base href>`, if that is http(s), or its own.

    The query of a long one is left out. Links take none of it.
    """
    base = page_url
    if href:
        reason, joined = absolute(_short(page_url), href)
        if not reason and joined.startswith(WEB):
            base = joined
    return _short(base)


def absolute(base: str, link: str) -> tuple[str, str]:
    """("", absolute URL), or (reason of a drop, ""). The URL may have any scheme.

    Args:
        base: as `base_of` gives it.
        link: as written, not empty.
    """
    link = link.strip(SPACES)
    if not link.isascii():
        link = _LONE.sub("\ufffd", link)
    if link.startswith(WEB):
        return _checked(link)
    if len(base) > MAX_BASE:
        return "url_too_long", ""
    return _checked(_joined(base, link))


def _checked(url: str | None) -> tuple[str, str]:
    if url is None:
        return "bad_url", ""
    return ("url_too_long", "") if len(url) > MAX_URL else ("", url)


def _joined(base: str, link: str) -> str | None:
    """The absolute URL; None if there is none."""
    if len(link) > MAX_URL:
        return link  # too long, whatever it becomes
    origin, folder = _places(base)
    if origin:
        if _AFTER_ORIGIN.fullmatch(link):
            return origin + link
        if folder and _AFTER_FOLDER.fullmatch(link):
            return folder + link
        if _AFTER_SCHEME.fullmatch(link):
            return origin[: origin.index("/")] + link
    parsed = _parsed(base)
    try:
        return str(can_ada.parse(link) if parsed is None else parsed + link)
    except (ValueError, TypeError):
        return None


@functools.lru_cache(maxsize=64)
def _places(base: str) -> tuple[str, str]:
    """(origin, folder with its slash) of a base in the usual form; empty strings for others."""
    match = _ORIGIN.match(base)
    if match is None or re.search(r"[\x00-\x20]", base):
        return "", ""
    path = re.split(r"[?#]", base[match.end() :], maxsplit=1)[0]
    folder = path[: path.rfind("/") + 1] or "/"
    return match[0], "" if _ODD_FOLDER.search(path) else match[0] + folder


@functools.lru_cache(maxsize=64)
def _parsed(base: str) -> Any:
    try:
        return can_ada.parse(_LONE.sub("\ufffd", base))
    except ValueError:
        return None


def _short(base: str) -> str:
    return base if len(base) <= MAX_BASE else re.split("[?#]", base, maxsplit=1)[0]

"""Untrusted text, made safe for a terminal (where it could move the cursor) and for a page."""

from __future__ import annotations

import unicodedata

KEPT = "\u200c\u200d"  # joiners: some scripts and emoji need them, and they are harmless
REPLACEMENT = "\ufffd"


def sanitize(text: object) -> str:
    """One line: control, format and bidirectional characters become U+FFFD, line breaks and tabs a blank."""
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(map(_sanitize_character, line))


def _sanitize_character(character: str) -> str:
    if character in "\t\n\r":
        return " "
    category = unicodedata.category(character)
    if category in ("Zl", "Zp"):
        return " "
    return REPLACEMENT if category[0] == "C" and character not in KEPT else character


def width(text: str) -> int:
    """The columns of a terminal that a sanitized text takes: wide characters take two, marks that combine none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def cut(text: str, room: int) -> str:
    """The text, or its beginning with an ellipsis, in at most `room` columns of a terminal."""
    if width(text) <= room:
        return text
    taken, used = [], 1  # the ellipsis
    for character in text:
        used += _columns(character)
        if used > room:
            break
        taken.append(character)
    return "".join(taken) + "…"


def _columns(character: str) -> int:
    if unicodedata.combining(character) or character in KEPT:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def size(count: float) -> str:
    """A number of bytes for people: 12 B, 3.4 kB, 25 MB."""
    units = ["TB", "GB", "MB", "kB", "B"]
    unit = units.pop()
    while count >= 999.5 and units:
        count, unit = count / 1000, units.pop()
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def amount(done: int, total: int | None, noun: str) -> str:
    """A count for people: 3/7 units, 1 row."""
    if total is not None:
        return f"{done:,}/{total:,} {noun}"
    return f"{done:,} {noun.removesuffix('s') if done == 1 else noun}"


def clock(seconds: float) -> str:
    """Seconds for people: 1:02:03 or 4:05."""
    whole = int(seconds + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"

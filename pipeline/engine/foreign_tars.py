"""Finds the members of any tar by its headers, also of a damaged one. `dataset.tars` reads our own tars alone.

    scan(data).samples["00012"]["jpg"]  ->  (offset, size)

Names follow WebDataset: the key of a member is its path up to the first dot of the last part, the rest is its kind. A
key is a label and never becomes a path. The work is linear in the size: each block is looked at once, and names that
stand in members of their own are bounded.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
from collections import Counter

BLOCK = 512
LONGEST_NAME = 1 << 16  # bytes of a member that holds the name of the next one (GNU's L, pax's x)
MOST_FAULTS = 1000  # that are kept
SECOND, CUT_OFF, NO_END = "a second member", "a member is cut off", "the file ends without the end of the archive"
_FILES, _NAMES, _OTHERS = b"0\0", b"Lx", b"Kg"  # kinds of members: files; names of the next member; not looked at
_DIGITS = re.compile(rb"[0-7]+")

Place = tuple[int, int]  # offset and size
Samples = dict[str, dict[str, Place]]  # key -> kind -> place


@dataclasses.dataclass
class Contents:
    """What a tar holds.

    Attributes:
        samples: in the order of their first members.
        faults: (offset, problem), the first MOST_FAULTS.
        more: the number of further ones.
        repeated: (key, kind) -> further members of that name. The first one stands in `samples`.
        scattered: keys whose members are not neighbours. WebDataset cuts such a sample in two.
    """

    samples: Samples = dataclasses.field(default_factory=dict)
    faults: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    more: int = 0
    repeated: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    scattered: list[str] = dataclasses.field(default_factory=list)

    def fault(self, offset: int, problem: str) -> None:
        """Notes a fault."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append((offset, problem))
        else:
            self.more += 1


def scan(data: bytes | mmap.mmap, *, most: int | None = None) -> Contents:
    """The samples and faults of a tar. After a damaged header the scan goes on at the next sound one.

    `most`: it ends behind so many samples; None: at the end of the tar.
    """
    found, at, name, size, last = Contents(), 0, "", -1, ""
    while at + BLOCK <= len(data):
        if most is not None and len(found.samples) > most:
            found.samples.popitem()
            return found
        header = data[at : at + BLOCK]
        if not any(header):
            return found
        kind, start = header[156:157], at + BLOCK
        length = _number(header[124:136])
        length = size if size >= 0 and kind not in _NAMES + _OTHERS else length
        if not _is_sound(header) or start + length > len(data):
            whole = _is_sound(header)
            found.fault(at, CUT_OFF if whole else "a damaged header")
            at = _next_sound(data, at + BLOCK)
            name, size = "", -1
            continue
        at = start + -(-length // BLOCK) * BLOCK
        if kind in _NAMES:
            if length > LONGEST_NAME:
                found.fault(start - BLOCK, "a name that is too long")
            elif kind == b"L":
                name = data[start : start + length].rstrip(b"\0").decode("utf-8", "replace")
            else:
                name, size = _pax(data[start : start + length], name)
        elif kind not in _OTHERS:
            if kind in _FILES:
                last = _note(found, name or _short_name(header), (start, length), last)
            name, size = "", -1
    found.fault(at, NO_END)
    return found


def _note(found: Contents, path: str, place: Place, last: str) -> str:
    """Adds a member. Returns its key, or that of the member before where it belongs to no sample."""
    folder, _, name = path.rpartition("/")
    stem, _, kind = name.partition(".")
    if not stem or not kind:
        return last
    key, kind = (f"{folder}/{stem}" if folder else stem), kind.lower()
    members = found.samples.setdefault(key, {})
    if kind in members:
        found.fault(place[0] - BLOCK, f"{SECOND} {path!r}")
        found.repeated[key, kind] += 1
    elif members and key != last:
        found.scattered.append(key)
    members.setdefault(kind, place)
    return key


def _next_sound(data: bytes | mmap.mmap, at: int) -> int:
    """The place of the next block that is a header or the end of the archive; the end of the data if there is none."""
    while at + BLOCK <= len(data):
        header = data[at : at + BLOCK]
        if header[257:262] == b"ustar" and _is_sound(header):
            return at
        at += BLOCK
    return len(data)


def _is_sound(header: bytes) -> bool:
    digits = header[148:156].rstrip(b" \0").strip()
    return bool(_DIGITS.fullmatch(digits)) and int(digits, 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """A size: octal digits, or base 256 if the first bit is set (members of 8 GiB and more)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    digits = field.rstrip(b" \0").strip()
    return int(digits, 8) if _DIGITS.fullmatch(digits) else 0


def size_of(header: bytes) -> int:
    """The size of a member by its header; 0 if the header is damaged."""
    return _number(header[124:136]) if len(header) == BLOCK and _is_sound(header) else 0


def _short_name(header: bytes) -> str:
    name, prefix = header[:100].split(b"\0", 1)[0], header[345:500].split(b"\0", 1)[0]
    has_prefix = header[257:263] == b"ustar\0" and prefix
    return (prefix + b"/" + name if has_prefix else name).decode("utf-8", "replace")


def _pax(data: bytes, name: str) -> tuple[str, int]:
    """The path and the size in a pax header; the name as it was, and -1, where it has none."""
    size, at = -1, 0
    while (blank := data.find(b" ", at, at + 20)) > at and data[at:blank].isdigit():
        end = at + int(data[at:blank])
        if not blank < end <= len(data):
            break
        key, _, value = data[blank + 1 : end - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size" and value.isdigit() and len(value) < 19:
            size = int(value)
        at = end
    return name, size

"""What an image itself says about AI training: the PLUS Data Mining property in its XMP, and C2PA assertions.

    IPTC   Photo Metadata Standard 2023.1, "Data Mining" = XMP property plus:DataMining, vocabulary PLUS LDF "DMI-..."
    C2PA   c2pa.training-mining (C2PA 1.4, "Training and Data Mining"), cawg.training-mining (CAWG 1.0), in JUMBF boxes

The reader opens no address and needs no file format: a packet of XMP and a JUMBF box lie in one piece in every one of
them. Exceptions are JPEG, whose boxes are put together from APP11 segments, and compressed text of a PNG. The signature
of a manifest is not checked: a statement that cannot be trusted still is one. All work is linear in the size.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from pipeline.text import rights

PROPERTY, LABEL = b"DataMining", b"training-mining\0"
MOST_PLACES = 64  # of each word that are looked at
WINDOW = 600  # bytes after the name of the property in which its value stands
LARGEST_TEXT = 1 << 20  # bytes of a PNG's compressed text that are read
MOST_ITEMS, DEEPEST = 5_000, 16  # of a CBOR item
TRAINING = ("ai_training", "ai_generative_training", "data_mining")  # C2PA's entries that concern a training set

_CODE = re.compile(rb"DMI-[A-Z][A-Z-]{2,60}")
_REFUSING = re.compile(r"DMI-PROHIBITED(?:-|$)")

Found = tuple[bool, str]  # what is said of training, and the words that say it


def statements(body: bytes) -> dict[str, Found | None]:
    """What the image says in each protocol ("iptc", "c2pa"); None: nothing. The stricter of several holds."""
    texts = [body, *_compressed_texts(body)] if body.startswith(b"\x89PNG") else [body]
    return {
        "iptc": _strictest(found for text in texts for found in _data_mining(text)),
        "c2pa": _strictest(_training_mining(_app11(body) if body.startswith(b"\xff\xd8") else body)),
    }


def _strictest(found: Iterator[Found]) -> Found | None:
    every = list(found)
    said = rights.stricter(one[0] for one in every)
    return None if said is None else next(one for one in every if one[0] is said)


def _places(text: bytes, word: bytes) -> Iterator[int]:
    at = -1
    for _ in range(MOST_PLACES):
        at = text.find(word, at + 1)
        if at < 0:
            return
        yield at


# ---- XMP


def _data_mining(text: bytes) -> Iterator[Found]:
    for at in _places(text, PROPERTY):
        code = _CODE.search(text, at, at + WINDOW)
        if code is None:
            continue
        words = code[0].decode("ascii")
        if _REFUSING.match(words):
            yield False, f"plus:DataMining {words}"
        elif words == "DMI-ALLOWED":
            yield True, f"plus:DataMining {words}"


def _compressed_texts(body: bytes) -> Iterator[bytes]:
    """The compressed XMP packets of a PNG (iTXt with compression flag 1; PNG 3, 11.3.3.4)."""
    at = 8
    while at + 12 <= len(body):
        size, kind = struct.unpack_from(">I4s", body, at)
        if kind == b"iTXt":
            chunk = body[at + 8 : at + 8 + size]
            name, _, rest = chunk.partition(b"\0")
            if name == b"XML:com.adobe.xmp" and rest[:1] == b"\1":
                packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
                try:
                    yield zlib.decompressobj().decompress(packed, LARGEST_TEXT)
                except zlib.error:
                    pass
        at += 12 + size


# ---- JUMBF


def _app11(body: bytes) -> bytes:
    """The JUMBF boxes of a JPEG, put together from its APP11 segments (ISO 19566-5, D.2)."""
    boxes: dict[int, list[tuple[int, bytes]]] = {}
    at = 2
    while at + 4 <= len(body) and body[at] == 0xFF and body[at + 1] != 0xDA:
        size = int.from_bytes(body[at + 2 : at + 4], "big")
        if body[at + 1] == 0xEB and body[at + 4 : at + 6] == b"JP" and size >= 18 and at + 12 <= len(body):
            box, number = struct.unpack_from(">HI", body, at + 6)
            part = body[at + 12 : at + 2 + size]
            parts = boxes.setdefault(box, [])
            parts.append((number, part[8:] if parts else part))  # each segment repeats the head of the box
        at += 2 + max(2, size)
    return b"".join(part for parts in boxes.values() for _, part in sorted(parts, key=lambda one: one[0]))


def _training_mining(text: bytes) -> Iterator[Found]:
    """The statements of the assertions: a description box with the label, then a box with CBOR or JSON."""
    for at in _places(text, LABEL):
        label = text[max(0, at - 5) : at] + LABEL[:-1]
        start = text.find(b"cbor", at, at + WINDOW), text.find(b"json", at, at + WINDOW)
        places = [place for place in start if place >= 4]
        if label[:5] not in (b"c2pa.", b"cawg.") or not places:
            continue
        begin = min(places)
        size = int.from_bytes(text[begin - 4 : begin], "big")
        content = text[begin + 4 : begin - 4 + min(size, LARGEST_TEXT)]
        yield from _entries(_read(content, is_json=text[begin : begin + 4] == b"json"), label.decode("ascii"))


def _entries(assertion: Any, label: str) -> Iterator[Found]:
    entries = assertion.get("entries") if isinstance(assertion, dict) else None
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        use = entry.get("use") if isinstance(entry, dict) else None
        if (
            isinstance(name, str)
            and name.partition(".")[2] in TRAINING
            and use in ("allowed", "notAllowed", "constrained")
        ):
            yield use == "allowed", f"{label}: {name} {use}"


def _read(content: bytes, *, is_json: bool) -> Any:
    """The assertion; None if it is damaged."""
    try:
        return json.loads(content) if is_json else _Cbor(content).item(0)
    except (ValueError, IndexError, struct.error, RecursionError, TypeError):
        return None


class _Cbor:
    """Reads one item (RFC 8949). Numbers of floating point and undefined become None."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._left = MOST_ITEMS

    def item(self, depth: int) -> Any:
        """The next item.

        Raises:
            ValueError, IndexError: the data are damaged, too deep, or have too many items.
        """
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise ValueError("too much")
        first = self._data[self._at]
        self._at += 1
        kind, count = first >> 5, self._count(first & 31)
        if kind == 7:
            return {20: False, 21: True}.get(first & 31)
        if count is None and kind in (0, 1, 6):
            raise ValueError("no length")
        if kind in (0, 1):
            return count if kind == 0 else -1 - count  # type: ignore[operator]
        if kind in (2, 3):
            data = self._take(count) if count is not None else b"".join(self._chunks(depth))
            return data if kind == 2 else data.decode("utf-8")
        if kind == 6:
            return self.item(depth + 1)
        if kind == 4:
            return [self.item(depth + 1) for _ in self._turns(count)]
        return {_key(self.item(depth + 1)): self.item(depth + 1) for _ in self._turns(count)}

    def _count(self, low: int) -> int | None:
        if low < 24:
            return low
        if low == 31:
            return None
        if low > 27:
            raise ValueError("reserved")
        return int.from_bytes(self._take(1 << (low - 24)), "big")

    def _take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) < size:
            raise ValueError("the data end early")
        self._at += size
        return part

    def _turns(self, count: int | None) -> Iterator[None]:
        """One turn for each member; without a count until the break."""
        for _ in range(MOST_ITEMS + 1 if count is None else min(count, MOST_ITEMS + 1)):
            if count is None and self._data[self._at] == 0xFF:
                self._at += 1
                return
            yield None

    def _chunks(self, depth: int) -> Iterator[bytes]:
        for _ in self._turns(None):
            part = self.item(depth + 1)
            yield part.encode() if isinstance(part, str) else part


def _key(item: Any) -> Any:
    return item if isinstance(item, str | int | bytes) else repr(item)

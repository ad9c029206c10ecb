"""Tars of samples in the form of WebDataset, as img2dataset writes them: 00012.jpg, 00012.json, 00012.txt.

The JSON of a sample holds its URL, and a text unless a member `.txt` does. The image lies in the tar, so it is not
downloaded. It is decoded and encoded as a downloaded one. The size that img2dataset noted of the image is kept.
The sha256 that it noted is only looked up in lists: two images are the same one if the bytes in the tars are.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import mmap
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.engine import foreign_tars
from pipeline.engine.foreign_tars import BLOCK, Contents
from pipeline.engine.input_errors import UnreadableInputError, is_remote
from pipeline.engine.ledger import CUT, Ledger
from pipeline.engine.opening import open_at, open_whole, read_start
from pipeline.sources.base import (
    ARCHIVED_IMAGES,
    MOST_OPENED,
    WEBDATASET,
    Input,
    Reader,
    ReadSettings,
    SettingsError,
    candidates_of_pairs,
    for_each,
)
from pipeline.sources.tables import TEXT_NAMES, URL_NAMES

IMAGES = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp", "gif": "gif", "avif": "avif"}
KINDS = (*IMAGES, "json", "txt")
ROWS = 8_192  # samples of a batch
LARGEST_JSON = 1 << 20
MOST_CHECKED = 64  # tars of this machine that a check opens, at most
CHECKED_BYTES = 1 << 20  # of a remote tar
SAMPLES_CHECKED = 8  # of a tar
DISTANCE_BITS = 24  # of an offset: how many blocks lie between image and JSON
MIDDLE = 1 << (DISTANCE_BITS - 1)
CONSULTED = "iptc,c2pa"  # what the decoder looks for in every image

# How a packed tar begins, and what unpacks it.
PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _first_names(head: bytes) -> Iterator[str]:
    """The names of the members that begin in the first bytes of a tar, up to a header that is damaged."""
    at = 0
    with contextlib.suppress(tarfile.HeaderError):
        while at + BLOCK <= len(head):
            info = tarfile.TarInfo.frombuf(head[at : at + BLOCK], "utf-8", "replace")
            yield info.name
            at += BLOCK + -(-max(0, info.size) // BLOCK) * BLOCK


def is_damaged(head: bytes) -> bool:
    """True for the first bytes of what is no tar, or begins with a damaged header."""
    return next(_first_names(head), None) is None


class TarReader(Reader):
    """Tars of samples."""

    name: ClassVar[str] = WEBDATASET
    suffixes: ClassVar[tuple[str, ...]] = ()
    vague_suffixes: ClassVar[tuple[str, ...]] = (".tar",)
    bytes_per_pair: ClassVar[float] = 30_000
    stores_images: ClassVar[bool] = True

    def sniff(self, head: bytes) -> bool:
        return head[257:262] == b"ustar"

    def holds_pairs(self, head: bytes) -> bool:
        """True for a tar with a member of a sample among the first ones."""
        return any(name.lower().rpartition(".")[2] in KINDS for name in _first_names(head))

    def check(self, inputs: Sequence[Input], settings: ReadSettings) -> None:
        """Checks that the first tars hold a sample with an image, a URL and a text."""
        local = [item for item in inputs if not is_remote(item.path)][:MOST_CHECKED]
        remote = [item for item in inputs if is_remote(item.path)][:MOST_OPENED]
        for_each(lambda item: _check(item, settings), [*local, *remote])

    def read(
        self, source: Input, *, ledger: Ledger, images: list[pa.RecordBatch], settings: ReadSettings
    ) -> Iterator[pa.RecordBatch]:
        with _mapped(source.path) as data:
            samples = _whole(_scanned(data, source), ledger)
            for start in range(0, len(samples), ROWS):
                some = samples[start : start + ROWS]
                ledger.records_in += len(some)
                places = [place for members in some if (place := _image_of(members)) is not None]
                pairs = [_pair(data, members, settings, ledger) for members in some]
                url, text = (pa.array([pair[place] for pair in pairs], pa.string()) for place in (0, 1))
                listed = [row for row, pair in enumerate(pairs) if pair[0] is not None]
                columns = [
                    url.take(pa.array(listed, pa.int64())),
                    [_packed(places[row][1], some[row].get("json")) for row in listed],
                    [places[row][1][1] for row in listed],
                    [f"image/{IMAGES[places[row][0]]}" for row in listed],
                ]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, ARCHIVED_IMAGES, strict=True)]
                images.append(pa.RecordBatch.from_arrays(arrays, schema=ARCHIVED_IMAGES))
                offsets = np.array([place[1][0] - BLOCK for place in places], np.int64)
                batch = candidates_of_pairs(url, text, offsets, ledger)
                if batch.num_rows:
                    yield batch

    def read_image(self, path: str, offset: int, *, max_bytes: int) -> bytes | None:
        found = self.read_stored(path, offset, max_bytes=max_bytes)
        return (found[0] or None) if found is not None else None

    def read_stored(self, path: str, offset: int, *, max_bytes: int) -> tuple[bytes, dict[str, Any]] | None:
        """The image, and of its JSON the size and the sha256 of the image as served; None: the tar is gone.

        An image with more than `max_bytes` is empty here: it does not decode, and no server is asked for it.

        Raises:
            InputError: a remote tar cannot be read now.
        """
        block, distance = offset >> DISTANCE_BITS, offset & ((1 << DISTANCE_BITS) - 1)
        try:
            with open_at(path) as opened:
                image = _member(opened.stream, block, max_bytes)
                known = _member(opened.stream, block + distance - MIDDLE, LARGEST_JSON) if distance else b"{}"
        except OSError:
            return None
        facts = _object(known) or {}
        given = facts.get("original_sha256") or facts.get("sha256")
        kept = {name: facts.get(name) for name in ("original_width", "original_height", "url", "url_as_found")}
        kept["noted_sha256"] = given if isinstance(given, str) and _SHA256.fullmatch(given) else None
        kept["original_sha256"] = hashlib.sha256(image).hexdigest()
        return image, {**kept, "rights_consulted": CONSULTED}


def _check(item: Input, settings: ReadSettings) -> None:
    """Looks at the first samples of a tar.

    Raises:
        SettingsError: none of them has an image, a URL and a text.
        UnreadableInputError: it is no tar, or a packed one.
    """
    with contextlib.ExitStack() as stack:
        data: mmap.mmap | bytes
        if is_remote(item.path):
            data = read_start(item.path, CHECKED_BYTES)
            if len(data) == CHECKED_BYTES and foreign_tars.scan(data, most=1).faults:
                return  # its first sample has more bytes
        else:
            data = stack.enter_context(_mapped(item.path))
        some = list(_scanned(data, item, most=SAMPLES_CHECKED).samples.values())
        good = [members for members in some if not IMAGES.keys().isdisjoint(members)]
        if not good:
            raise SettingsError(f"{item.name!r} is no tar of images: its first sample has {_listed(some)}")
        pairs = [_pair(data, members, settings, Ledger()) for members in good]
        for place, name in enumerate(("URL", "text")):
            if not any(pair[place] for pair in pairs):
                raise SettingsError(
                    f"{item.name!r} has no {name} in its first samples ({_listed(good)}): a pair needs one, in the "
                    f"JSON under the name of --{name.lower()}-column"
                )


def _scanned(data: mmap.mmap | bytes, item: Input, *, most: int | None = None) -> Contents:
    """The members of a tar, as `foreign_tars.scan`.

    Raises:
        UnreadableInputError: it is no tar, or a packed one.
    """
    packed = next((program for magic, program in PACKED.items() if data[: len(magic)] == magic), None)
    if packed is not None:
        raise UnreadableInputError(
            f"{item.name!r} is packed: unpack it first ({packed}), since images are read from their places in a tar"
        )
    if not len(data):
        raise UnreadableInputError(f"{item.name!r} is empty")
    found = foreign_tars.scan(data, most=most)
    if not found.samples and (found.faults or not any(data[:BLOCK])):
        raise UnreadableInputError(f"{item.name!r} is no tar: no member of it can be read")
    return found


def _whole(found: Contents, ledger: Ledger) -> list[dict[str, foreign_tars.Place]]:
    """The samples with an image, in their order. The ledger gets what is lost, each sample once."""
    again: dict[str, int] = {}
    for (key, _), count in found.repeated.items():
        again[key] = max(count, again.get(key, 0))
    lost = Counter({"repeated_key": sum(again.values()), "damaged_member": found.more})
    hurt, reasons = _hurt(found), dict[str, str]()
    for offset, problem in found.faults:
        if problem == foreign_tars.NO_END:
            ledger.notes[CUT] += 1
        elif not problem.startswith(foreign_tars.SECOND):
            reason = "cut_record" if problem == foreign_tars.CUT_OFF else "damaged_member"
            if offset in hurt:
                reasons[hurt[offset]] = reason
            else:
                lost[reason] += 1
    samples = []
    for key, members in found.samples.items():
        if key in reasons:
            lost[reasons[key]] += 1
        elif _image_of(members) is None:
            lost["no_image_in_sample"] += 1
        else:
            samples.append(members)
    for reason, count in lost.items():
        ledger.records_in += count
        ledger.lose(reason, count)
    return samples


def _hurt(found: Contents) -> dict[int, str]:
    """Offset of a fault -> the key of the sample beside it that lacks its image or its JSON."""
    if not found.faults:
        return {}
    places = sorted((place[0], key) for key, members in found.samples.items() for place in members.values())
    lacking = {key for key, members in found.samples.items() if _image_of(members) is None or "json" not in members}
    hurt = {}
    for offset, problem in found.faults:
        if problem == foreign_tars.NO_END or problem.startswith(foreign_tars.SECOND):
            continue
        after = bisect.bisect(places, (offset, ""))
        beside = [key for _, key in (*places[after : after + 1], *places[after - 1 : after])]
        if (key := next((key for key in beside if key in lacking), None)) is not None:
            hurt[offset] = key
    return hurt


def _listed(samples: Sequence[dict[str, Any]]) -> str:
    """The kinds of members of the first sample."""
    return ", ".join(f".{kind}" for some in samples[:1] for kind in list(some)[:8]) or "no member"


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a tar. A remote one is copied to this machine first."""
    with open_whole(path) as opened:
        file = opened.stream
        if not os.fstat(file.fileno()).st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _image_of(members: dict[str, foreign_tars.Place]) -> tuple[str, foreign_tars.Place] | None:
    """(kind, place) of the first image that is not empty."""
    return next(((kind, place) for kind, place in members.items() if kind in IMAGES and place[1]), None)


def _pair(
    data: mmap.mmap | bytes, members: dict[str, foreign_tars.Place], settings: ReadSettings, ledger: Ledger
) -> tuple[str | None, str | None]:
    """The URL and the text of a sample."""
    facts: dict[str, Any] = {}
    if "json" in members:
        offset, size = members["json"]
        found = _object(data[offset : offset + size]) if size <= LARGEST_JSON else None
        if found is None:
            ledger.notes["bad_sample_json"] += 1
        facts = found or {}
    url = _first(facts, (settings.url_column,) if settings.url_column != "url" else URL_NAMES)
    if "txt" in members and settings.text_column == "text":
        offset, size = members["txt"]
        return url, data[offset : offset + min(size, LARGEST_JSON)].decode("utf-8", "replace")
    return url, _first(facts, (settings.text_column,) if settings.text_column != "text" else TEXT_NAMES)


def _first(facts: dict[str, Any], names: Sequence[str]) -> str | None:
    found = (facts.get(name) for name in names)
    return next((value for value in found if isinstance(value, str) and value), None)


def _object(data: bytes) -> dict[str, Any] | None:
    """A JSON object without lone surrogates; None: it is none."""
    try:
        found = json.loads(data)
        if isinstance(found, dict):
            json.dumps(found, ensure_ascii=False).encode()
            return found
    except (ValueError, RecursionError):
        pass
    return None


def _packed(image: foreign_tars.Place, facts: foreign_tars.Place | None) -> int:
    """The blocks of an image and of its JSON as one number."""
    block = image[0] // BLOCK
    distance = 0 if facts is None else facts[0] // BLOCK - block + MIDDLE
    return block << DISTANCE_BITS | (distance if 0 < distance < 2 * MIDDLE else 0)


def _member(stream: Any, block: int, most: int) -> bytes:
    """The content of a member that begins with a block; b"": it is empty, or has more bytes than `most`, or is cut."""
    if block < 1:
        return b""
    stream.seek((block - 1) * BLOCK)
    size = foreign_tars.size_of(stream.read(BLOCK))
    if not 0 < size <= most:
        return b""
    found: bytes = stream.read(size)
    return found if len(found) == size else b""

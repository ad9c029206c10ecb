"""What the page asks: a search, a pair, suggestions, the set. Each answer is an object for JSON.

An answer is a function of the index and of the request alone, so that the address of a page can be shared.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipeline.dataset.columns import TABLES
from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine import storage
from pipeline.engine.input_errors import InputError
from pipeline.explorer.building import FACETS, Source
from pipeline.explorer.index import Index, Rows, facets_of
from pipeline.explorer.neighbours import Neighbours
from pipeline.explorer.words import BadSearch, parse
from pipeline.inspector.find import hash_of
from pipeline.inspector.foreign import TarPairs
from pipeline.inspector.pairs import Published
from pipeline.inspector.show import MOST_DUPLICATES, named

PAGE = 60  # pairs of an answer
VALUES = 10  # of a facet
SUGGESTED = 12
DISTANCE, MOST_DISTANCE = 8, 24  # bits in which the hashes of similar pictures differ
LARGEST_PICTURE = 32 << 20  # bytes that are served, or taken
PICTURE_MEMORY = 512 << 20  # bytes that the pixels of a picture of the user may take
FIRST_ORDERED = 12  # 2 ** 12 pairs are put in order at first, then twice as many, and so on
KEPT_BYTES = 128 << 20  # of the rows of earlier searches
MOST_VALUES = 50  # of a facet in one search
KEY = re.compile(r"[0-9a-f]{8,32}")
HASH = re.compile(r"[0-9a-f]{16}")
# What an image may be, by its first bytes. Nothing else is served as one.
PICTURES = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)
# Name -> the number of the index that it sorts by ("": the words of the texts), and whether the largest come first.
SORTS: dict[str, tuple[str, bool]] = {
    "largest": ("side", True),
    "smallest": ("side", False),
    "rarest": ("probability", False),
    "longest": ("", True),
    "shortest": ("", False),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """A search.

    Attributes:
        text: words, a key, or a URL.
        values: facet -> the chosen values.
        like: hash of a picture, 16 hexadecimal digits. distance: bits in which others may differ from it.
        near: key of a pair whose embedding others are near to.
        side: least short side of the original, in pixels.
        sort: one of SORTS; "" for the order of the set, or of the nearest first.
        start: the first pair of the answer.
    """

    text: str = ""
    values: tuple[tuple[str, tuple[str, ...]], ...] = ()
    like: str = ""
    distance: int = DISTANCE
    near: str = ""
    side: int = 0
    sort: str = ""
    start: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Sequence[str]]) -> Request:
        """The request in the parameters of an address. Unknown parameters are those of the page itself.

        Raises:
            BadSearch: a value is not one.
        """
        one = {name: values[-1] for name, values in given.items() if values}
        like, sort = one.get("like", "").lower(), one.get("sort", "")
        if like and not HASH.fullmatch(like):
            raise BadSearch("like must be a hash of 16 hexadecimal digits")
        if sort and sort not in SORTS:
            raise BadSearch(f"sort must be one of {', '.join(SORTS)}")
        values = tuple((name, tuple(given[name])) for name in (*FACETS, "query") if given.get(name))
        if any(len(some) > MOST_VALUES for _, some in values):
            raise BadSearch(f"a search takes at most {MOST_VALUES} values of a kind")
        distance = _whole(one, "distance", DISTANCE, MOST_DISTANCE)
        side, start = _whole(one, "side", 0, 1 << 20), _whole(one, "start", 0, 1 << 40)
        return cls(one.get("q", "").strip(), values, like, distance, one.get("near", ""), side, sort, start)


def smallest(short: npt.NDArray[np.uint16], most: int) -> npt.NDArray[np.int64]:
    """The places of the smallest numbers, ascending; equal ones in the order of their places."""
    if len(short) > most:
        bound = int(np.searchsorted(np.cumsum(np.bincount(short, minlength=1 << 16)), most))
        below = np.flatnonzero(short < bound)
        equal = np.flatnonzero(short == bound)[: most - len(below)]
        places = np.concatenate([below, equal])
    else:
        places = np.arange(len(short))
    return places[np.argsort(short[places], kind="stable")]


def _whole(given: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = given.get(name, "")
    if text and not re.fullmatch(r"[0-9]{1,13}", text):
        raise BadSearch(f"{name} must be a whole number")
    return min(int(text), most) if text else default


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        rows: nearest first where there are scores, else ascending; None: all rows.
        scores: of each row: bits, or the cosine.
        order: the first rows in the order of the answer, where it is another one.
    """

    rows: Rows | None
    scores: npt.NDArray[Any] | None = None
    order: Rows | None = None

    def size(self) -> int:
        """Bytes that it takes."""
        return sum(0 if some is None else some.nbytes for some in (self.rows, self.scores, self.order))


class Explorer:
    """Answers over one set.

    Attributes:
        source: the set.
        index: of it.
        neighbours: by embeddings; None: no table was given.
    """

    def __init__(self, source: Source, index: Index, neighbours: Neighbours | None = None) -> None:
        self.source, self.index, self.neighbours = source, index, neighbours
        self._found: collections.OrderedDict[tuple[Request, int], Found] = collections.OrderedDict()
        self._lock = threading.Lock()
        pairs = source.pairs
        if isinstance(pairs, Published):
            self._tars = {shard.number: os.path.join(pairs.opened.root, shard.tar) for shard in pairs.opened.shards}
        else:
            self._tars = dict(enumerate(pairs.paths if isinstance(pairs, TarPairs) else ()))

    # -------------------------------------------------------------------------------------------------- the set

    def about(self) -> dict[str, Any]:
        """The set: its name, size, digest, facets and ledger."""
        pairs = self.source.pairs
        manifest = pairs.opened.manifest if isinstance(pairs, Published) else {}
        names = facets_of(self.index)
        return {
            "name": os.path.basename(storage.absolute(self.source.folder)) or self.source.folder,
            "folder": storage.absolute(self.source.folder),
            "kind": pairs.name,
            "digest": self.index.facts["digest"],
            "pairs": len(self.index),
            "shards": len(pairs.opened.shards) if isinstance(pairs, Published) else len(getattr(pairs, "paths", ())),
            "facets": names,
            "values": {name: len(self.index.values[name]) for name in names},
            "sorts": [name for name, (number, _) in SORTS.items() if not number or number in self.index.numbers],
            "sides": "side" in self.index.numbers,
            "pictures": "phash" in self.index.numbers,
            "embeddings": self.neighbours is not None,
            "ledger": pairs.opened.ledger if isinstance(pairs, Published) else [],
            "cap": (manifest.get("balancing") or {}).get("cap"),
            "forget": isinstance(pairs, Published),
        }

    # ------------------------------------------------------------------------------------------------- the search

    def search(self, request: Request) -> dict[str, Any]:
        """The pairs of a search from `request.start` on. Facets come with the first of them.

        Raises:
            BadSearch: the search cannot be answered.
        """
        began = time.perf_counter()
        found = self._cached(request)
        total = len(self.index) if found.rows is None else len(found.rows)
        end = min(total, request.start + PAGE)
        order = found.rows if found.order is None else found.order
        rows = range(request.start, end) if order is None else order[request.start : end].tolist()
        answer: dict[str, Any] = {"total": total, "start": request.start, "pairs": [self._card(row) for row in rows]}
        if found.scores is not None:
            for card, score in zip(answer["pairs"], found.scores[request.start : end].tolist(), strict=True):
                card["score"] = score
        if request.start == 0:
            answer["facets"] = self._facets(request, found)
            answer["terms"] = self._terms(request) if not total else []
        answer["ms"] = round((time.perf_counter() - began) * 1000, 1)
        return answer

    def _cached(self, request: Request) -> Found:
        most = 1 << max(FIRST_ORDERED, (request.start + PAGE).bit_length()) if request.sort else 0
        request = dataclasses.replace(request, start=0)
        with self._lock:
            if (request, most) in self._found:
                self._found.move_to_end((request, most))
                return self._found[request, most]
        found = self._find(request)
        if request.sort:
            found = Found(found.rows, None, self._ordered(request.sort, found.rows, most))
        with self._lock:
            self._found[request, most] = found
            while len(self._found) > 1 and sum(one.size() for one in self._found.values()) > KEPT_BYTES:
                self._found.popitem(last=False)
        return found

    def forget(self) -> None:
        """Lets the rows of earlier searches go."""
        with self._lock:
            self._found.clear()

    def _find(self, request: Request, *, without: str = "") -> Found:
        """The rows of a search, but for the choice in one facet."""
        index, scores = self.index, None
        rows = self._of_text(request.text)
        for name, values in request.values:
            if name not in index.values:
                raise BadSearch(f"the pairs of this set have no {name.replace('_', ' ')}")
            if name != without:
                rows = index.of_values(name, values, rows)
        if request.side:
            if "side" not in index.numbers:
                raise BadSearch("the pairs of this set have no known sizes")
            rows = index.at_least("side", request.side, rows)
        if request.like:
            if "phash" not in index.numbers:
                raise BadSearch("the pictures of this set have no hashes")
            rows, scores = index.like(int(request.like, 16), request.distance, rows)
        if request.near:
            rows, scores = self._near(request.near, rows)
        return Found(rows, scores)

    def _of_text(self, text: str) -> Rows | None:
        """The rows of what was typed: of a URL, of the beginning of a key, or of words."""
        if re.match(r"https?://\S+$", text):
            rows = self.index.of_url(text)
            if len(rows):
                return rows
        if KEY.fullmatch(text.lower()) and isinstance(self.source.pairs, Published):
            rows = self.index.beginning(text.lower(), PAGE)
            if len(rows):
                return rows
        return self.index.of_terms(parse(text))

    def _near(self, key: str, rows: Rows | None) -> tuple[Rows, npt.NDArray[Any]]:
        if self.neighbours is None:
            raise BadSearch("no table of embeddings was given: start with --embeddings TABLE")
        row = self.index.find(key)
        if row is None:
            raise BadSearch("the set has no pair with this key")
        found, scores = self.neighbours.of(row)
        if not len(found):
            raise BadSearch("this pair has no embedding in the table")
        kept = np.ones(len(found), bool) if rows is None else np.isin(found, rows)
        return found[kept], scores[kept]

    def _ordered(self, sort: str, rows: Rows | None, most: int) -> Rows:
        """The first of the rows in the order of a number, in 16 bits; equal ones in the order of the rows."""
        name, descending = SORTS[sort]
        if name and name not in self.index.numbers:
            raise BadSearch(f"the pairs of this set have no known {name}")
        numbers = self.index.lengths(rows) if not name else self.index.numbers[name][... if rows is None else rows]
        short = np.clip(numbers * 65535 if name == "probability" else numbers, 0, 65535).astype(np.uint16)
        first = smallest(65535 - short if descending else short, most)
        return first.astype(np.uint32) if rows is None else rows[first]

    def _card(self, row: int) -> dict[str, Any]:
        """What the gallery shows of a pair."""
        found = self.index.row(row)
        shown = ("row", "key", "text", "width", "height", "language", "domain", "phash")
        card = {name: found[name] for name in shown if name in found}
        if "phash" in card:
            card["phash"] = f"{card['phash']:016x}"
        return card

    def _facets(self, request: Request, found: Found) -> dict[str, Any]:
        """The most frequent values of each facet. Those of a facet with a choice are counted without the choice."""
        chosen = dict(request.values)
        answer = {}
        for name in facets_of(self.index):
            rows = self._find(request, without=name).rows if name in chosen and name != "query" else found.rows
            values, is_estimate = self.index.counts(name, rows, VALUES + 1)
            shown = [{"value": value, "count": count} for value, count in values[:VALUES]]
            listed = {one["value"] for one in shown}
            shown += [{"value": value, "count": None} for value in chosen.get(name, ()) if value not in listed]
            answer[name] = {"values": shown, "more": len(values) > VALUES, "estimate": is_estimate}
        return answer

    def _terms(self, request: Request) -> list[dict[str, Any]]:
        """How many pairs hold each term of a search that found nothing."""
        return [
            {"term": term.shown, "pairs": len(self.index.of_term(term))}
            for term in parse(request.text)
            if not term.is_excluded
        ]

    def suggest(self, field: str, text: str, request: Request) -> dict[str, Any]:
        """The most frequent values of a facet that hold some letters, among the pairs of a search.

        Raises:
            BadSearch: there is no such facet.
        """
        if field not in facets_of(self.index):
            raise BadSearch(f"the pairs of this set have no {field[:40]!r}")
        rows = self._find(request, without=field).rows
        values, is_estimate = self.index.counts(field, rows, SUGGESTED, grep=text[:100])
        return {"values": [{"value": value, "count": count} for value, count in values], "estimate": is_estimate}

    # -------------------------------------------------------------------------------------------------- one pair

    def pair(self, key: str, at: int | None = None) -> dict[str, Any]:
        """Everything known of a pair, and why it is in the set.

        Args:
            key: of the pair.
            at: its row, since tars of another tool may hold a key twice.

        Raises:
            NotFound: the set has no such pair.
            Damaged: a file cannot be read.
        """
        row = self.index.find(key) if at is None or not self.index.has(key, at) else at
        if row is None:
            raise NotFound("the set has no pair with this key")
        pairs = self.source.pairs
        facts = named(pairs, self._row_of(row, key))
        queries = [
            {"id": number, "query": query, "pairs": self.index.total("query", number),
             "picked": self.index.picked(number), "kept": number in (facts.get("kept_by") or ())}
            for number, query in self.index.texts_of_queries(row)
        ]  # fmt: skip
        if facts.get("phash") is not None:
            facts["phash"] = f"{facts['phash']:016x}"
        dropped = self.index.duplicates(key)
        return {
            "row": row,
            "key": key,
            "facts": facts,
            "queries": queries,
            "duplicates": dropped[:MOST_DUPLICATES],
            "duplicate_count": len(dropped),
            "meanings": {column.name: column.meaning for column in TABLES["pairs"]},
            "picture": self._fault(row, facts),
            "embedding": self.neighbours is not None and self.neighbours.place(row) >= 0,
        }

    def _row_of(self, row: int, key: str) -> dict[str, Any]:
        pairs = self.source.pairs
        if isinstance(pairs, TarPairs):
            for table in pairs.tables(pairs.schema.names, shard=int(self.index.numbers["shard"][row])):
                for found in table.filter(pc.equal(table["key"], key)).to_pylist():
                    if found["jpg_offset"] == int(self.index.numbers["offset"][row]):
                        return found
            raise NotFound("the tar has no longer a pair with this key")
        return pairs.row(key)

    def _fault(self, row: int, facts: Mapping[str, Any]) -> str:
        """Why the picture cannot be trusted or shown; "" if all is well."""
        try:
            data, _ = self.picture(row)
        except (Damaged, NotFound) as error:
            return str(error)
        if facts.get("sha256") and hashlib.sha256(data).hexdigest() != facts["sha256"]:
            return "its bytes in the tar have another sha256 than the metadata says"
        return ""

    def picture(self, row: int) -> tuple[bytes, str]:
        """The bytes and the type of a picture, read from its place in the tar.

        Raises:
            NotFound: there is no such pair.
            Damaged: the tar is cut off, or there is no image of a known type at the place.
        """
        if not 0 <= row < len(self.index):
            raise NotFound("the set has no such pair")
        shard, offset, size = (int(self.index.numbers[name][row]) for name in ("shard", "offset", "bytes"))
        path = self._tars.get(shard, "")
        if not 0 < size <= LARGEST_PICTURE:
            raise Damaged(f"the picture has {size:,} bytes")
        try:
            data = storage.read_range(path, offset, size) if offset >= 0 else b""
        except (OSError, InputError) as error:
            raise Damaged(f"{os.path.basename(path)} cannot be read: {getattr(error, 'strerror', '')}") from error
        if len(data) < size:
            raise Damaged(f"{os.path.basename(path)} is cut off before this picture ends")
        for magic, kind in PICTURES:
            if magic.match(data):
                return data, kind
        raise Damaged(f"{os.path.basename(path)} holds no JPEG, PNG, GIF or WebP at this place")

    def hash_of(self, body: bytes) -> str:
        """The perceptual hash of a picture that the user gives, as of the pictures of the set.

        Raises:
            BadSearch: it is not a picture that can be decoded.
        """
        from pipeline.fetching.errors import Failure
        from pipeline.fetching.picture import NeedsMemory

        pairs = self.source.pairs
        options = pairs.opened.manifest.get("options", {}) if isinstance(pairs, Published) else {}
        size = int(options.get("image_size") or 256)
        try:
            return f"{hash_of(body, image_size=size, memory=PICTURE_MEMORY):016x}"
        except (Failure, NeedsMemory) as error:
            raise BadSearch(f"this picture cannot be used: {error}") from None

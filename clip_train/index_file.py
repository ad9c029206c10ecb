"""The file of an index: fixed-size records that all processes of a host map, so that they share the pages.

    prefix    64 bytes: name of the format, offset and size of the footer, the footer's sha256
    records   for each sample a few little-endian 32-bit words, grouped by shard:
              image_block image_size text_block text_size [label_block label_size] [keep]
              [json_block json_size captions] [sha256 x2] check
    keys      of plain tars: compressed, KEYS at a time; then the offsets of the parts. A published folder has its keys
              in its metadata
    runs      with keep: for each run of RUN samples of a shard, the sum of all keep probabilities before it
    footer    JSON: the rest

A tar has its members at multiples of 512 bytes, so an offset is a number of such blocks. The check word of a record
depends on its place too. It is compared at every read, so that a damaged byte of the file never gives another caption.
The kernel may take the pages of the mapping back, and we give them back ourselves: what a process holds is bounded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from clip_train import keyed
from clip_train.errors import TrainError
from clip_train.remote import host_lock

BLOCK = 512  # bytes of a tar
KEEP_UNIT = 1 << 31  # the word of a keep probability of 1
RUN = 32  # samples a run
KEYS = 1024  # that are compressed together
FORMAT = 1
Mapped = TypeVar("Mapped")
_MAGIC = b"clip_train index"
PREFIX = struct.Struct("<16sQQ32s")
_TOGETHER = 512  # records that are read before their pages are given back: 32 MB, as the kernel maps 16 pages at a time
_FACTORS = keyed.combine(6, np.arange(17, dtype=np.uint64)) | np.uint64(1)  # of the check; the last is of the place


def check_words(words: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The check of each record, (n,) uint32, from its (n, w) words and its place: a sum of products modulo 2^64."""
    sums = (words.astype(np.uint64) * _FACTORS[: words.shape[1]]).sum(1, dtype=np.uint64)
    return ((sums + samples.astype(np.uint64) * _FACTORS[-1]) >> np.uint64(32)).astype(np.uint32)


def open_footer(file: IO[bytes], magic: bytes) -> dict[str, Any]:
    """The footer of a file of this form. ValueError if the file is cut, or the footer is not as it was written."""
    size = os.fstat(file.fileno()).st_size
    found, at, length, digest = PREFIX.unpack(os.pread(file.fileno(), PREFIX.size, 0).ljust(PREFIX.size, b"\0"))
    footer = os.pread(file.fileno(), length, at) if at + length == size else b""
    if found != magic or hashlib.sha256(footer).digest() != digest:
        raise ValueError("it is cut or damaged")
    return json.loads(footer)


def write_footer(file: IO[bytes], magic: bytes, footer: Mapping[str, Any]) -> None:
    """Writes the footer at the place of the file, and the prefix, which was left free, at its start."""
    data, at = json.dumps(footer).encode(), file.tell()
    file.write(data)
    file.seek(0)
    file.write(PREFIX.pack(magic, at, len(data), hashlib.sha256(data).digest()))
    file.flush()


class Table:
    """A mapped file of an index.

    Attributes:
        columns: the number of the word of each column.
        bounds: (shards + 1,) int64: the first sample of each shard, and the number of samples.
        cumulated: (runs,) int64, with keep probabilities: their sum before each run, in units of 1 / KEEP_UNIT.
        first_run: (shards + 1,) int64: the first run of each shard, and the number of runs.
        total: the sum of all keep probabilities, in the same units.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        """Maps an open file. ValueError if it is not whole."""
        self.name = name
        self._footer = open_footer(file, _MAGIC)
        if self._footer["format"] != FORMAT:
            raise ValueError(f"it has format {self._footer['format']}")
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        self._touched = 0
        self.samples: int = self._footer["samples"]
        self.columns = {str(name): number for number, name in enumerate(self._footer["columns"])}
        width = len(self._footer["columns"])
        self._records = np.frombuffer(self._map, "<u4", self.samples * width, PREFIX.size).reshape(-1, width)
        self.bounds = np.array(self._footer["bounds"], np.int64)
        self.sizes = tuple(self._footer["sizes"])
        self.names: list[str] = self._footer["names"]
        self.damaged: list[int] = self._footer["damaged"]
        self.labelled: bool = self._footer["labelled"]
        self.digest: str = self._footer["digest"]
        self.total: int = self._footer["total"]
        self.first_run = np.concatenate([[0], np.cumsum(-(-np.diff(self.bounds) // RUN))])
        self.cumulated = self._section("runs")
        self._key_offsets = self._section("key_offsets")
        self._metadata_rows = np.array([row for _, row in self._footer["metadata"]] + [self.samples], np.int64)

    def _section(self, name: str) -> np.ndarray:
        at, count = self._footer["sections"].get(name, (0, 0))
        return np.frombuffer(self._map, "<i8", count, at)

    def take(self, samples: np.ndarray) -> np.ndarray:
        """(n, words) uint32: the records of n samples. TrainError if one is not as it was written."""
        words = np.empty((len(samples), self._records.shape[1]), np.uint32)
        for at in range(0, len(samples), _TOGETHER):
            part = slice(at, at + _TOGETHER)
            words[part] = self._records[samples[part]]
            self._give_back(len(samples[part]))
        wrong = np.flatnonzero(check_words(words[:, :-1], samples) != words[:, -1])
        if len(wrong):
            raise TrainError(
                f"the index {self.name} is damaged (sample {int(samples[wrong[0]])}): remove it, it will be made again"
            )
        return words

    def runs_at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The runs at n places on the line of cumulated keep probabilities, and where each begins, (n,) int64 each."""
        runs, starts = np.empty_like(places), np.empty_like(places)
        for at in range(0, len(places), _TOGETHER):
            part = slice(at, at + _TOGETHER)
            runs[part] = np.searchsorted(self.cumulated, places[part], side="right") - 1
            starts[part] = self.cumulated[runs[part]]
            self._give_back(len(places[part]))
        return runs, starts

    def shard_sums(self) -> np.ndarray:
        """(shards + 1,) int64: the sum of the keep probabilities before each shard, and of all."""
        sums = np.full(len(self.first_run), self.total, np.int64)
        inside = self.first_run < len(self.cumulated)
        sums[inside] = self.cumulated[self.first_run[inside]]
        return sums

    def _give_back(self, records: int) -> None:
        """Unmaps the pages from this process once in a while. They stay in the memory of the host."""
        self._touched += records
        if self._touched >= _TOGETHER:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0

    @property
    def has_keys(self) -> bool:
        """True if the keys are in this file."""
        return len(self._key_offsets) > 0

    def key(self, sample: int) -> str:
        """The key of a sample."""
        part, row = divmod(sample, KEYS)
        return self._keys(part)[row]

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a process has few tables
    def _keys(self, part: int) -> list[str]:
        start, end = self._key_offsets[part : part + 2].tolist()
        try:
            return json.loads(zlib.decompress(self._map[start:end]))
        except (zlib.error, ValueError) as error:
            raise TrainError(f"the index {self.name} is damaged (its keys: {error}): remove it") from None

    def metadata_of(self, sample: int) -> tuple[str, int, int]:
        """The metadata file with a sample's key, the row in it, and how many rows it has."""
        number = int(np.searchsorted(self._metadata_rows, sample, side="right")) - 1
        first, end = self._metadata_rows[number : number + 2].tolist()
        return self._footer["metadata"][number][0], sample - first, end - first


class Writer:
    """Writes the file of an index, shard by shard. Memory does not grow with the samples. Use it with `with`."""

    def __init__(self, file: IO[bytes], *, columns: Sequence[str], keys: bool) -> None:
        """`columns`: of the words but the check. `keys`: the file has them too."""
        self._file, self._columns, self._has_keys = file, tuple(columns), keys
        file.write(bytes(PREFIX.size))
        self.samples, self._labelled, self._total = 0, False, 0
        self._bounds, self._sizes, self._runs = [0], list[int](), list[np.ndarray]()
        self._metadata: list[tuple[str, int]] = []
        self._digest = hashlib.sha256()
        self._keys: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        self._key_sizes, self._waiting = list[int](), list[str]()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._keys.close()

    def begin_metadata(self, path: str) -> None:
        """The samples that follow have their keys in this file of the set, in the same order."""
        self._metadata.append((path, self.samples))

    def add_shard(self, columns: Mapping[str, np.ndarray], keys: Sequence[str], *, size: int) -> None:
        """Appends the samples of the next shard.

        Args:
            columns: image_offset, image_size, ..., keep_probability and sha256 ((n, 32) uint8), as far as there are.
            keys: of the samples, if the file has them.
            size: of the shard, in bytes.

        Raises:
            ValueError: a member is outside of its shard, or a probability outside of [0, 1].
        """
        count = len(columns["image_offset"])
        words = np.empty((count, len(self._columns) + 1), np.uint32)
        for number, name in enumerate(self._columns):
            words[:, number] = _words_of(name, columns, size)
        words[:, -1] = check_words(words[:, :-1], np.arange(self.samples, self.samples + count))
        data = words.astype("<u4", copy=False).tobytes()
        self._digest.update(data)
        self._file.write(data)
        if "label_size" in columns:
            self._labelled |= bool(np.any(columns["label_size"]))
        if "keep" in self._columns and count:
            keep = words[:, self._columns.index("keep")].astype(np.int64)
            sums = np.add.reduceat(keep, np.arange(0, count, RUN))
            self._runs.append(self._total + np.cumsum(sums) - sums)
            self._total += int(sums.sum())
        if self._has_keys:
            self._waiting += keys
            while len(self._waiting) >= KEYS:
                self._write_keys()
        self.samples += count
        self._bounds.append(self.samples)
        self._sizes.append(size)

    def _write_keys(self) -> None:
        part, self._waiting = self._waiting[:KEYS], self._waiting[KEYS:]
        self._key_sizes.append(self._keys.write(zlib.compress(json.dumps(part).encode(), 1)))

    def finish(self, names: Sequence[str], *, damaged: Sequence[int] = (), listed: str = "") -> None:
        """Writes the rest.

        Args:
            names: of the shards.
            damaged: numbers of the shards that are not whole.
            listed: the digest of the set; unless given, that of names, sizes and places.
        """
        if self._waiting:
            self._write_keys()
        sections: dict[str, tuple[int, int]] = {}
        if self._has_keys:
            start = self._file.tell()
            self._keys.seek(0)
            shutil.copyfileobj(self._keys, self._file, 1 << 20)
            self._section(sections, "key_offsets", start + np.cumsum([0, *self._key_sizes]))
        if "keep" in self._columns:
            self._section(sections, "runs", np.concatenate([*self._runs, np.zeros(0, np.int64)]))
        digest = hashlib.sha256(json.dumps([[os.path.basename(name) for name in names], self._sizes]).encode())
        digest.update(self._digest.digest())
        footer = {
            "format": FORMAT, "samples": self.samples, "columns": [*self._columns, "check"], "names": list(names),
            "bounds": self._bounds, "sizes": self._sizes, "damaged": list(damaged), "labelled": self._labelled,
            "digest": listed or digest.hexdigest(), "total": self._total, "metadata": self._metadata,
            "sections": sections,
        }  # fmt: skip
        write_footer(self._file, _MAGIC, footer)

    def _section(self, sections: dict[str, tuple[int, int]], name: str, values: np.ndarray) -> None:
        self._file.write(bytes(-self._file.tell() % 8))
        sections[name] = self._file.tell(), len(values)
        self._file.write(values.astype("<i8").tobytes())


def _words_of(name: str, columns: Mapping[str, np.ndarray], size: int) -> np.ndarray:
    """A column of words."""
    if name == "keep":
        keep = columns["keep_probability"].astype(np.float64)
        if not ((keep >= 0) & (keep <= 1)).all():
            raise ValueError("a keep_probability is outside of [0, 1]")
        return np.round(keep * KEEP_UNIT)
    if name.startswith("sha256"):
        half = 4 * (name == "sha256+")
        return np.ascontiguousarray(columns["sha256"][:, half : half + 4]).view("<u4")[:, 0]
    if name == "captions":
        return columns[name]
    kind, _, what = name.partition("_")
    offsets, sizes = (columns[f"{kind}_{part}"].astype(np.int64) for part in ("offset", "size"))
    if what == "size":
        return np.minimum(sizes, 2**31 - 1)
    if (offsets < 0).any() or (sizes < 0).any() or (offsets > size).any() or (sizes > size - offsets).any():
        raise ValueError("a member is outside of its shard")
    if (offsets % BLOCK).any() or (offsets >= BLOCK << 32).any():
        raise ValueError(f"a member does not begin at a multiple of {BLOCK} bytes")
    return offsets // BLOCK


def open_mapped(path: Path, kind: Callable[[IO[bytes], str], Mapped]) -> Mapped | None:
    """The file at `path`; None where there is none, or where it is damaged and has to be made again."""
    try:
        with open(path, "rb") as file:
            return kind(file, str(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def kept_table(folders: Sequence[Path], name: str, write: Callable[[IO[bytes]], None]) -> Table:
    """The index of this name, see `kept_file`."""
    return kept_file(folders, f"{name}.index", write, Table)


def kept_file(
    folders: Sequence[Path], name: str, write: Callable[[IO[bytes]], None], kind: Callable[[IO[bytes], str], Mapped]
) -> Mapped:
    """The mapped file in the first of `folders` that has it, or else in the first that can be written.

    One process of a host writes it, and the others wait. If no folder can be written, each process has its own.
    """
    for folder in folders:
        path = folder / name
        mapped = open_mapped(path, kind)
        try:
            if mapped is None:
                folder.mkdir(exist_ok=True)
                with host_lock(path.with_suffix(".lock")):
                    mapped = open_mapped(path, kind)
                    if mapped is None:
                        _write_whole(path, write)
                        mapped = open_mapped(path, kind)
        except OSError:
            continue  # it cannot be written
        if mapped is not None:
            return mapped
    with tempfile.TemporaryFile() as file:
        write(file)
        return kind(file, name)


def _write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Writes a file under another name, and renames it when it is whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

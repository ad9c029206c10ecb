"""What there is to train on: an index of samples in tar shards, in flat arrays.

Two kinds of input:
- a folder that the pipeline published: `manifest.json`, `shards/*.tar`, and `metadata/*.parquet` with the place of
  every member. Shards that do not agree with the manifest are refused.
- plain WebDataset tars, as a folder or a brace pattern (`/data/cc12m-{00000..01242}.tar`): the tar headers are read
  once and the index is kept beside them, in `.clip_train/`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_train.errors import InputMissing, TrainError

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
TEXT_MEMBER, LABEL_MEMBER = "txt", "cls"
_PLACES = ("image", "text", "label")
_REMEDY = "publish the shards again, or point --data at a whole copy"


@dataclasses.dataclass(frozen=True)
class Index:
    """N samples. Offsets and sizes are bytes in the shard's file; size 0: the sample has no such member."""

    paths: tuple[str, ...]  # of the shards
    keys: pa.Array  # (N,) string
    shard: np.ndarray  # (N,) int32, into `paths`
    image_offset: np.ndarray  # (N,) int64
    image_size: np.ndarray  # (N,) int32
    text_offset: np.ndarray
    text_size: np.ndarray
    label_offset: np.ndarray
    label_size: np.ndarray
    sha256: np.ndarray | None = None  # (N, 32) uint8, of the image
    dimensions: np.ndarray | None = None  # (N, 2) int32, width and height
    keep_probability: np.ndarray | None = None  # (N,) float32
    damaged: tuple[str, ...] = ()  # plain tars that are cut or have spoiled headers: their whole samples are here

    def __len__(self) -> int:
        return len(self.shard)


def open_index(data: str) -> Index:
    """The index of `data`; InputMissing where there is nothing to read."""
    if not data:
        raise InputMissing("no data: name a folder of shards, or a pattern of tars, with --data")
    folder = Path(data)
    if folder.is_dir() and (folder / "manifest.json").exists():
        index = _read_published(folder)
    else:
        paths = expand(data)
        index = _read_tars(paths)
    if not len(index):
        raise InputMissing(f"{data}: the shards hold no sample with an image")
    return index


def expand(pattern: str) -> list[str]:
    """`a-{0000..0012}.tar`, `{x,y}.tar`, a folder, or a file -> the tars, in order; every one must exist."""
    if os.path.isdir(pattern):
        paths = sorted(str(path) for path in Path(pattern).rglob("*.tar"))
    else:
        paths = list(_expand_braces(pattern))
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise InputMissing(f"{missing[0]}: no such file ({len(missing)} of {len(paths)} shards are missing)")
    if not paths:
        raise InputMissing(f"{pattern}: no .tar file in this folder")
    return paths


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        width = len(span[1])
        choices = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


# --- a published folder ------------------------------------------------------------------------------------------


def _read_published(folder: Path) -> Index:
    _check_manifest(folder)
    files = sorted((folder / "metadata").glob("*.parquet"))
    if not files:
        raise InputMissing(f"{folder / 'metadata'}: no Parquet file; {_REMEDY}")
    try:
        tables = [pq.read_table(file, columns=_wanted_columns(file), page_checksum_verification=True) for file in files]
    except (pa.ArrowInvalid, OSError) as error:
        raise TrainError(f"{folder / 'metadata'}: {error}; {_REMEDY}") from error
    return _index_from_table(pa.concat_tables(tables, promote_options="default"), folder)


_COLUMNS = (
    "key", "shard", "jpg_offset", "jpg_size", "txt_offset", "txt_size", "sha256", "keep_probability", "width", "height",
)  # fmt: skip


def _wanted_columns(file: Path) -> list[str]:
    present = set(pq.read_schema(file).names)
    missing = [name for name in _COLUMNS[:6] if name not in present]
    if missing:
        raise TrainError(f"{file} has no column {missing[0]!r}: is this a folder that the pipeline published?")
    return [name for name in _COLUMNS if name in present]


def _index_from_table(table: pa.Table, folder: Path) -> Index:
    shards = table["shard"].combine_chunks()
    names = shards.dictionary_encode() if not pa.types.is_dictionary(shards.type) else shards
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    paths = tuple(str(_shard_path(folder, name)) for name in names.dictionary.to_pylist())
    columns = {name: table[name].to_numpy() for name in _COLUMNS[2:6]}
    nothing = np.zeros(table.num_rows, np.int64)
    has = table.column_names
    return Index(
        paths=paths,
        keys=table["key"].cast(pa.large_string()).combine_chunks(),
        shard=names.indices.to_numpy().astype(np.int32),
        image_offset=columns["jpg_offset"].astype(np.int64),
        image_size=columns["jpg_size"].astype(np.int32),
        text_offset=columns["txt_offset"].astype(np.int64),
        text_size=columns["txt_size"].astype(np.int32),
        label_offset=nothing,
        label_size=nothing.astype(np.int32),
        sha256=_digests(table["sha256"]) if "sha256" in has else None,
        dimensions=np.stack([table["width"].to_numpy(), table["height"].to_numpy()], 1).astype(np.int32)
        if "width" in has and "height" in has
        else None,
        keep_probability=table["keep_probability"].to_numpy().astype(np.float32) if "keep_probability" in has else None,
    )


def _shard_path(folder: Path, name: int | str) -> Path:
    if isinstance(name, int):
        return folder / "shards" / f"{name:05d}.tar"
    plain = Path(name).name
    return folder / "shards" / (plain if plain.endswith(".tar") else f"{plain}.tar")


def _digests(column: pa.ChunkedArray) -> np.ndarray:
    """(N, 32) bytes from a column of digests, as bytes or as hexadecimal text."""
    values = column.to_pylist()
    raw = b"".join(bytes.fromhex(value) if isinstance(value, str) else value for value in values)
    return np.frombuffer(raw, np.uint8).reshape(len(values), 32)


def _check_manifest(folder: Path) -> None:
    """Every file of the manifest is there with its length. (`--verify` checks the samples' digests while training.)"""
    file = folder / "manifest.json"
    try:
        entries = json.loads(file.read_text())["files"]
        listed = [(str(entry["path"]), int(entry["bytes"])) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{file} is no manifest ({error}); {_REMEDY}") from error
    for name, size in listed:
        path = folder / name
        if not name.startswith(("shards/", "metadata/")):
            continue
        if not path.exists():
            raise InputMissing(f"{path} is missing, the manifest lists it; {_REMEDY}")
        if path.stat().st_size != size:
            raise TrainError(f"{path} has {path.stat().st_size} bytes, the manifest says {size}; {_REMEDY}")


# --- plain WebDataset tars -----------------------------------------------------------------------------------------


def _read_tars(paths: Sequence[str]) -> Index:
    marks = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    name = f"index-{hashlib.sha256(repr([(os.path.basename(p), s, m) for p, s, m in marks]).encode()).hexdigest()[:16]}"
    cached = Path(paths[0]).parent / ".clip_train" / f"{name}.parquet"
    table = None
    if cached.exists():
        try:
            table = pq.read_table(cached, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError):
            table = None  # spoiled: made again below
    if table is None:
        table = _scan_all(paths)
        _keep_index(table, cached)
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
    metadata = table.schema.metadata or {}
    return Index(
        paths=tuple(paths),
        keys=table["key"].combine_chunks(),
        damaged=tuple(json.loads(metadata.get(b"damaged", b"[]"))),
        **columns,  # type: ignore[arg-type]
    )


def _keep_index(table: pa.Table, path: Path) -> None:
    """Writes the index beside the shards; a folder that cannot be written costs a scan each time, no more."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, partial, write_page_checksum=True)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)


def _scan_all(paths: Sequence[str]) -> pa.Table:
    keys: list[str] = []
    rows: list[tuple[int, ...]] = []
    damaged: list[str] = []
    for number, path in enumerate(paths):
        samples, whole = scan_tar(path)
        if not whole:
            damaged.append(path)
        for key, members in samples.items():
            image = next((members[kind] for kind in IMAGE_MEMBERS if kind in members), None)
            if image is None:
                continue
            keys.append(key)
            rows.append((number, *image, *members.get(TEXT_MEMBER, (0, 0)), *members.get(LABEL_MEMBER, (0, 0))))
    flat = np.array(rows, np.int64).reshape(-1, 7)
    columns: dict[str, object] = {"key": pa.array(keys, pa.large_string()), "shard": flat[:, 0].astype(np.int32)}
    for number, place in enumerate(_PLACES):
        columns[f"{place}_offset"] = flat[:, 1 + 2 * number]
        columns[f"{place}_size"] = flat[:, 2 + 2 * number].astype(np.int32)
    return pa.table(columns).replace_schema_metadata({"damaged": json.dumps(damaged)})


def scan_tar(path: str) -> tuple[dict[str, dict[str, tuple[int, int]]], bool]:
    """The members of a tar by key and extension, as (offset, size), and whether the archive is whole.

    A key is the member's name up to the first dot of its last part. Only plain files count; the second member of one
    name is ignored. Behind a header that is damaged the scan goes on at the next one that holds.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    size = os.path.getsize(path)
    if size == 0:
        return samples, False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, long_name, whole = 0, None, True
        while at + 512 <= size:
            header = data[at : at + 512]
            if header == bytes(512):
                return samples, whole
            if not _checksum_holds(header):
                at, whole = at + 512, False  # look for the next header that holds
                continue
            length = _number(header[124:136])
            start, kind = at + 512, header[156:157]
            at = start + (length + 511) // 512 * 512
            if start + length > size:
                return samples, False
            if kind == b"L":  # GNU: the next member's name
                long_name = data[start : start + length].rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":  # pax: the same, and more
                long_name = _pax_path(data[start : start + length]) or long_name
            else:
                if kind in (b"0", b"\0"):
                    _note(samples, long_name or _plain_name(header), (start, length))
                long_name = None
        return samples, False  # no end mark


def _note(samples: dict[str, dict[str, tuple[int, int]]], name: str, place: tuple[int, int]) -> None:
    folder, _, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if stem and dot:
        key = f"{folder}/{stem}" if folder else stem
        samples.setdefault(key, {}).setdefault(extension.lower(), place)


def _plain_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" and header[262:263] == b"\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _number(field: bytes) -> int:
    """A size: octal text, or base 256 where the first bit is set (members of 8 GiB and more)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    text = field.rstrip(b" \0").strip()
    return int(text, 8) if text and re.fullmatch(rb"[0-7]+", text) else 0


def _checksum_holds(header: bytes) -> bool:
    stored = header[148:156].rstrip(b" \0").strip()
    return bool(re.fullmatch(rb"[0-7]+", stored)) and int(stored, 8) == sum(header) - sum(header[148:156]) + 8 * 32


def _pax_path(data: bytes) -> str | None:
    found = re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", data)
    return found[1].decode("utf-8", "replace") if found else None


def key_of(index: Index, sample: int) -> str:
    """Shard and key, as messages name a sample."""
    return f"{os.path.basename(index.paths[int(index.shard[sample])])}:{index.keys[sample].as_py()}"


def chunked(numbers: Sequence[int] | np.ndarray, size: int) -> Iterator[Sequence[int] | np.ndarray]:
    """Slices of at most `size`."""
    for at in itertools.count(0, size):
        if at >= len(numbers):
            return
        yield numbers[at : at + size]

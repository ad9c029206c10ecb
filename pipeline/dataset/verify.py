"""Verifies a folder. Every fault names its file and, where there is one, the key of the sample.

A published folder is compared with its manifest: sizes, sha256, no other files. Each tar is compared with its metadata.
The headers and the JSON of a sample follow from its row, so every byte of a tar is checked. Each sample must be in the
shard of its range. The stages of a run are compared with each other: rows in = rows out + drops, and the rows that
leave one stage enter the next. The files of the stages are checked against their checksums with `stages=True` only,
since they are many times as large as the published set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import damage, shards, tars
from pipeline.dataset.ranges import Ranges, digits_of, recorded
from pipeline.dataset.sample_json import sample_json
from pipeline.dataset.shards import EXTENSIONS, FileEntry
from pipeline.engine import storage
from pipeline.schema import STAGES

COUNTED = ("stage", "rows_in", "rows_out", "dropped")
# The fields of a manifest from before checksums. A manifest with any other field must have a checksum.
BEFORE_CHECKSUMS = {"format", "digest", "rows", "files", "ledger", "options", "versions", "queries"}


class NothingThere(ValueError):
    """The folder does not exist, or it is neither a published folder nor the folder of a run."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault of a folder."""

    path: str  # below the folder
    problem: str
    key: str = ""  # of the sample, if the fault concerns one sample


def verify(
    folder: str, *, quick: bool = False, stages: bool = False, note: Callable[[str], None] = lambda _: None
) -> Iterator[Fault]:
    """Yields the faults of a folder; nothing if there is no fault.

    Args:
        folder: a published folder, or the folder of a run that has not reached `publish`.
        quick: check names, sizes and counts, but not the contents.
        stages: check every file that the stages keep, too.
        note: receives a line for each file that could not be checked. Such a file is not a fault.

    Raises:
        NothingThere: there is nothing to verify.
    """
    published = storage.exists(os.path.join(folder, "manifest.json"))
    if not published and not storage.is_folder(os.path.join(folder, "stages")):
        raise NothingThere(f"{folder!r} holds neither manifest.json nor stages/: is it the --output of a run?")
    ledger = None
    if published:
        manifest = _json(folder, "manifest.json")
        if isinstance(manifest, dict):
            yield from _altered(folder, "manifest.json")
        problem = problem_of(manifest) or _seal(manifest, note)
        if problem:
            yield Fault("manifest.json", problem)
        else:
            ledger = manifest["ledger"]
            yield from _publication(folder, manifest, quick=quick)
    elif any(storage.is_folder(os.path.join(folder, name)) for name in ("shards", "metadata")):
        yield Fault("manifest.json", "missing, though there are shards: the publication was not finished")
    yield from _stages(folder, ledger, note)
    yield from _seals_of_stages(folder, note)
    if stages:
        yield from (Fault(path, problem) for path, problem in damage.check_stages(folder))
    elif ledger is not None and storage.CHECKSUM in manifest:  # an older version wrote the lists without checksums
        yield from (Fault(path, problem) for path, problem in damage.check_lists(folder))


# ---------------------------------------------------------------------------------------------------- the manifest


def _json(folder: str, path: str) -> Any:
    """The parsed file; None if it is missing; the error if it cannot be parsed."""
    try:
        return json.loads(storage.read(os.path.join(folder, path)))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as error:
        return error


def _altered(folder: str, path: str) -> Iterator[Fault]:
    """A fault if the checksum of a JSON object does not fit. The caller still checks the content of the object."""
    try:
        storage.read_json(os.path.join(folder, path), sealed=False)
    except storage.DamagedError:
        yield Fault(path, "was changed: its checksum does not fit")


def _seal(manifest: Mapping[str, Any], note: Callable[[str], None]) -> str:
    """The problem of a manifest without a checksum; "" if there is none. `_altered` checks the value of a checksum."""
    if storage.CHECKSUM in manifest:
        return ""
    if not BEFORE_CHECKSUMS.issuperset(manifest):
        return "has no checksum"
    note("manifest.json: written by an older version, without a checksum of its own")
    return ""


def problem_of(manifest: Any) -> str:
    """The problem with the form of a manifest; "" if there is none."""
    if isinstance(manifest, Exception):
        return f"cannot be read: {manifest}"
    try:
        for entry in manifest["files"]:
            FileEntry(**entry)
            if os.path.isabs(entry["path"]) or ".." in entry["path"].split("/"):
                return f"lists {entry['path']!r}, but it is outside the folder"
            if not (isinstance(entry["bytes"], int) and isinstance(entry["rows"], int)):
                return f"lists {entry['path']!r} without its bytes and rows"
        for row in manifest["ledger"]:
            int(row["rows_in"]), int(row["rows_out"]), dict(row["dropped"]), str(row["stage"])
        str(manifest["digest"]), dict(manifest["options"]), dict(manifest["versions"]), recorded(manifest)
    except (KeyError, TypeError, ValueError) as error:
        return f"is not a manifest: {type(error).__name__}: {error}"
    return ""


def _publication(folder: str, manifest: Mapping[str, Any], *, quick: bool) -> Iterator[Fault]:
    entries = [FileEntry(**entry) for entry in manifest["files"]]
    form = manifest.get("format")
    if form not in shards.READ:
        yield Fault("manifest.json", f"has format {form}, this program knows {' and '.join(map(str, shards.READ))}")
    if form != 1 and recorded(manifest) is None:
        yield Fault("manifest.json", "does not record into how many ranges the uids are cut (shards.ranges)")
    if shards.digest_of_files(entries) != manifest["digest"]:
        yield Fault("manifest.json", "its digest is not that of the files it lists")
    if not any(entry.rows for entry in entries if entry.path.endswith(".tar")):
        yield Fault("manifest.json", "the set holds no image")
    for path in sorted(_links(folder, entries)):
        yield Fault(path, "is a symbolic link")
    for path in shards.unlisted_files(folder, manifest):
        yield Fault(path, "not in the manifest")
    damaged = set()
    for entry in entries:
        for fault in _file(folder, entry, quick=quick):
            damaged.add(entry.path)
            yield fault
    yield from _counts(folder, manifest, entries)
    yield from _names(manifest, entries)
    last, listed = "", {entry.path for entry in entries}
    for number in sorted({number for path in listed if (number := _number(path)) is not None}):
        shard = _Shard.of(manifest, number)
        for path, other in ((shard.tar, shard.table), (shard.table, shard.tar)):
            if path not in listed:
                yield Fault(path, f"not in the manifest, but the manifest lists {other}")
        # The samples are not compared with a damaged table.
        if not quick and {shard.tar, shard.table} <= listed and shard.table not in damaged:
            found, last = _shard(folder, shard, after=last)
            yield from found


def _number(path: str) -> int | None:
    """The number in the name of a shard's tar or metadata; None: another file."""
    found = re.fullmatch(r"shards/(\d+)\.tar|metadata/(\d+)\.parquet", path, re.ASCII)
    return int(found[1] or found[2]) if found else None


def _names(manifest: Mapping[str, Any], entries: list[FileEntry]) -> Iterator[Fault]:
    """Files with the name of a shard that cannot belong to the set."""
    ranges, digits = recorded(manifest), digits_of(manifest)
    for entry in entries:
        number = _number(entry.path)
        if number is None:
            if entry.path.endswith(".tar"):
                yield Fault(entry.path, "its name is not the number of a range")
        elif entry.path not in (shards.tar_path(number, digits), shards.metadata_path(number, digits)):
            yield Fault(entry.path, f"its name should have {digits} digits")
        elif ranges is not None and number >= ranges.count:
            yield Fault(entry.path, f"the set has {ranges.count} ranges, 0 to {ranges.count - 1}")
        elif not entry.rows:
            yield Fault(entry.path, "has no row: a range without a row has no file")


def _links(folder: str, entries: list[FileEntry]) -> set[str]:
    """Symbolic links among the published files and their parent folders."""
    paths = {entry.path for entry in entries} | {"manifest.json"}
    parents = {path.rsplit("/", depth)[0] for path in paths for depth in range(1, path.count("/") + 1)}
    return {path for path in paths | parents if storage.is_link(os.path.join(folder, path))}


def _file(folder: str, entry: FileEntry, *, quick: bool) -> Iterator[Fault]:
    path = os.path.join(folder, entry.path)
    try:
        size = storage.size(path)
        if size != entry.bytes:
            yield Fault(entry.path, f"has {size} bytes, the manifest says {entry.bytes}")
        elif not quick and shards.entry_of(folder, entry.path).sha256 != entry.sha256:
            yield Fault(entry.path, "its sha256 is not that of the manifest")
    except FileNotFoundError:
        yield Fault(entry.path, "missing, the manifest lists it")
    except OSError as error:
        yield Fault(entry.path, f"cannot be read: {error}")


def _counts(folder: str, manifest: Mapping[str, Any], entries: list[FileEntry]) -> Iterator[Fault]:
    """Compares the numbers of rows in the manifest, sizes.json and the ledger."""
    rows = {entry.path: entry.rows for entry in entries if entry.path.endswith(".tar")}
    sizes = _json(folder, "shards/sizes.json")
    if not isinstance(sizes, dict):
        yield Fault("shards/sizes.json", f"cannot be read: {sizes}" if sizes is not None else "missing")
    else:
        for path in sorted({*rows, *(f"shards/{name}" for name in sizes)}):
            samples = sizes.get(os.path.basename(path))
            if samples != rows.get(path):
                yield Fault("shards/sizes.json", f"says {samples} for {path}, the manifest says {rows.get(path)}")
    total = sum(rows.values())
    if manifest.get("rows", total) != total:
        yield Fault("manifest.json", f"says {manifest['rows']} rows, its shards have {total}")
    yield from _ledger("manifest.json", manifest["ledger"])
    if manifest["ledger"] and manifest["ledger"][-1]["rows_out"] != total:
        out = manifest["ledger"][-1]["rows_out"]
        yield Fault("manifest.json", f"its ledger ends with {out} rows, its shards have {total}")


def _ledger(path: str, ledger: list[dict[str, Any]]) -> Iterator[Fault]:
    for row in ledger:
        yield from _balanced(path, row)
    for before, row in zip(ledger, ledger[1:], strict=False):
        if before["rows_out"] != row["rows_in"]:
            yield Fault(
                path,
                f"{before['rows_out']} rows leave {before['stage']!r} and {row['rows_in']} enter {row['stage']!r}",
            )


def _balanced(path: str, row: Mapping[str, Any]) -> Iterator[Fault]:
    dropped = sum(row["dropped"].values())
    if row["rows_in"] != row["rows_out"] + dropped:
        yield Fault(
            path,
            f"the ledger of {row['stage']!r} does not add up: "
            f"{row['rows_in']} in, {row['rows_out']} out, {dropped} dropped",
        )


# ------------------------------------------------------------------------------------------------------- one shard


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard that the manifest lists.

    Attributes:
        number: of the shard.
        tar, table: the paths of its files.
        ranges: of the set; None: an older version made the set, and numbered the shards consecutively.
        columns: of the metadata.
        json_keys: the keys in the JSON of a sample.
    """

    number: int
    tar: str
    table: str
    ranges: Ranges | None
    columns: tuple[str, ...]
    json_keys: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Mapping[str, Any], number: int) -> _Shard:
        digits = digits_of(manifest)
        tar, table = shards.tar_path(number, digits), shards.metadata_path(number, digits)
        form = manifest.get("format")
        return cls(number, tar, table, recorded(manifest), shards.columns_of(form), shards.json_keys(form))


def _shard(folder: str, shard: _Shard, *, after: str) -> tuple[list[Fault], str]:
    """The faults of a shard, and its last key. The metadata must have the sha256 of the manifest."""
    try:
        rows = shards.read_table(os.path.join(folder, shard.table))
    except (pa.ArrowException, storage.DamagedError, OSError, ValueError) as error:
        return [Fault(shard.table, f"cannot be read: {error}")], after
    missing = [name for name in shard.columns if name not in rows.column_names]
    if missing:
        return [Fault(shard.table, f"has no column {missing[0]!r}")], after
    keys = rows["key"].to_pylist()
    faults = [*_order(shard.table, [after, *keys] if after else keys), *_range(shard, rows)]
    try:
        with storage.mapped(os.path.join(folder, shard.tar)) as data:
            faults += _samples(shard, data, rows)
    except (OSError, ValueError) as error:  # missing (reported before) or empty
        faults.append(Fault(shard.tar, f"cannot be read: {error}"))
    return faults, max([after, *keys])


def _order(path: str, keys: list[str]) -> Iterator[Fault]:
    for before, key in zip(keys, keys[1:], strict=False):
        if before == key:
            yield Fault(path, "the key comes twice", key)
        elif before > key:
            yield Fault(path, "the key is out of order", key)


def _range(shard: _Shard, rows: pa.Table) -> Iterator[Fault]:
    """Samples that belong to another shard, and samples whose row names another shard."""
    if shard.ranges is not None:
        first, end = shard.ranges.first_key(shard.number), shard.ranges.first_key(shard.number + 1)
        for key in rows["key"].to_pylist():
            if not first <= key < end:
                yield Fault(shard.table, f"the key is not in the range of shard {shard.number}", key)
    for key in rows["key"].filter(pc.not_equal(rows["shard"], shard.number)).to_pylist():
        yield Fault(shard.table, f"its row names another shard than {shard.number}", key)


def _samples(shard: _Shard, data: mmap.mmap, rows: pa.Table) -> Iterator[Fault]:
    """Compares each sample of a tar with its row. The members must follow each other without a gap."""
    path = shard.tar
    records = sample_json(rows, shard.json_keys).to_pylist()
    columns = {name: rows[name].to_pylist() for name in ("key", "text", "sha256")}
    places = [
        (rows[f"{extension}_offset"].to_pylist(), rows[f"{extension}_size"].to_pylist()) for extension in EXTENSIONS
    ]
    at = 0
    for row, key in enumerate(columns["key"]):
        wanted = (None, records[row], columns["text"][row].encode())
        for extension, (offsets, sizes), content in zip(EXTENSIONS, places, wanted, strict=True):
            offset, size = offsets[row], sizes[row]
            if offset != at + tars.BLOCK:
                yield Fault(path, f"its {extension} lies at {offset}, where {at + tars.BLOCK} would be next", key)
            at = offset + size + len(tars.padding(size))
            if at > len(data):
                yield Fault(path, f"its {extension} is cut off", key)
                return
            if data[offset - tars.BLOCK : offset] != tars.header(f"{key}.{extension}".encode(), size):
                yield Fault(path, f"the header of its {extension} is damaged", key)
            stored = data[offset : offset + size]
            if content is None:
                if hashlib.sha256(stored).hexdigest() != columns["sha256"][row]:
                    yield Fault(path, "its image has another sha256 than the metadata says", key)
            elif stored != content:
                yield Fault(path, f"its {extension} is not what the metadata says", key)
            if any(data[offset + size : at]):
                yield Fault(path, f"the padding of its {extension} is damaged", key)
    if data[at:] != bytes(2 * tars.BLOCK):
        yield Fault(path, "does not end after its last sample as a tar should")


# ------------------------------------------------------------------------------------------------------ the stages


def _stages(folder: str, published: list[dict[str, Any]] | None, note: Callable[[str], None]) -> Iterator[Fault]:
    """Checks the ledger of each stage, and the rows that pass from one stage to the next.

    A build that goes on from a published set first removes the stage publish. If it does not come to its end, the set
    is still the one before. Its stages are then compared with each other only.
    """
    stages = os.path.join(folder, "stages")
    if published is not None and storage.is_folder(stages) and not storage.exists(f"{stages}/{STAGES[-1]}/info.json"):
        note("stages: of a later build that has published nothing; the published set is the one before it")
        under_way, published = True, None
    else:
        under_way = False
    listed = {row["stage"]: row for row in published or []}
    before: tuple[int, dict[str, Any]] | None = None
    for at, stage in enumerate(STAGES):
        path = f"stages/{stage}"
        if not storage.is_folder(os.path.join(folder, path)):
            continue
        if not storage.exists(os.path.join(folder, path, "COMPLETED")):
            if not under_way:
                yield Fault(path, "COMPLETED is missing: the stage was not finished")
            continue
        info, path = _json(folder, f"{path}/info.json"), f"{path}/info.json"
        try:
            counted = {name: info[name] for name in COUNTED}
            yield from _balanced(path, counted)
        except (KeyError, TypeError, AttributeError):
            yield Fault(
                path, f"cannot be read: {info}" if isinstance(info, Exception) else "is not a stage's info.json"
            )
            continue
        if before is not None and before[0] == at - 1 and before[1]["rows_out"] != counted["rows_in"]:
            out = before[1]["rows_out"]
            yield Fault(path, f"{out} rows leave {before[1]['stage']!r} and {counted['rows_in']} enter {stage!r}")
        if stage in listed and any(listed[stage][name] != counted[name] for name in COUNTED):
            yield Fault(path, "its ledger is not that of the manifest")
        before = at, counted


def _seals_of_stages(folder: str, note: Callable[[str], None]) -> Iterator[Fault]:
    """If one info.json has a checksum, all must have one, since one version wrote them all."""
    paths = [f"stages/{stage}/info.json" for stage in STAGES]
    infos = {path: info for path in paths if isinstance(info := _json(folder, path), dict)}
    for path in infos:
        yield from _altered(folder, path)
    bare = [path for path, info in infos.items() if storage.CHECKSUM not in info]
    if len(bare) == len(infos):
        for path in bare:
            note(f"{path}: written by an older version, without a checksum of its own")
        return
    for path in bare:
        yield Fault(path, "has no checksum")

"""Names the command that repairs a damaged file, and checks all files that the stages of a run keep."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

import xxhash

from pipeline.dataset import shards
from pipeline.engine import shuffle_files, storage
from pipeline.engine.files import TEMPORARY
from pipeline.engine.storage import DamagedError
from pipeline.engine.work import FILES
from pipeline.schema import STAGES

LISTED = ("inputs.json", "robots.json", "shards.json", storage.CHECKSUMS)  # files of a run beside its stages
READ_FIRST = ("inputs.json", storage.CHECKSUMS, "recipe.yaml")  # of them: --extend reads them before all else
FROM_INPUTS = "the command that has built the set, with its --input and --redo gather"
STAGED = "stages/publish/set"  # below OUT: a set that is not yet published
IMAGES = ("status", "image_offset", "image_bytes", "stored_xxh3")
_PATH = re.compile(r"(.*) is (damaged \(.*\)|missing)", re.DOTALL)


def with_remedy(error: DamagedError) -> str:
    """The message about a damaged file, with the command that repairs it."""
    found = _PATH.fullmatch(str(error))
    if found and os.path.basename(found[1]) == READ_FIRST[0]:
        return f"{error}: run {FROM_INPUTS}"
    stage = stage_to_redo(found[1]) if found else None
    return f"{error}: run the same command again" + (f" with --redo {stage}" if stage else "")


def stage_to_redo(path: str) -> str | None:
    """The stage that writes the file again; None for a file that every run writes again.

    This is the stage in the path. Where one pass runs several stages, it is the first stage of the pass.
    """
    root, _, below = path.rpartition("/stages/")
    stage = below.split("/")[0]
    if stage not in STAGES:
        return None
    at = STAGES.index(stage)
    while at and not _kept(root, STAGES[at - 1]):
        at -= 1
    return STAGES[at]


def next_step(folder: str, paths: Iterable[str]) -> str:
    """What repairs the damaged files of a set, for `verify`. `paths` are below the folder."""
    if not any(_kept(folder, stage) for stage in STAGES):
        return "copy these files again: the stages that wrote them are not here"
    paths = list(paths)
    if {*READ_FIRST} & {*paths}:
        return FROM_INPUTS
    found = {stage_to_redo(f"{folder}/{path}") or STAGES[-1] for path in paths}
    return f"python -m pipeline.build --output {shlex.quote(folder)} --extend --redo {min(found, key=STAGES.index)}"


def _kept(root: str, stage: str) -> bool:
    """True if the rows of a stage lie on the disk."""
    try:
        info = storage.read_json(os.path.join(root, "stages", stage, "info.json"))
        if info is None or "rows" not in info:
            return info is not None
        return storage.is_folder(os.path.join(root, info["rows"]["parts"]["path"]))
    except (DamagedError, KeyError, TypeError):
        return False


def check_stages(folder: str) -> Iterator[tuple[str, str]]:
    """Yields (path below the folder, problem) for each file of the stages that is damaged or gone.

    Args:
        folder: the OUT of a run.
    """
    yield from _check(folder, [*_files(folder), *_gone(folder)])
    yield from _check_staged(folder)


def check_lists(folder: str) -> Iterator[tuple[str, str]]:
    """The same of the files of a run beside its stages."""
    yield from _check(folder, _lists(folder))


def _check(folder: str, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        below = os.path.relpath(path, folder).replace(os.sep, "/")
        if storage.is_link(path):
            yield below, "is a symbolic link"
            continue
        try:
            check_file(path)
        except DamagedError as error:
            yield below, with_remedy(error).removeprefix(path).strip()
        except OSError as error:
            yield below, f"cannot be read: {error}"


def _lists(folder: str) -> list[str]:
    return [path for name in LISTED if _is_there(path := os.path.join(folder, name))]


def _is_there(path: str) -> bool:
    """True for a file, a folder, or a link that leads nowhere."""
    return storage.exists(path) or storage.is_link(path)


def _files(folder: str) -> Iterator[str]:
    yield from _lists(folder)
    stages = os.path.join(folder, "stages")
    if storage.is_link(stages):
        yield stages
    staged = os.path.join(folder, STAGED, "")
    paths = (path for path in storage.walk(stages) if not path.startswith(staged))
    yield from (path for path in paths if not TEMPORARY.search(path))


def _check_staged(folder: str) -> Iterator[tuple[str, str]]:
    """Checks a publication that did not come to its end. The next run takes the shards of its committed units.

    Published files have no checksum within. The manifest of the unit has it. A tar that stays is only in its published
    place. All other files are written anew.
    """
    staged, units = os.path.join(folder, STAGED), os.path.join(folder, os.path.dirname(STAGED), "shards")
    if not storage.is_folder(staged):
        return
    for name in storage.names(units):
        for entry in _entries(os.path.join(units, name)) if name.endswith(".json") else ():
            path = f"{STAGED}/{entry['path']}"
            root = staged if _is_there(os.path.join(folder, path)) else folder
            try:
                is_sound = shards.entry_of(root, entry["path"], rows=entry["rows"]) == shards.FileEntry(**entry)
            except OSError:
                is_sound = False
            if not is_sound:
                full = os.path.join(folder, path)
                yield path, with_remedy(DamagedError.of(full)).removeprefix(full).strip()


def _entries(path: str) -> list[dict[str, Any]]:
    """The files of the shards of a committed unit; none if its manifest is damaged, which is a fault of its own."""
    try:
        found = storage.read_json(path) or {}
    except DamagedError:
        return []
    return [entry for shard in found.get("shards", ()) for entry in shard["files"]]


def _gone(folder: str) -> Iterator[str]:
    """The files that a completed stage wrote and that do not exist."""
    for stage in STAGES:
        at = os.path.join(folder, "stages", stage)
        if not storage.exists(os.path.join(at, "COMPLETED")):
            continue
        try:
            listed = storage.read_list(os.path.join(at, FILES))
        except DamagedError:  # `check_file` names it if it is there
            listed = [FILES]
        for name in listed:
            if not _is_there(path := os.path.join(at, name)):
                yield path
    written_by = {"inputs.json": STAGES[0], storage.CHECKSUMS: STAGES[0], "shards.json": STAGES[-1]}
    for name, stage in written_by.items():  # a copy of the published files has none of them
        done = storage.exists(os.path.join(folder, "stages", stage, "COMPLETED"))
        if done and not _is_there(path := os.path.join(folder, name)):
            yield path


def check_file(path: str) -> None:
    """Checks one file of a stage, or a file beside the stages, against its checksums.

    Raises:
        DamagedError: the file is not as it was written.
    """
    if not storage.exists(path):
        raise DamagedError(f"{path} is missing")
    if os.path.basename(path) == storage.CHECKSUMS:
        for name in (storage.read_json(path) or {})["xxh3_64"]:
            storage.check_listed(os.path.join(os.path.dirname(path), name))
    elif path.endswith(".json"):
        storage.read_json(path)
    elif os.path.basename(path) == "COMPLETED":
        if storage.size(path):
            raise DamagedError.of(path, "it should be empty")
    elif path.endswith(".raw"):
        _check_images(path)
    elif path.endswith(".pieces"):
        return  # of a fetch that was interrupted: the next run checks each piece, and fetches again what is damaged
    elif storage.read_range(path, 0, len(shuffle_files.MAGIC)) == shuffle_files.MAGIC:
        for _ in shuffle_files.read_all(path):
            continue
    else:
        storage.check(path)


def _check_images(path: str) -> None:
    """Checks the images of a raw file of the fetch against their rows."""
    rows, size = path.removesuffix(".raw") + ".arrow", 0
    if not storage.exists(rows):
        return  # the fetch of this part was interrupted: the next run starts it again
    for batch in storage.read_batches(rows, list(IMAGES)):
        columns = (batch[name].to_pylist() for name in IMAGES)
        for status, offset, length, digest in zip(*columns, strict=True):
            if status != "ok":
                continue
            if xxhash.xxh3_64_intdigest(storage.read_range(path, offset, length)) != digest:
                raise DamagedError.of(path)
            size = max(size, offset + length)
    there, fetch = storage.size(path), os.path.dirname(os.path.dirname(path))
    shared = (storage.read_json(os.path.join(fetch, "attempts.json")) or {}).get("earlier")
    if size > there or size < there and not shared:  # a row of a later fetch may have an image behind them
        raise DamagedError.of(path, f"it should end at {size} and has {there} bytes")

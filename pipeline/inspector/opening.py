"""Opens what a command is given: a published set, a run that is not published (yet), or files of another tool.

A run that has not reached publish shows the rows of its last stage that is complete and whose rows were kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.dataset.errors import NotFound

if TYPE_CHECKING:
    from pipeline.inspector.pairs import Pairs, StageRows


def exists(path: str) -> bool:
    """True if there is such a file or folder, on this machine or on a store."""
    if "://" not in path:
        return os.path.exists(path)
    from pipeline.engine import storage  # here, since most folders are of this machine: these need no storage

    return storage.exists(path)


def is_url(path: str) -> bool:
    """True for a folder of a store."""
    return "://" in path


def absolute(path: str) -> str:
    """The absolute path, or the URL without a slash at its end."""
    return path.rstrip("/") if "://" in path else os.path.abspath(path)


@contextlib.contextmanager
def store_of(folder: str) -> Iterator[None]:
    """Failures of an object store that holds the folder, as those of a missing folder. It is asked for a minute.

    Raises:
        NotFound: the store is away, refuses, or has no such bucket.
    """
    if "://" not in folder:
        yield
        return
    from pipeline.engine import remote
    from pipeline.engine.input_errors import InputError

    try:
        with remote.configured(remote.RemoteSettings(patience=60.0)):
            yield
    except (FileNotFoundError, InputError) as error:
        raise NotFound(str(error)) from error


def is_ours(folder: str) -> bool:
    """True for a published set, or the folder of a run."""
    return any(exists(os.path.join(folder, name)) for name in ("manifest.json", "stages"))


def open_pairs(folder: str) -> Pairs:
    """The pairs of a folder: those of the published set, else those of the last stage that kept its rows.

    A path without a set or a run may be what another tool has written: tars or Parquet with images.

    Raises:
        NotFound: there is nothing to show.
        Damaged: a file cannot be read.
    """
    from pipeline.dataset import open_set as sets
    from pipeline.dataset.exports import SCHEMAS
    from pipeline.inspector.pairs import Published

    if exists(os.path.join(folder, "manifest.json")):
        return Published(sets.open_set(folder))
    root = absolute(folder)
    if not exists(os.path.join(root, "stages")):
        from pipeline.inspector.foreign import open_foreign

        return open_foreign(folder)
    pairs = next(_kept(root, reversed(SCHEMAS)), None)
    if pairs is None:
        raise NotFound(f"no stage of {folder!r} is complete yet: `info` says how far the run is")
    return pairs


def open_earliest(folder: str) -> Pairs:
    """The pairs of the first stage that kept its rows, which has those that later stages dropped; else `open_pairs`."""
    from pipeline.dataset.exports import SCHEMAS

    return next(_kept(absolute(folder), iter(SCHEMAS)), None) or open_pairs(folder)


def _kept(root: str, stages: Iterator[str]) -> Iterator[StageRows]:
    """The rows of each stage that kept them."""
    from pipeline.engine.rows import Rows
    from pipeline.engine.work import StageFolder
    from pipeline.inspector.pairs import StageRows

    for stage in stages:
        info = StageFolder(root, stage).info()
        rows = Rows.from_json(root, info["rows"]) if info is not None and "rows" in info else None
        if rows is not None and rows.parts.manifests():
            yield StageRows(root, stage, rows)


def ledger_of(folder: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The ledger of a folder: info.json of its stages, else that of its manifest; and the options of the manifest.

    Raises:
        NotFound: the folder has neither.
        Damaged: a file cannot be read.
    """
    from pipeline.dataset import open_set as sets

    stages, options = sets.stages_of(folder), None
    if not stages and exists(os.path.join(folder, "manifest.json")):
        manifest = sets.read_manifest(folder)
        stages, options = manifest.get("ledger") or [], manifest.get("options")
    if not stages:
        raise NotFound(f"{folder!r} holds neither manifest.json nor stages/: is it the --output of a run?")
    return stages, options

"""Another set as a source: `--extend --input OTHER`, where OTHER is the output folder of another build.

What OTHER read of its inputs and what it fetched is copied. So the set that results is the one that a build over the
inputs of both would make with the same answers of the servers:

    OTHER/stages/gather, match   the units of its inputs, with new numbers of units and sources, and keys cut anew
    OTHER/stages/fetch           its passes, as earlier generations of the fetch
    OTHER/forgotten.parquet      joins the list of OUT

An input that both sets have is taken once. OTHER is only read.

A published set whose stages are gone, as one downloads it, is an input of its own kind: `sources.published_sets`. So is
the first set that a build names.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.engine import checks, journal, remote, storage
from pipeline.engine.cli import BelowThreshold, MissingInput, UsageError
from pipeline.engine.input_errors import InputError, TransferError, is_remote
from pipeline.engine.work import StageFolder, is_done
from pipeline.schema import STAGES
from pipeline.sources import published_sets
from pipeline.sources.base import Input
from pipeline.stages.input_list import InputList, path_of
from pipeline.stages.left_out import NAMES, Retry

TAKEN = ("gather", "match", "fetch")  # the stages whose files are taken


@dataclasses.dataclass(frozen=True)
class OtherSet:
    """A set that the user named as an input.

    Attributes:
        spec: as the user named it.
        root: its folder, absolute.
        inputs: its inputs.
    """

    spec: str
    root: str
    inputs: InputList

    def info(self, stage: str) -> dict[str, Any] | None:
        """info.json of one of its stages; None if the stage is not done."""
        return StageFolder(self.root, stage).info()

    def keeps_gathered(self) -> bool:
        """True if gather kept rows of its own; False if a pass handed them to match."""
        return has_units(self.root, "gather/parts")

    def left_out(self) -> set[str]:
        """The names of inputs that it ever went on without."""
        return {*Retry.load(self.root).names, *(self.info("gather") or {}).get(NAMES, ())}


def find(spec: str, output: str, *, known: Iterable[Input] | None) -> OtherSet | None:
    """The set that a value of --input names: its folder, or a folder of its stages.

    None: it names something else, or a published set that is read as one.

    Args:
        spec: as the user named it.
        output: the folder of the run.
        known: the inputs of the set that grows; None: a set begins.

    Raises:
        UsageError: it is the set in `output`.
        MissingInput: it is a set, but what it read is not there; or a store refuses.
        BelowThreshold: a store is away.
    """
    on_store = published_sets.may_be_on_store(spec)
    if (is_remote(spec) and not on_store) or spec.startswith(("@", "cc:", "file:")):
        return None
    path = storage.absolute(spec if on_store else os.path.expanduser(spec))
    try:
        with remote.configured(dataclasses.replace(remote.settings(), patience=checks.STORE_PATIENCE_S)):
            return _of_folder(spec, path, output, known)
    except TransferError as error:
        raise BelowThreshold(
            f"--input {spec}: {error}. Check the address and the network, or try again later"
        ) from None
    except (InputError, FileNotFoundError) as error:
        raise MissingInput(f"--input {spec}: {error}") from None


def _of_folder(spec: str, folder: str, output: str, known: Iterable[Input] | None) -> OtherSet | None:
    """`find`, for a folder."""
    root = re.sub(rf"/stages(/({'|'.join(STAGES)}))?$", "", folder)
    on_store = storage.is_url(root)
    if not (on_store or os.path.isdir(root)) or not _is_set(root):
        return None
    if _real(root) == _real(storage.absolute(output)):
        raise UsageError(f"--input {spec}: must not be the output folder itself")
    if journal.is_pending(root):
        raise MissingInput(f"--input {spec}: a change of this set was interrupted: inspect_shards info {root} ends it")
    inputs = InputList.read(root)
    if folder == root and published_sets.is_set(root) and _is_read_as_published(root, inputs, known):
        return None
    missing = "gather" if inputs is None else next((name for name in TAKEN[:2] if not is_done(root, name)), None)
    if missing is None and inputs is not None:
        return OtherSet(spec, root, inputs)
    if inputs is None:
        raise MissingInput(f"--input {spec}: is a set of an older version: build it anew, or name {root}/metadata")
    raise MissingInput(f"--input {spec}: its stage {missing} is not done: finish the build of this set first")


def _is_read_as_published(root: str, inputs: InputList | None, known: Iterable[Input] | None) -> bool:
    """True if only what a set has published counts: its stages are gone, or a set begins, or it was read so before."""
    if known is None or inputs is None or not is_done(root, TAKEN[0]):
        return True
    read = published_sets.sets_among(list(known))
    return _real(root) in map(_real, read)


def _is_set(root: str) -> bool:
    return published_sets.is_set(root) or (
        storage.is_file(os.path.join(root, "inputs.json")) and storage.is_folder(os.path.join(root, "stages"))
    )


def _real(root: str) -> str:
    return root if storage.is_url(root) else os.path.realpath(root)


def known_inputs(recorded: InputList, others: Sequence[OtherSet]) -> tuple[Input, ...]:
    """The inputs of a set and of other sets. A file that several sets have counts once."""
    known = list(recorded.units.values())
    for other in others:
        places = {place_of(item) for item in known}
        known += [item for item in other.inputs.units.values() if place_of(item) not in places]
    return tuple(known)


def place_of(item: Input) -> tuple[str, int | None]:
    """The real path or the URL of the file behind an input, and its size."""
    path = path_of(item)
    return path if is_remote(path) else os.path.realpath(path), item.bytes


def has_units(root: str, step: str) -> bool:
    """True if a step has a committed unit. `step` is below OUT/stages."""
    return any(re.fullmatch(r"\d+\.json", name) for name in storage.names(os.path.join(root, "stages", step)))

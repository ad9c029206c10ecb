"""Copies what another set read and fetched into the folder of a set (`other_sets`), as part of one change."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.journal import Change
from pipeline.engine.work import file_of
from pipeline.stages.base import STATES
from pipeline.stages.input_list import InputList, identity
from pipeline.stages.left_out import LOSSES
from pipeline.stages.other_sets import OtherSet, place_of
from pipeline.stages.row_pass import KEYS, PARTS_OF_UNIT

Columns = TypeVar("Columns", pa.Table, pa.RecordBatch)

SOURCE, NUMBER_OF_PASS = "source", "raw_attempt"  # columns that get new numbers


# ------------------------------------------------------------------------------------------------- units of select


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a unit comes from and where it goes.

    Attributes:
        root: the folder that it is read from.
        unit: its number there.
        number: its number in the new list.
        inputs: number of each of its inputs there -> in the new list.
        sources: the same of the numbers in the column `source`.
    """

    root: str
    unit: int
    number: int
    inputs: Mapping[int, int]
    sources: Mapping[int, int]


def places(
    recorded: InputList, wanted: InputList, others: Sequence[OtherSet], roots: Mapping[str, str]
) -> Iterator[Place]:
    """The units that other sets give.

    Args:
        recorded: the inputs of the set before.
        wanted: the inputs of the set after.
        others: the other sets.
        roots: for the folder of a set: the folder that is read in its place.
    """
    there = {identity(item) for item in recorded.units.values()}
    given: dict[Any, tuple[OtherSet, int]] = {}
    for other in reversed(others):
        for unit, members in other.inputs.members.items():
            given[_inputs_of(other.inputs, members)] = other, unit
    for number, members in wanted.members.items():
        found = given.get(_inputs_of(wanted, members))
        if found is None or any(identity(wanted.units[one]) in there for one in members):
            continue
        other, unit = found
        by_identity = {identity(wanted.units[one]): one for one in members}
        theirs = {one: other.inputs.units[one] for one in other.inputs.members[unit]}
        inputs = {one: by_identity[identity(item)] for one, item in theirs.items()}
        sources = {other.inputs.sources[item.name]: wanted.sources[item.name] for item in theirs.values()}
        yield Place(roots.get(other.root, other.root), unit, number, inputs, sources)


def _inputs_of(listed: InputList, numbers: Iterable[int]) -> frozenset[Any]:
    """What tells the inputs of a unit, and their places."""
    return frozenset((identity(listed.units[one]), listed.units[one].path) for one in numbers)


def gives_inputs(other: OtherSet, recorded: InputList, wanted: InputList) -> bool:
    """True if a file comes in with another set, whether its unit is copied or the file is read again."""
    before, after = (set(map(place_of, there.units.values())) for there in (recorded, wanted))
    return any(place in after - before for place in map(place_of, other.inputs.units.values()))


def copy_unit(change: Change, place: Place, fingerprints: Mapping[str, str], key_bits: int) -> None:
    """Copies what gather and match made of the inputs of one unit.

    Args:
        change: of the folder.
        place: of the unit.
        fingerprints: step below OUT/stages -> that of its units.
        key_bits: keys are cut into 2 ** key_bits buckets.
    """
    for step, fingerprint in fingerprints.items():
        if step.endswith(f"/{STATES}"):
            _copy_states(change, place, step, fingerprint)
            continue
        manifest = storage.read_json(_file(place.root, step, place.unit, "json"))
        if manifest is None:
            continue
        if LOSSES in manifest:
            losses = {str(place.inputs[int(one)]): ledger for one, ledger in manifest[LOSSES].items()}
            manifest = {**manifest, LOSSES: losses}
        for part in range(manifest.get("parts", 0)):
            source, target = (
                _file(place.root, step, place.unit, "arrow", part),
                change.place(file_of(step, place.number, "arrow", part)),
            )
            _copy_batches(source, target, place.sources)
            keys = _file(place.root, step, place.unit, "keys", part)
            if storage.exists(keys):
                number = place.number * PARTS_OF_UNIT + part
                write_keys(change.place(file_of(step, place.number, "keys", part)), keys, key_bits, number=number)
        if manifest.get("rejected"):
            table = storage.read_table(_file(place.root, step, place.unit, "rejected"))
            storage.write_table(change.place(file_of(step, place.number, "rejected")), table)
        if step.endswith("/images"):
            table = storage.read_table(_file(place.root, step, place.unit, "images"))
            table = _with_column(table, SOURCE, _renumbered(table[SOURCE], place.sources))
            storage.write_table(change.place(file_of(step, place.number, "images")), table)
        storage.write_json(change.place(file_of(step, place.number, "json")), {**manifest, "fingerprint": fingerprint})


def _copy_states(change: Change, place: Place, step: str, fingerprint: str) -> None:
    """Copies what servers said of the inputs of a unit."""
    for there, here in place.inputs.items():
        manifest = storage.read_json(_file(place.root, step, there, "json"))
        if manifest is not None:
            storage.write_json(change.place(file_of(step, here, "json")), {**manifest, "fingerprint": fingerprint})


def write_keys(target: str, path: str, bits: int, *, number: int | None = None) -> None:
    """Writes the keys of a part again, cut into 2 ** bits buckets.

    `number`: the new number of the part; None: as it is.
    """
    messages = [message for _, message in shuffle_files.read_all(path)]
    table = shuffle_files.table(messages, KEYS).sort_by("row")
    if number is not None:
        table = _with_column(table, "part", np.full(table.num_rows, number))
    batch = hashing.as_batch(table)
    bucket = hashing.buckets(batch["image"].to_numpy(), bits)
    shuffle_files.write(target, shuffle_files.cut(batch, bucket, 1 << bits))


def _copy_batches(source: str, target: str, sources: Mapping[int, int]) -> None:
    """Copies rows. The column `source` gets other numbers."""
    batches = storage.read_batches(source)
    first = next(iter(batches))
    with storage.writing_batches(target, first.schema) as out:
        for batch in [first, *batches]:
            out.write_batch(_with_column(batch, SOURCE, _renumbered(batch[SOURCE], sources)))


def _renumbered(numbers: pa.Array | pa.ChunkedArray, sources: Mapping[int, int]) -> np.ndarray:
    """The numbers that `sources` gives for others."""
    there, place = np.unique(numbers.to_numpy(), return_inverse=True)
    return np.array([sources[number] for number in there.tolist()], np.int32)[place]


def _with_column(rows: Columns, name: str, values: np.ndarray) -> Columns:
    at = rows.schema.get_field_index(name)
    field = rows.schema.field(at)
    return rows.set_column(at, field, pa.array(values, field.type))


def _file(root: str, step: str, unit: int, kind: str, part: int | None = None) -> str:
    return os.path.join(root, file_of(step, unit, kind, part))


# ------------------------------------------------------------------------------------------------------- the fetch


def copy_fetch(change: Change, root: str, *, first: int) -> tuple[int, list[dict[str, Any]]]:
    """Copies the passes of the fetch of a set. Only units that were committed count.

    Args:
        change: of the folder.
        root: of the other set.
        first: the number that its first pass gets.

    Returns:
        The number behind that of the last pass, and the generations as attempts.json holds them.
    """
    folder = os.path.join(root, "stages", "fetch")
    record = storage.read_json(os.path.join(folder, "attempts.json")) or {}
    generations = [*record.get("earlier", ()), *([record["now"]] if record.get("now") else [])]
    after = first
    for name in storage.names(folder):
        found = re.fullmatch(r"images-(\d+)", name)
        if found is None:
            continue
        number = first + int(found[1])
        after = max(after, number + 1)
        for file in storage.names(os.path.join(folder, name)):
            if re.fullmatch(r"\d+\.json", file):
                _copy_pass_unit(change, os.path.join(folder, name), int(file.removesuffix(".json")), number, first)
    return after, [{**generation, "first": first + generation["first"]} for generation in generations]


def _copy_pass_unit(change: Change, folder: str, unit: int, number: int, first: int) -> None:
    """Copies the rows and images of one unit of a pass."""
    manifest = storage.read_json(os.path.join(folder, f"{unit:05d}.json"))
    if manifest is None:
        return
    step = f"fetch/images-{number:03d}"
    for part in range(manifest.get("parts", 0)):
        batches = list(storage.read_batches(os.path.join(folder, f"{unit:05d}-{part:03d}.arrow")))
        with storage.writing_batches(change.place(file_of(step, unit, "arrow", part)), batches[0].schema) as out:
            for batch in batches:
                out.write_batch(_with_column(batch, NUMBER_OF_PASS, batch[NUMBER_OF_PASS].to_numpy() + first))
        raw = os.path.join(folder, f"{unit:05d}-{part:03d}.raw")
        if storage.exists(raw):
            storage.copy(raw, change.place(file_of(step, unit, "raw", part)))
    storage.write_json(change.place(file_of(step, unit, "json")), manifest)

"""The sample behind `--plan`: pieces of the inputs, read, cleaned and matched by the tasks of the run itself.

The pieces and what is made of them lie in a folder of their own, never in OUT. A small input is read as a whole. Of a
large one, pieces are taken in a random order that depends on nothing but the list of inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import files, hashing, jit, shuffle_files, storage
from pipeline.engine.input_errors import InputError, is_remote
from pipeline.engine.work import run_unit
from pipeline.planning.pictures import Pictures
from pipeline.sources import READERS
from pipeline.sources.base import Input, ReadSettings, file_name
from pipeline.sources.pieces import Piece
from pipeline.stages.base import Stage
from pipeline.stages.input_list import InputList
from pipeline.stages.row_pass import KEYS, RowPass, RowStage
from pipeline.stages.run import KERNEL_ROWS, KERNELS, Run, Sizes

WHOLE_BYTES = 12 << 20  # inputs with no more bytes than this in all are read as a whole
SHARE = 0.001  # of the inputs, that is read at least, as long as the time allows
ENOUGH_ROWS, ENOUGH_SECONDS = 150_000, 5.0  # a sample goes on until it has so many rows or took so long
ROUND = 8  # pieces that are cut at a time
LEAST_SECONDS = 3.0  # of reading, however long the preparations took
MOST_FAILURES = 24  # pieces in a row that cannot be read
FOOTER_SECONDS = 2.0  # for the footers of tables that are not in the sample
BLOCK_ROWS = 256  # rows that lie together count as one draw of the sample


@dataclasses.dataclass
class Stratum:
    """The inputs of one format whose pieces have one unit.

    Attributes:
        format: of the inputs.
        items: the inputs.
        total: how much there is, in the unit of the pieces: "bytes", or "rows" of tables that tell their number.
        taken: how much of it the pieces cover.
        is_whole: all of it was read.
    """

    format: str
    items: list[Input]
    total: float = 0.0
    taken: float = 0.0
    is_whole: bool = False

    @property
    def factor(self) -> float:
        """What one row of the sample stands for."""
        return self.total / self.taken if self.taken else 0.0


@dataclasses.dataclass(frozen=True)
class Unit:
    """What came of one piece.

    Attributes:
        stratum: its number.
        amount: of the stratum that it covers.
        gathered, matched: the ledgers of gather and match.
        cpu_seconds: that reading and matching took.
        disk_bytes: of its matched rows and their keys.
        images: the hashes of the URLs of the images inside of the piece: (images,).
        image_bytes: of these images.
    """

    stratum: int
    amount: float
    gathered: dict[str, Any]
    matched: dict[str, Any]
    cpu_seconds: float
    disk_bytes: int
    images: np.ndarray
    image_bytes: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """The sample.

    Attributes:
        strata: the inputs.
        units: what came of each piece, by number.
        keys: of the matched rows (`row_pass.KEYS`), by part and row.
        query_ids: of the matched rows.
        url: of the matched rows.
        unit: of each matched row: (rows,).
        block: of each matched row: rows of one block lie together: (rows,).
        tables: folder of the compiled query lists.
        failures: pieces that could not be read.
        failure: what the first of them said; "": there was none.
        heads: inputs that can only be read from their start.
        seconds: that the sample took.
        fixed_cpu: CPU seconds for the query lists and the kernels.
        pictures: images of the archives that were decoded.
    """

    strata: list[Stratum]
    units: list[Unit]
    keys: pa.Table
    query_ids: pa.ListArray
    url: pa.Array
    unit: np.ndarray
    block: np.ndarray
    tables: str
    failures: int
    failure: str
    heads: int
    seconds: float
    fixed_cpu: float
    pictures: Pictures

    @property
    def is_whole(self) -> bool:
        """All inputs were read."""
        return all(stratum.is_whole for stratum in self.strata)


def draw(run: Run, plan: Callable[[Run], list[Stage]], folder: str, *, seconds: float, pictures: Pictures) -> Sample:
    """Reads a sample of the inputs of a run.

    Args:
        run: with its inputs looked up.
        plan: makes the stages of a run.
        folder: empty, for the pieces.
        seconds: the sample ends after so long, about.
        pictures: looks at images of the archives.
    """
    with files.unflushed(), contextlib.closing(pictures):
        return _Drawing(run, plan, folder, seconds, pictures).sample()


class _Drawing:
    """A sample that grows piece by piece."""

    def __init__(
        self, run: Run, plan: Callable[[Run], list[Stage]], folder: str, seconds: float, pictures: Pictures
    ) -> None:
        self._start, self._cpu, self._seconds = time.monotonic(), time.process_time(), seconds
        self._folder = folder
        self._strata = strata_of(run.inputs)
        self._whole = sum(READERS[item.format].size(item) for item in _files(run.inputs)) <= WHOLE_BYTES
        self._settings: ReadSettings | None = None
        how: dict[str, Any] = {"output": folder, "skip_bad_inputs": True, "runner": "local"}
        options = dataclasses.replace(run.options, **how)  # type: ignore[type-var]
        self._run = dataclasses.replace(run, options=options, root=os.path.join(folder, "run"), recorded=None)
        self._inputs: list[Input] = []
        self._pieces: list[tuple[int, float]] = []  # stratum and amount of each unit
        self._rows = self._failures = self._in_a_row = self._heads = 0
        self._failure = ""
        self._empty = [0.0] * len(self._strata)  # of each stratum: what slots cover in which nothing begins
        self._learned: dict[str, float] = {}  # path of an input -> how much there is, of those that were opened
        self._plan, self._pictures = plan, pictures

    def sample(self) -> Sample:
        """Draws pieces until there are enough of them, or the time is over."""
        _load_kernels(self._run)
        stages = self._plan(self._with_inputs(()))
        first, second = stages[:2]
        assert isinstance(first, RowStage) and isinstance(second, RowStage)
        row_pass = RowPass((first, second))
        second.begin(self._run)
        for task in row_pass.preparations():
            for unit in range(task.units()):
                run_unit(task.folder, unit, task.run)
        fixed = time.process_time() - self._cpu
        self._seconds = max(self._seconds, time.monotonic() - self._start + LEAST_SECONDS)
        self._settings = first.source().settings  # type: ignore[attr-defined]
        task, units = row_pass.task(), []
        for made in self._rounds():
            known = len(self._inputs)
            self._inputs += [item for item, _, _ in made]
            self._pieces += [(stratum, amount) for _, stratum, amount in made]
            listed = self._with_inputs(self._inputs)
            dataclasses.replace(first, inputs=listed.input_list).settle(listed)  # type: ignore[call-arg]
            for unit in range(known, len(self._inputs)):
                manifest = run_unit(task.folder, unit, task.run)
                units.append(self._unit(unit, manifest, first, second))
                self._note_failure(manifest, self._inputs[unit].name)
                if self._is_piece(unit):
                    storage.remove(self._inputs[unit].path)
                if self._is_over():
                    break
        del units[len(self._pieces) :]
        self._settle_totals(units)
        return self._sample(units, second, fixed)

    def _with_inputs(self, inputs: Sequence[Input]) -> Run:
        """The run over the pieces."""
        rows = sum(READERS[item.format].expected_rows(item) for item in inputs)
        listed = dataclasses.replace(InputList.new(inputs, key_bits=4, specs=(), drops=()), shared={})  # a unit a piece
        return dataclasses.replace(self._run, inputs=tuple(inputs), input_list=listed, sizes=Sizes.of(rows))

    # ---- pieces

    def _rounds(self) -> Iterator[list[tuple[Input, int, float]]]:
        """Yields rounds of (input to read, stratum, amount)."""
        if self._whole:
            yield from self._whole_inputs()
            return
        orders = [_order(stratum.items) for stratum in self._strata]
        left = set(range(len(self._strata)))
        seen: set[tuple[str, tuple[int, int] | None, int]] = set()
        with ThreadPoolExecutor(ROUND) as pool:
            while left and not self._is_over() and not self._is_enough():
                number = min(left, key=lambda place: self._share(place))
                wanted = list(itertools.islice(orders[number], ROUND))
                if len(wanted) < ROUND:
                    left.discard(number)
                pieces = list(pool.map(self._cut, wanted, itertools.count(len(seen))))
                made = []
                for (item, _), (path, piece) in zip(wanted, pieces, strict=True):
                    if isinstance(piece, Exception):
                        self._failed(piece)
                        continue
                    key = (item.path, item.part, piece.slot)
                    if key in seen or not piece.amount:
                        continue
                    seen.add(key)
                    self._in_a_row = 0
                    self._heads += piece.is_head
                    self._learned[item.path] = piece.total
                    self._strata[number].taken += piece.amount
                    if path is not None and not os.path.exists(path):
                        self._empty[number] += piece.amount  # nothing begins in the slot
                        continue
                    source = item if path is None else Input(item.name, path, item.format, os.path.getsize(path))
                    made.append((source, number, piece.amount))
                if made:
                    yield made

    def _whole_inputs(self) -> Iterator[list[tuple[Input, int, float]]]:
        """All inputs, in rounds that grow: the list of inputs is written for each round."""
        pairs = [(item, number) for number, stratum in enumerate(self._strata) for item in stratum.items]
        order, size = np.random.default_rng(0).permutation(len(pairs)).tolist(), ROUND
        while order and not self._is_over():
            some, order, size = order[:size], order[size:], 2 * size
            yield [(item, number, _amount(item)) for item, number in (pairs[place] for place in some)]

    def _share(self, number: int) -> float:
        stratum = self._strata[number]
        total = sum(READERS[item.format].size(item) for item in stratum.items)
        return stratum.taken / max(1.0, total)

    def _cut(self, wanted: tuple[Input, int], number: int) -> tuple[str | None, Piece | Exception]:
        item, slot = wanted
        reader = READERS[item.format]
        assert self._settings is not None
        if slot < 0:
            return None, Piece(_amount(item), _amount(item))
        path = os.path.join(self._folder, f"{number:06d}-{file_name(item.path)[-100:]}")
        try:
            return path, reader.cut(item, slot, reader.piece_bytes, path, self._settings)
        except (InputError, OSError, pa.ArrowException, ValueError) as error:
            return path, error

    def _failed(self, error: Exception | str) -> None:
        self._failures, self._in_a_row = self._failures + 1, self._in_a_row + 1
        self._failure = self._failure or " ".join(str(error).split())

    def _note_failure(self, manifest: dict[str, Any], name: str) -> None:
        """A piece whose records are all lost."""
        ledger = manifest["ledgers"]["gather"]
        lost = ledger.get("records_dropped") or {}
        if lost and sum(lost.values()) >= ledger["records_in"] > 0:
            self._failed(f"no record of {name!r} can be read ({', '.join(sorted(lost))})")

    def _is_piece(self, unit: int) -> bool:
        return self._inputs[unit].path.startswith(os.path.join(self._folder, ""))

    def _is_over(self) -> bool:
        return time.monotonic() - self._start > self._seconds or self._in_a_row >= MOST_FAILURES

    def _is_enough(self) -> bool:
        if min(self._share(number) for number in range(len(self._strata))) < SHARE:
            return False
        return self._rows >= ENOUGH_ROWS or time.monotonic() - self._start > ENOUGH_SECONDS

    # ---- what comes of them

    def _unit(self, unit: int, manifest: dict[str, Any], first: RowStage, second: RowStage) -> Unit:
        stratum, amount = self._pieces[unit]
        ledgers, folder = manifest["ledgers"], second.parts().folder
        self._rows += ledgers["gather"]["rows_out"]
        paths = [folder.file(unit, kind, part) for part in range(manifest["parts"]) for kind in ("arrow", "keys")]
        images, image_bytes = np.zeros(0, np.uint64), 0
        listed = first.images.file(unit, "images")  # type: ignore[attr-defined]
        if storage.exists(listed):
            table = storage.read_table(listed)
            images = hashing.hash_strings(hashing.as_array(table["url"]))[:, 0]
            image_bytes = pc.sum(table["length"]).as_py() or 0
            if self._pictures.are_wanted:
                self._look_at(unit, table, [path for path in paths if path.endswith(".arrow")])
        disk = sum(os.path.getsize(path) for path in paths)
        return Unit(
            stratum, amount, ledgers["gather"], ledgers["match"], manifest["cpu_seconds"], disk, images, image_bytes
        )

    def _look_at(self, unit: int, images: pa.Table, parts: list[str]) -> None:
        """Decodes some of the images that matched rows of the unit ask for."""
        urls = [batch["url"] for path in parts for batch in storage.read_batches(path, ["url"])]
        if urls:
            wanted = images.filter(pc.is_in(images["url"], value_set=pa.concat_arrays(urls)))
            item = self._inputs[unit]
            self._pictures.look(READERS[item.format], item.path, wanted["offset"])

    def _settle_totals(self, units: Sequence[Unit]) -> None:
        """Fills in how much there is, and how much was read."""
        for number, stratum in enumerate(self._strata):
            stratum.taken = self._empty[number] + sum(unit.amount for unit in units if unit.stratum == number)
            stratum.total = _total(stratum, self._learned)
            count = sum(1 for unit in units if unit.stratum == number)
            is_all = self._whole and count == len(stratum.items)
            stratum.is_whole = is_all or stratum.taken >= stratum.total * 0.999999
            stratum.total = max(stratum.total, stratum.taken)

    def _sample(self, units: list[Unit], second: RowStage, fixed: float) -> Sample:
        folder = second.parts().folder
        keys, lists, urls, numbers = [], [], [], []
        for unit, manifest in folder.manifests():
            for part in range(manifest["parts"]):
                messages = [message for _, message in shuffle_files.read_all(folder.file(unit, "keys", part))]
                keys.append(shuffle_files.table(messages, KEYS).sort_by("row"))
                columns = list(storage.read_batches(folder.file(unit, "arrow", part), ["url", "query_ids"]))
                lists += [batch["query_ids"] for batch in columns]
                urls += [batch["url"] for batch in columns]
                numbers.append(np.full(keys[-1].num_rows, unit))
        table = pa.concat_tables(keys) if keys else KEYS.empty_table()
        unit_of_row = np.concatenate(numbers) if numbers else np.zeros(0, np.int64)
        row = table["row"].to_numpy().astype(np.int64)
        return Sample(
            self._strata,
            units,
            table.combine_chunks(),
            pa.concat_arrays(lists) if lists else pa.array([], pa.list_(pa.int32())),
            pa.concat_arrays(urls) if urls else pa.array([], pa.string()),
            unit_of_row,
            unit_of_row << 32 | row // BLOCK_ROWS,
            second.tables,  # type: ignore[attr-defined]
            self._failures,
            self._failure,
            self._heads,
            time.monotonic() - self._start,
            fixed,
            self._pictures,
        )


def strata_of(inputs: Sequence[Input]) -> list[Stratum]:
    """The inputs by format, and by whether their files tell the number of their rows."""
    found: dict[tuple[str, str], list[Input]] = {}
    for item in inputs:
        found.setdefault((item.format, READERS[item.format].unit(item)), []).append(item)
    return [Stratum(form, items) for (form, _), items in found.items()]


def _files(inputs: Sequence[Input]) -> list[Input]:
    """The parts of a file count once."""
    return list({item.path: item for item in inputs}.values())


def _shuffled(items: Sequence[Input]) -> list[Input]:
    return [items[place] for place in np.random.default_rng(0).permutation(len(items)).tolist()]


def _order(items: Sequence[Input]) -> Iterator[tuple[Input, int]]:
    """(input, slot) in a random order. An input of few pieces, or without pieces, is one piece as a whole: slot -1."""
    counts = []
    for item in items:
        reader = READERS[item.format]
        slots = reader.slots(item, reader.piece_bytes)
        counts.append(slots if slots > 2 or item.bytes is None or is_remote(item.path) else 0)
    ends = np.cumsum(np.maximum(counts, 1))
    rng = np.random.default_rng(0)
    few = ends[-1] <= 1 << 20
    order = rng.permutation(ends[-1]) if few else rng.integers(0, ends[-1], 1 << 20)
    for place in order.tolist():
        number = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[number - 1]) if number else 0
        yield items[number], place - first if counts[number] else -1


def _amount(item: Input) -> float:
    """How much there is of an input; if it does not tell, about."""
    reader = READERS[item.format]
    try:
        return reader.amount(item) or reader.size(item)
    except (InputError, OSError):
        return reader.size(item)


def _total(stratum: Stratum, learned: Mapping[str, float]) -> float:
    """How much there is in a stratum. What is not known is taken to be like the rest."""
    end = time.monotonic() + FOOTER_SECONDS
    known: list[tuple[float, int]] = []
    unknown: list[int] = []
    for item in _shuffled(stratum.items):
        reader = READERS[item.format]
        try:
            amount = reader.amount(item) if time.monotonic() < end else None
        except (InputError, OSError):
            amount = None
        if amount is None and item.part is None:
            amount = learned.get(item.path)
        if amount is None:
            unknown.append(reader.size(item))
        else:
            known.append((amount, reader.size(item)))
    told = sum(amount for amount, _ in known)
    if not unknown:
        return told
    ratio = told / max(1, sum(size for _, size in known)) if known else 1.0
    return told + ratio * sum(unknown)


def _load_kernels(run: Run) -> None:
    """Loads the compiled modules that the workers of the run load, so that the sample does not pay for it."""
    names = list(KERNELS) if run.expected_rows > KERNEL_ROWS else []
    sizes = Counter[str]()
    for item in _files(run.inputs):
        sizes[item.format] += READERS[item.format].size(item)
    for form, size in sizes.items():
        names += READERS[form].kernels if size > WHOLE_BYTES else ()
    for name in names if jit.available() else ():
        if jit.is_compiled(name):
            importlib.import_module(name).warm()

"""The attempts of the fetch. The first attempt fetches all rows. Each later attempt fetches the rows that had failed.

An attempt has a first pass and some rounds. Each round asks again for the rows that failed in a way that may pass.

When an earlier stage is done again, the fetch begins a new *generation*. Its first pass takes the outcomes that earlier
generations have for its rows, and fetches the other rows only. So an image crosses the network once, whatever becomes
of the selection. OUT/stages/fetch/attempts.json records the generations.

`fetch` writes the attempts. `dedup-images` reads the newest outcome of each row. `publish` reads the images.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.work import StageFolder, StepFolder
from pipeline.fetching.errors import NOT_TRIED
from pipeline.fetching.outcome import FIELDS
from pipeline.schema import FETCHED, RETRY_AT
from pipeline.stages.row_pass import RAW, ROW_HASH
from pipeline.text import rights

FETCHED_PART = pa.schema([*FETCHED, RETRY_AT, *RAW, ROW_HASH])
ROUND_PAUSES_S = (2.0, 8.0, 30.0)  # seconds between the end of the pass before and the round
PASSES = 1 + len(ROUND_PAUSES_S)  # of an attempt
ROWS_PER_BUCKET = 2_500  # selected rows a bucket of hosts, at most about
MAX_BUCKETS = 4096
KEY = pa.field("key", pa.string(), False)
OUTCOMES = pa.schema([KEY, *FIELDS, *RAW])  # what is known of an image, and where its JPEG lies


@dataclasses.dataclass(frozen=True)
class Generation:
    """The passes that fetched one selection.

    Attributes:
        first: number of its first pass.
        hosts: the number of buckets of hosts, a power of two.
        form: digest of what decides the stored images. Outcomes of another form are not taken.
        options: digest of all options of the fetch. Failures under other options are not taken. "": several options.
    """

    first: int
    hosts: int
    form: str
    options: str


@dataclasses.dataclass(frozen=True)
class Attempts:
    """The attempts of one fetch.

    Attributes:
        folder: of the stage fetch.
        selected: the folder of the stage balance, whose rows are fetched.
    """

    folder: StageFolder
    selected: StageFolder

    @property
    def hosts(self) -> int:
        """The number of buckets of hosts. It is known when balance is done.

        It is a power of two. So the hosts of a bucket lie in few buckets of another generation.
        """
        return shuffle_files.power_of_two(self.selected.done()["rows_out"] / ROWS_PER_BUCKET, max_count=MAX_BUCKETS)

    def images(self, number: int) -> StepFolder:
        """The folder of a pass: `first()` the first pass of the first attempt, then its rounds, then later attempts."""
        return self.folder.step(f"images-{number:03d}", more=str(number))

    def first(self) -> int:
        """The number of the first pass of this generation."""
        return self._record().get("first", 0)

    def count(self) -> int:
        """The number of attempts of this generation so far. An attempt that is under way counts."""
        return self._record().get("retries", 0) + 1

    def passes(self) -> range:
        """The numbers of the passes of all attempts of this generation."""
        return range(self.first(), self.first() + PASSES * self.count())

    def ask_for_another(self) -> None:
        """Adds one attempt to the stage. The number is on disk, so an interrupted run keeps it."""
        self._write({**self._record(), "retries": self.count()})
        storage.remove(os.path.join(self.folder.path, "COMPLETED"))

    def begin(self, form: str, options: str) -> None:
        """Records how this generation fetches. It may go on with other options, but not with another form of images."""
        if self._record().get("now", {"form": form})["form"] != form:
            self.begin_anew()
        record = self._record()
        before = record.get("now")
        options = options if before is None or before["options"] == options else ""
        found = Generation(self.first(), self.hosts, form, options)
        self._write({**record, "now": dataclasses.asdict(found)})

    def begin_anew(self) -> None:
        """Ends this generation: the next run begins a new one, which takes the outcomes of all earlier ones."""
        storage.remove(os.path.join(self.folder.path, "COMPLETED"))
        record = self._record()
        if record.get("now") is not None:
            for number in self.passes():
                _commit(self.images(number))
            earlier = [*record.get("earlier", ()), record["now"]]
            self._write({"first": self.passes().stop, "earlier": earlier})
        for name in storage.names(self.folder.path):
            if not re.fullmatch(r"images-\d+|attempts\.json", name):
                storage.remove(os.path.join(self.folder.path, name))

    def earlier(self) -> list[Generation]:
        """The generations before this one, the newest first. Its outcomes fit this one's form."""
        record = self._record()
        form = record["now"]["form"] if "now" in record else ""
        found = [Generation(**values) for values in record.get("earlier", ())]
        return [generation for generation in reversed(found) if generation.form == form]

    def earlier_passes(self) -> list[StepFolder]:
        """The folders of the passes of all earlier generations."""
        found = (re.fullmatch(r"images-(\d+)", name) for name in storage.names(self.folder.path))
        return [self.images(int(name[1])) for name in found if name and int(name[1]) < self.first()]

    def rows(self, unit: int) -> Iterator[tuple[int, int, pa.Table]]:
        """(pass, part, rows) of a unit: the newest outcome of each row."""
        return fetched_rows(self, unit, before=self.passes().stop)

    def outcomes(self, unit: int) -> pa.Table:
        """OUTCOMES of earlier generations for the hosts of a unit: the newest one of each image."""
        record = self._record()
        now, last = Generation(**record["now"]), self.first()
        found, seen = [OUTCOMES.empty_table()], set[str]()
        for generation in self.earlier():
            shared = min(now.hosts, generation.hosts)  # a host of this unit is in a unit that is equal modulo this
            for number in range(last - 1, generation.first - 1, -1):
                for path in _parts(self.images(number), unit % shared, shared):
                    table = _outcomes(path, failures=generation.options == now.options != "")
                    keys = table["key"].to_pylist()
                    new = [row for row, key in enumerate(keys) if key not in seen]
                    seen.update(keys)
                    found.append(table.take(pa.array(new, pa.int64())))
            last = generation.first
        return pa.concat_tables(found).combine_chunks()

    def _record(self) -> dict[str, Any]:
        return storage.read_json(os.path.join(self.folder.path, "attempts.json")) or {}

    def _write(self, record: dict[str, Any]) -> None:
        storage.write_json(os.path.join(self.folder.path, "attempts.json"), record)


def fetched_rows(attempts: Attempts, unit: int, *, before: int) -> Iterator[tuple[int, int, pa.Table]]:
    """(pass, part, rows) of a unit: the newest outcome of each row. Only passes below `before` are read.

    A later pass for which nothing was sent is no outcome: the row keeps the one before.
    """
    seen: np.ndarray = np.zeros(0, "S16")
    for number in range(before - 1, attempts.first() - 1, -1):
        folder = attempts.images(number)
        manifest = folder.manifest(unit)
        found = []
        for part in range(manifest["parts"] if manifest else 0):
            table = pa.Table.from_batches(storage.read_batches(folder.file(unit, "arrow", part)), FETCHED_PART)
            if number > attempts.first():
                table = table.filter(pc.invert(pc.starts_with(table["error"].fill_null(""), NOT_TRIED)))
            words = np.stack(hashing.uid_words(table["uid"]), axis=1).astype(">u8").view("V16").ravel()
            keep = ~np.isin(words, seen) if len(seen) else np.ones(len(words), np.bool_)
            found.append(words)
            yield number, part, table.filter(pa.array(keep))
        if found:
            seen = np.concatenate([seen.astype("V16"), *found]) if len(seen) else np.concatenate(found)


def keys_of_images(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """What decides the outcome of a row: its URL, and the licence that its page names for its images."""
    names_licence = pc.match_substring_regex(rows["opt_out"], rf"(^|,){rights.RSL}(,|$)").fill_null(False)
    page = pc.binary_join_element_wise("\n", rows["page_url"], pc.fill_null(rows["license"], ""), "\n")
    more = pc.if_else(pc.and_(names_licence, rows["license"].is_valid()), page, "")
    return hashing.as_array(pc.binary_join_element_wise(rows["url"], more, ""))


def _outcomes(path: str, *, failures: bool) -> pa.Table:
    """OUTCOMES of one part of an earlier generation. `failures`: they count, too."""
    table = pa.Table.from_batches(storage.read_batches(path), FETCHED_PART)
    wanted = pc.equal(table["status"], "ok")
    if failures:
        wanted = pc.or_(wanted, pc.invert(pc.starts_with(table["error"].fill_null(""), NOT_TRIED)))
    table = table.filter(wanted)
    columns = [table[name] for name in OUTCOMES.names[1:]]
    return pa.table([keys_of_images(table), *columns], schema=OUTCOMES)


def _parts(folder: StepFolder, unit_modulo: int, modulo: int) -> Iterator[str]:
    """The parts of the units of a pass that are equal to a number by a modulo, whatever the pass's fingerprint."""
    for name in storage.names(folder.path):
        unit = re.fullmatch(r"(\d+)\.json", name)
        if unit and int(unit[1]) % modulo == unit_modulo:
            manifest = storage.read_json(os.path.join(folder.path, name)) or {"parts": 0}
            for part in range(manifest["parts"]):
                yield folder.file(int(unit[1]), "arrow", part)


def _commit(folder: StepFolder) -> None:
    """Commits the finished parts of the units of a pass that were interrupted. The pieces of other parts stay."""
    parts: dict[int, set[int]] = {}
    for name in storage.names(folder.path):
        found = re.match(r"(\d+)(?:-(\d+))?\.(\w+)", name)
        if found is not None and found[3] in ("live", "sites"):  # of the run that was interrupted
            storage.remove(os.path.join(folder.path, name))
            continue
        if found is None or storage.exists(folder.file(int(found[1]), "json")):
            continue
        unit, part = int(found[1]), int(found[2] or 0)
        if found[3] == "arrow" and storage.is_sound(os.path.join(folder.path, name)):
            parts.setdefault(unit, set()).add(part)
    for unit, sound in parts.items():
        whole = next(number for number in range(len(sound) + 1) if number not in sound)
        status: Counter[str] = Counter()
        for part in range(whole):
            for batch in storage.read_batches(folder.file(unit, "arrow", part), ["status"]):
                status.update(batch["status"].to_pylist())
        folder.write_manifest(unit, {"parts": whole, "status": status, "rows": status.total(), "ended": 0.0})

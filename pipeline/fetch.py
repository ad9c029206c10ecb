"""fetch: SELECTED -> FETCHED. The images, by img2dataset's Downloader, or out of the archive where they lie in it.

    balance's parts --by host--> DownloadHosts: 00007-000.arrow (a row a pair, failures too) and .raw (the JPEGs)

A unit owns whole hosts, so that what a host is asked at once is bounded over the whole job. What the network returned
is frozen here; everything after this stage is a pure function of it. A later pass (`--retry-failed`) fetches only what
failed in a way that may pass, and its rows replace the older ones.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import buckets, files, hashing
from pipeline.fetching.downloader import FetchOptions, fetch_rows
from pipeline.fetching.errors import Failure
from pipeline.opening import InputError
from pipeline.passes import ROW_HASH, Rejects, Tally, write_rejected
from pipeline.schema import FETCHED, SELECTED
from pipeline.steps import ExchangeStep, Reading, Step
from pipeline.work import StepFolder, Work, digest_of, stage_info

ROWS_PER_CALL = 5_000  # what is lost, and fetched again, when a machine dies
SELECTED_PART = pa.schema([*SELECTED, ROW_HASH])
FETCHED_PART = pa.schema([*FETCHED, ROW_HASH])
OUTCOME = ("status", "image_sha256", "width", "height", "original_width", "original_height", "phash")


@dataclasses.dataclass(frozen=True)
class Fetching:
    """The stage's plan.

    Attributes:
        work: the run's folder.
        selected: balance's rows, a Parquet file a unit.
        gathered: the folder whose units list the images that lie in the archives (`.images`).
        inputs: path of the list of inputs.
        hosts: buckets of hosts.
        options: how to fetch.
        keep_rejected: sample, all or none.
    """

    work: Work
    selected: StepFolder
    gathered: StepFolder
    inputs: str
    hosts: int
    options: FetchOptions
    keep_rejected: str

    def images(self, number: int) -> StepFolder:
        """The folder of a pass over the hosts: 0 the first, 1.. the retries."""
        folder = self.work.step("fetch", f"images-{number:03d}")
        return dataclasses.replace(folder, plan=digest_of(folder.plan, number))

    def rows(self, unit: int) -> Iterator[tuple[int, int, pa.Table]]:
        """(pass, part, rows) of a unit, the last word on each row."""
        return fetched_rows(self, unit, before=self.passes())

    def passes(self) -> int:
        """How many passes were asked for so far, one that is under way included."""
        return (files.read_json(os.path.join(self.work.stage("fetch"), "passes.json")) or 0) + 1


@dataclasses.dataclass(frozen=True)
class ByHost:
    """One unit a part of balance: its rows, cut by host."""

    plan: Fetching

    @property
    def folder(self) -> StepFolder:
        return self.plan.work.step("fetch", "hosts")

    def units(self) -> int:
        return len(self.plan.selected.manifests())

    def run(self, unit: int) -> dict[str, Any]:
        table = files.read_table(self.plan.selected.file(unit, "parquet")).cast(SELECTED_PART).combine_chunks()
        batch = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], SELECTED_PART)
        bucket = (host_hashes(batch["url"]) % np.uint64(self.plan.hosts)).astype(np.int64)
        buckets.write(self.folder.file(unit, "rows", 0), buckets.cut(batch, bucket, self.plan.hosts))
        return {"parts": 1, "rows": batch.num_rows}


def host_hashes(urls: pa.Array) -> np.ndarray:
    """A 64-bit hash of the host of each (canonical) URL."""
    hosts = pc.struct_field(pc.extract_regex(urls, r"^[a-z]+://(?P<host>[^/?#]+)"), "host").fill_null("")
    return hashing.hash_strings(hosts)[:, 0]


@dataclasses.dataclass(frozen=True)
class IndexArchivedImages:
    """The only unit: where the images lie that the archives hold, sorted by the hash of their URL."""

    plan: Fetching

    @property
    def folder(self) -> StepFolder:
        return self.plan.work.step("fetch", "archived")

    def units(self) -> int:
        return 1

    def run(self, unit: int) -> dict[str, Any]:
        gathered = self.plan.gathered
        tables = [
            files.read_table(gathered.file(source, "images"))
            for source, _ in gathered.manifests()
            if os.path.exists(gathered.file(source, "images"))
        ]
        if not tables:
            return {"images": 0}
        table = pa.concat_tables(tables).combine_chunks()
        words = hashing.hash_strings(table["url"])
        order = np.lexsort((table["offset"].to_numpy(), table["source"].to_numpy(), words[:, 1], words[:, 0]))
        words = words[order]
        first = np.concatenate([[True], (words[1:] != words[:-1]).any(axis=1)])  # of several captures the first
        kept = table.take(pa.array(order[first]))
        arrays = {"hash": words[first], "source": kept["source"].to_numpy(), "offset": kept["offset"].to_numpy()}
        for name, array in arrays.items():
            with files.writing(self.folder.file(unit, name)) as file:
                np.save(file, array)
        return {"images": int(first.sum())}


@dataclasses.dataclass(frozen=True)
class ArchivedImages:
    """Finds an image inside the archives by its URL."""

    folder: StepFolder
    inputs: str
    max_bytes: int

    def __call__(self, url: str) -> bytes | None:
        """The image's bytes, or None if no archive holds it (or it can no longer be read).

        Raises:
            Failure: a remote archive cannot be read now; a later pass may have more luck.
        """
        from pipeline.sources.warc import read_image

        words, sources, offsets = _archived(self.folder)
        high, low = hashing.hash_strings(pa.array([url]))[0]
        at = int(np.searchsorted(words[:, 0], high))
        if at >= len(words) or words[at, 0] != high or words[at, 1] != low:
            return None
        path = archive_paths(self.inputs)[int(sources[at])]
        try:
            return read_image(path, int(offsets[at]), max_bytes=self.max_bytes)
        except InputError as error:
            raise Failure("tcp", f"the archive of the image: {error}") from error


@functools.lru_cache(maxsize=1)
def _archived(folder: StepFolder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    words, sources, offsets = (np.load(folder.file(0, name), mmap_mode="r") for name in ("hash", "source", "offset"))
    return words, sources, offsets


@functools.lru_cache(maxsize=1)
def archive_paths(inputs: str) -> list[str]:
    """The path behind each source number."""
    by_name = {item["name"]: item["path"] for item in files.read_json(inputs)}
    return [by_name[name] for name in sorted(by_name)]


@dataclasses.dataclass(frozen=True)
class DownloadHosts:
    """One unit a bucket of hosts: all its rows, in calls of at most ROWS_PER_CALL, each kept as soon as it is done."""

    plan: Fetching

    @property
    def folder(self) -> StepFolder:
        return self.plan.images(0)

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.work.step("fetch", "hosts"), "rows")

    def units(self) -> int:
        return self.plan.hosts

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        rows = buckets.table(messages, SELECTED_PART)
        return download(self.plan, self.folder, unit, rows)


@dataclasses.dataclass(frozen=True)
class RetryHosts:
    """One unit a bucket of hosts: the rows whose last try failed in a way that may pass."""

    plan: Fetching
    number: int  # of this pass

    @property
    def folder(self) -> StepFolder:
        return self.plan.images(self.number)

    def units(self) -> int:
        return self.plan.hosts

    def run(self, unit: int) -> dict[str, Any]:
        tables = [table for _, _, table in fetched_rows(self.plan, unit, before=self.number)]
        rows = pa.concat_tables(tables) if tables else FETCHED_PART.empty_table()
        rows = rows.filter(pc.and_(rows["retryable"], pc.not_equal(rows["status"], "ok")))
        return download(self.plan, self.folder, unit, rows.select(SELECTED_PART.names).combine_chunks())


def download(plan: Fetching, folder: StepFolder, unit: int, rows: pa.Table) -> dict[str, Any]:
    """Fetches the rows of a unit, part by part; parts that an earlier try has finished are not fetched again."""
    order = np.lexsort((*reversed(hashing.uid_words(rows["uid"])), host_hashes(hashing.as_array(rows["url"]))))
    rows = rows.take(pa.array(order))
    counts: dict[str, int] = {}
    parts = 0
    for start in range(0, rows.num_rows, ROWS_PER_CALL):
        path = folder.file(unit, "arrow", parts)
        if not os.path.exists(path):
            _download_part(plan, folder, unit, parts, rows.slice(start, ROWS_PER_CALL))
        for batch in files.read_batches(path, ["status"]):
            for item in pc.value_counts(batch["status"]).to_pylist():
                counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
        parts += 1
    return {"parts": parts, "status": counts, "rows": rows.num_rows}


def _download_part(plan: Fetching, folder: StepFolder, unit: int, part: int, rows: pa.Table) -> None:
    high, low = hashing.uid_words(rows["uid"])
    rows = rows.take(pa.array(np.lexsort((low, high)))).combine_chunks()
    batch = rows.to_batches()[0]
    index = plan.work.step("fetch", "archived")
    archived = ArchivedImages(index, plan.inputs, plan.options.max_bytes) if index.total("images") else None
    os.makedirs(folder.path, exist_ok=True)
    fetched = fetch_rows(
        batch.select(SELECTED.names),
        options=plan.options,
        raw_path=folder.file(unit, "raw", part),
        archived=archived,
    )
    if not fetched["uid"].equals(batch["uid"]):
        raise RuntimeError(f"the fetch of unit {unit}, part {part} brought other rows than it was given")
    outcome = [hashing.column_hash(fetched[name]) for name in OUTCOME]
    row_hash = hashing.row_hash(batch["row_hash"].to_numpy(), *outcome)
    complete_batch = pa.RecordBatch.from_arrays([*fetched.columns, pa.array(row_hash)], schema=FETCHED_PART)
    with files.writing_batches(folder.file(unit, "arrow", part), FETCHED_PART) as out:
        out.write_batch(complete_batch)


def fetched_rows(plan: Fetching, unit: int, *, before: int) -> Iterator[tuple[int, int, pa.Table]]:
    """(pass, part, rows) of a unit: the last word on each row, from the passes before the given one."""
    seen: np.ndarray = np.zeros(0, "S16")
    for number in range(before - 1, -1, -1):
        folder = plan.images(number)
        manifest = folder.manifest(unit)
        found = []
        for part in range(manifest["parts"] if manifest else 0):
            table = pa.Table.from_batches(files.read_batches(folder.file(unit, "arrow", part)), FETCHED_PART)
            words = np.stack(hashing.uid_words(table["uid"]), axis=1).astype(">u8").view("V16").ravel()
            keep = ~np.isin(words, seen) if len(seen) else np.ones(len(words), np.bool_)
            found.append(words)
            yield number, part, table.filter(pa.array(keep))
        if found:
            seen = np.concatenate([seen.astype("V16"), *found]) if len(seen) else np.concatenate(found)


class Fetch(beam.PTransform):
    """root | Fetch(plan, way=...): FETCHED parts and raw files."""

    def __init__(self, plan: Fetching, *, way: str) -> None:
        super().__init__("Fetch")
        self._plan, self._way = plan, way

    def expand(self, root: Any) -> beam.PCollection:
        plan, work = self._plan, self._plan.work
        done = root | "Index" >> Step(IndexArchivedImages(plan), work=work, most=1)
        done = done | "Hosts" >> Step(ByHost(plan), work=work)
        done = done | "Download" >> ExchangeStep(DownloadHosts(plan), work=work, count=plan.hosts, way=self._way)
        for number in range(1, plan.passes()):
            done = done | f"Retry{number}" >> Step(RetryHosts(plan, number), work=work, most=plan.hosts)
        return done


def ask_for_another_pass(plan: Fetching) -> None:
    """`--retry-failed`: from now on the stage has one pass more, also if this run is interrupted."""
    folder = plan.work.stage("fetch")
    files.write_json(os.path.join(folder, "passes.json"), plan.passes())
    files.remove(os.path.join(folder, "COMPLETED"))


def complete(plan: Fetching) -> dict[str, Any]:
    """Ends the stage: counts by class of failure, rejected rows, info.json, COMPLETED."""
    work, rejects = plan.work, Rejects(plan.keep_rejected)
    tally = Tally("fetch", rejects)
    retryable = 0
    for unit in range(plan.hosts):
        for _, _, table in plan.rows(unit):
            retryable += pc.sum(pc.and_(table["retryable"], pc.not_equal(table["status"], "ok"))).as_py() or 0
            _count(table, tally)
    folder = work.step("fetch", "failed")
    files.write_table(folder.file(0, "rejected"), rejects.table())
    files.write_json(folder.file(0, "json"), {"plan": folder.plan, "rejected": 1})
    write_rejected(work, "fetch", [folder], keep=plan.keep_rejected)
    folders = [plan.images(number) for number in range(plan.passes())]
    more = {
        "passes": plan.passes(),
        "retryable": retryable,
        "archived_images": work.step("fetch", "archived").total("images"),
    }
    info = stage_info(tally.ledger, digest=tally.digest, folders=folders, **more)
    work.complete("fetch", info)
    return info


def _count(table: pa.Table, tally: Tally) -> None:
    """Adds rows to the ledger: what failed is dropped here, by class."""
    tally.ledger.rows_in += table.num_rows
    good = pc.equal(table["status"], "ok")
    tally.passed(table["row_hash"].filter(good).to_numpy())
    failed = table.filter(pc.invert(good))
    for status in sorted(set(failed["status"].to_pylist())):
        some = failed.filter(pc.equal(failed["status"], status)).combine_chunks()
        url, text = (hashing.as_array(some[name]) for name in ("url", "text"))
        tally.drop(status, url, text, hashing.uid_words(some["uid"])[0])

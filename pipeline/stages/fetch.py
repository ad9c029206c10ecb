"""fetch: SELECTED -> FETCHED. Gets each image from its archive, or downloads it with img2dataset's Downloader.

    balance's parts --by host--> DownloadHosts: 00007-000.arrow (a row a pair, failures too) and .raw (the JPEGs)

A unit owns whole hosts. This bounds the number of requests that one host gets at once, over the whole job. The stage
stores what the network returned. Every later stage is a pure function of it. Rows with a failure that may pass are
fetched again in rounds at the end. A later attempt (`--retry-failed`) fetches those that are left. Newer rows replace
older ones.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.util
import ipaddress
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.tombstones import Tombstones
from pipeline.engine import checks, hashing, remote, rights_ledger, shuffle_files, storage
from pipeline.engine.cli import BelowThreshold, MissingInput, UsageError
from pipeline.engine.input_errors import InputError, public
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.remote import RemoteSettings
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_exchange, run_task, units_at_start
from pipeline.engine.tasks import Reading
from pipeline.engine.work import Json, StageFolder, StepFolder, digest_of
from pipeline.fetching.client import SiteFile, shared_client
from pipeline.fetching.downloader import FetchOptions, fetch_rows, read_pieces
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import PROJECT_URL
from pipeline.fetching.picture import StoredImage
from pipeline.fetching.targets import host_of
from pipeline.fetching.verdict import REFUSED
from pipeline.schema import FETCHED, SELECTED, STAGES, fill_texts
from pipeline.sources import READERS, published_sets
from pipeline.sources.base import Input, ReadSettings
from pipeline.stages.attempts import FETCHED_PART, PASSES, ROUND_PAUSES_S, Attempts, fetched_rows, keys_of_images
from pipeline.stages.base import Job, Outputs, Stage
from pipeline.stages.blocklist import (
    BLOCKED,
    FILES,
    PICTURES,
    UNKNOWN_LATER,
    Blocklist,
    BlocklistSettings,
    blocklist_of,
)
from pipeline.stages.fetch_progress import PassFigures, UnitFigures
from pipeline.stages.input_list import InputList
from pipeline.stages.robots_archive import (
    ArchivedRobots,
    IndexRobots,
    ReadRobots,
    RobotsPlan,
    WantedRobots,
    facts_of_archives,
    save_archives,
)
from pipeline.stages.row_pass import RAW, ROW_HASH
from pipeline.stages.run import RESULT, HowSettings, RightsSettings, Run
from pipeline.stages.tally import Rejects, Tally, unit_body
from pipeline.text import clean
from pipeline.text.rights import PROTOCOLS

if TYPE_CHECKING:
    import apache_beam as beam

FETCHED_COLUMNS = 8  # raised whenever the columns of the fetched rows change, or what they hold
ROWS_PER_CALL = 5_000  # rows of a part; an interrupted part goes on where it was (fetching/pieces.py)
SELECTED_PART = pa.schema([*SELECTED, ROW_HASH])
ASKED = "asked"  # beside the pieces of a part that is under way: its rows
ARCHIVE_PATIENCE_S = 30.0  # for the archive of an image
SLOW_FAILURES = ("dns", "timeout")  # they use up the time of the URL
# Failures that --min-success counts, where they may pass: an outage, not link rot and not a refusal.
PASSING = ("dns", "tcp", "timeout", "http_5xx", "rate_limited", "robots")
OF_IMAGE = FETCHED.names[FETCHED.get_field_index("http_status") + 1 :]  # columns of an image that was fetched
SITES = pa.schema(
    [
        pa.field("url", pa.string(), False),
        pa.field("body", pa.binary()),
        pa.field("until", pa.float64(), False),
    ]
)
OUTCOME = ("status", "image_sha256", "width", "height", "original_width", "original_height", "phash")


def _check_network(value: str) -> None:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        try:
            near = f"; did you mean {ipaddress.ip_network(value, strict=False)}?"
        except ValueError:
            near = ""
        raise UsageError(f"must be a network such as 127.0.0.0/8 or ::1/128{near}") from None


def _check_contact(value: str) -> None:
    if not re.fullmatch(r"[!-~]([ -~]{0,253}[!-~])?", value):
        raise UsageError("must be a URL or an address of at most 255 printable ASCII characters")


def robots_agents(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """CCBot,GPTBot -> ("CCBot", "GPTBot"). "none": no group but ours counts.

    Raises:
        UsageError: a name is no product token.
    """
    names = tuple(name.strip() for name in (given.split(",") if isinstance(given, str) else given))
    if names == ("none",):
        return ()
    if not all(re.fullmatch(r"[A-Za-z_-][A-Za-z0-9_-]{0,63}", name) for name in names):
        raise UsageError("must be product tokens with commas between them, such as CCBot,GPTBot, or none")
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """The options of the fetch, and of the stored images."""

    title: ClassVar[str] = "fetch"

    allow_address: tuple[str, ...] = option(
        (),
        help="non-public addresses that may be fetched from, e.g. 127.0.0.0/8",
        default_text="none",
        metavar="CIDR",
        check=_check_network,
    )
    image_size: int = option(
        256, help="short side of stored images", unit="pixels", metavar="PX", within="[1, 65535]"
    )  # a JPEG's longest side
    deadline: float = option(
        30.0, help="time that a URL may take in all", unit="seconds", metavar="S", within="(0, 86400]"
    )
    user_agent_contact: str | None = option(
        None,
        help="where a webmaster can reach you; becomes part of the user agent",
        metavar="URL",
        check=_check_contact,
    )
    robots_archive: tuple[str, ...] = option(
        (),
        help="robots.txt archives of the crawl, as --input or cc:CRAWL; a host that refuses there is never asked",
        default_text="none",
        metavar="WHAT",
        check=checks.not_empty,
        published=lambda specs: [spec if spec.startswith("cc:") else os.path.basename(public(spec)) for spec in specs],
    )
    robots_agents: tuple[str, ...] = option(
        ("CCBot",),
        help="crawlers of data sets: what robots.txt forbids to one of them by name is not fetched; none: only ours",
        default_text="CCBot",
        metavar="NAME,NAME",
        parse=robots_agents,
    )
    fetch_rounds: int = option(
        len(ROUND_PAUSES_S),
        help="how often images with a failure that may pass are fetched again at the end",
        within=f"[0, {len(ROUND_PAUSES_S)}]",
        steers=True,
    )
    min_success: float = option(
        0.5,
        help="publish only if this share was fetched, of the images that were fetched or may be fetched later",
        within="[0, 1]",
        steers=True,
    )
    fetch_memory: int = option(
        256,
        help="of the images that a worker downloads and decodes at a time",
        unit="MB",
        metavar="MB",
        within="[128, 1e6]",
        steers=True,
    )


def fetch_options(o: FetchSettings, ignored: tuple[str, ...] = ()) -> FetchOptions:
    """The options as the downloader takes them."""
    return FetchOptions(
        allow_addresses=o.allow_address,
        deadline_s=o.deadline,
        image_size=o.image_size,
        memory=o.fetch_memory << 20,
        contact=o.user_agent_contact or PROJECT_URL,
        robots_agents=o.robots_agents,
        ignore_rights=ignored,
    )


def asks_for_pdq(run: Run) -> bool:
    """True if a list of the user has PDQ hashes."""
    lists = run.settings(BlocklistSettings).blocklist
    return bool(lists) and len(Blocklist.read(lists).entries["pdq"]) > 0


@dataclasses.dataclass(frozen=True)
class FetchPlan:
    """What the steps share.

    Attributes:
        attempts: where the fetched rows and images go.
        selected: balance's rows.
        images: the lists of the images that lie in the archives.
        hosts: the step that cuts the rows by host.
        archived: the step that indexes the images of the archives.
        inputs: path of the list of inputs.
        options: of the downloader.
        rounds: of an attempt, for the failures that may pass.
        remote: how archives on servers are read.
        robots: the steps that read robots.txt archives; None: there are none.
        blocked: the lists of images that must not be kept; None: there are none.
    """

    attempts: Attempts
    selected: Rows
    images: StepFolder
    hosts: StepFolder
    archived: StepFolder
    inputs: str
    options: FetchOptions
    rounds: int
    remote: RemoteSettings
    robots: RobotsPlan | None
    blocked: StepFolder | None

    def archived_images(self) -> ArchivedImages | None:
        """The images in the inputs; None: there are none."""
        if not self.archived.total("images"):
            return None
        return ArchivedImages(self.archived, self.inputs, self.options.max_bytes, self.remote)

    def load_blocked(self) -> Blocklist | None:
        """The lists, once for each worker."""
        return None if self.blocked is None else Blocklist.load(self.blocked)


@dataclasses.dataclass(frozen=True)
class ByHost:
    """One unit for each group of balance's rows: the rows, cut by host."""

    plan: FetchPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.hosts

    def units(self) -> int:
        return self.plan.selected.groups

    def run(self, unit: int) -> dict[str, Any]:
        batches = itertools.chain.from_iterable(self.plan.selected.masked(unit))
        selected = (as_selected(batch.filter(pa.array(keep))) for batch, keep in batches)
        parts = rows = 0
        for parts, some in enumerate(shuffle_files.in_pieces(selected), 1):
            self._write(unit, parts - 1, some)
            rows += sum(batch.num_rows for batch in some)
        return {"parts": parts, "rows": rows}

    def _write(self, unit: int, part: int, some: list[pa.RecordBatch]) -> None:
        batch = hashing.as_batch(pa.Table.from_batches(some, SELECTED_PART))
        hosts = self.plan.attempts.hosts
        bucket = (host_hashes(batch["url"]) % np.uint64(hosts)).astype(np.int64)
        shuffle_files.write(self.folder.file(unit, "rows", part), shuffle_files.cut(batch, bucket, hosts))


def as_selected(rows: pa.RecordBatch) -> pa.RecordBatch:
    """SELECTED_PART of rows that balance leaves."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    columns["texts"] = fill_texts(columns["text"], columns["texts"])
    arrays = [columns[field.name].cast(field.type) for field in SELECTED_PART]
    return pa.RecordBatch.from_arrays(arrays, schema=SELECTED_PART)


def host_hashes(urls: pa.Array) -> np.ndarray:
    """A 64-bit hash of the host of each (canonical) URL."""
    hosts = pc.struct_field(pc.extract_regex(urls, r"^[a-z]+://(?P<host>[^/?#]+)"), "host").fill_null("")
    return hashing.hash_strings(hosts)[:, 0]


@dataclasses.dataclass(frozen=True)
class IndexArchivedImages:
    """The only unit: an index of the images in the archives, sorted by the hash of their URL."""

    plan: FetchPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.archived

    def units(self) -> int:
        return 1

    def run(self, unit: int) -> dict[str, Any]:
        listed = self.plan.images
        tables = [storage.read_table(listed.file(source, "images")) for source, _ in listed.manifests()]
        if not tables:
            return {"images": 0}
        table = pa.concat_tables(tables).combine_chunks()
        words = hashing.hash_strings(table["url"])
        inputs = InputList.read(os.path.dirname(self.plan.inputs))
        place = np.argsort(np.argsort(np.array(inputs.names if inputs else [])))  # of each source, by name
        by_name = place[table["source"].to_numpy()]
        order = np.lexsort((table["offset"].to_numpy(), by_name, words[:, 1], words[:, 0]))
        words = words[order]
        first = np.concatenate([[True], (words[1:] != words[:-1]).any(axis=1)])  # the first capture of each URL
        kept = table.take(pa.array(order[first]))
        arrays = {"hash": words[first], "source": kept["source"].to_numpy(), "offset": kept["offset"].to_numpy()}
        for name, array in arrays.items():
            storage.save_array(self.folder.file(unit, name), array)
        return {"images": int(first.sum())}


@dataclasses.dataclass(frozen=True)
class ArchivedImages:
    """Finds an image inside the archives by its URL."""

    folder: StepFolder
    inputs: str
    max_bytes: int
    remote: RemoteSettings

    def __call__(self, url: str) -> bytes | None:
        """The image's bytes, or None if no archive holds it (or it can no longer be read).

        Raises:
            Failure: a remote archive cannot be read now. A later attempt may succeed.
        """
        found = self._place(url)
        if found is None:
            return None
        form, path, offset = found
        remote.configure(self.remote)
        try:
            return READERS[form].read_image(path, offset, max_bytes=self.max_bytes)
        except InputError as error:
            raise Failure("tcp", f"the archive of the image: {error}") from error

    def stored(self, url: str) -> StoredImage | None:
        """The image that another set has stored, or None if no set has (or it can no longer be read).

        Raises:
            Failure: it lies elsewhere, and cannot be read now. A later attempt may succeed.
        """
        found = self._place(url)
        if found is None or not READERS[found[0]].stores_images:
            return None
        form, path, offset = found
        remote.configure(self.remote)
        try:
            sample = READERS[form].read_stored(path, offset, max_bytes=self.max_bytes)
        except InputError as error:
            raise Failure("tcp", f"the tar of the image: {error}") from error
        if sample is None or not _is_of(sample[1], url):
            return None
        image = stored_image(*sample, url=url, same_version=READERS[form].result_of(path) == str(RESULT))
        return dataclasses.replace(image, keeps_form=READERS[form].keeps_form)

    def _place(self, url: str) -> tuple[str, str, int] | None:
        """The format and the path of the input that holds an image, and its place there."""
        (at,) = self.among(pa.array([url])).tolist()
        if at < 0:
            return None
        _, sources, offsets = _archived(self.folder)
        form, path = archives(self.inputs, storage.state(self.inputs))[int(sources[at])]
        return form, path, int(offsets[at])

    def among(self, urls: pa.Array) -> np.ndarray:
        """For each URL the number of its image in the index, -1 if no archive holds it: (rows,)."""
        words = _archived(self.folder)[0]
        asked = hashing.hash_strings(urls)
        at = np.searchsorted(words[:, 0], asked[:, 0])
        found = np.minimum(at, len(words) - 1)
        return np.where((words[found] == asked).all(axis=1), found, -1)


def _is_of(facts: Mapping[str, Any], url: str) -> bool:
    """True if a sample is that of a URL: the input may be another file by now."""
    named = [value for name in ("url", "url_as_found") if isinstance(value := facts.get(name), str)]
    return url in named or url in clean.canonical_urls(pa.array(named, pa.string()))[0].to_pylist()


def check_set(root: str, run: Run) -> None:
    """Refuses to take the images of another set that differ in their form, or in the rights that were asked for.

    Raises:
        UsageError: its message names the option and what to type. A set that is gone by now is not refused.
    """
    try:
        options = published_sets.read_set(root).options
    except InputError:
        return
    o, remedy = run.settings(FetchSettings), f"Name {root}/metadata to take its pairs alone, whose images are fetched"
    size = options.get("image_size", o.image_size)
    if size != o.image_size:
        raise UsageError(f"--image-size {o.image_size}: must be {size}, as of the images of {root}. {remedy}")
    ours, theirs = set(run.settings(RightsSettings).ignore_rights), set(options.get("ignore_rights") or ())
    if theirs - ours:
        names = ",".join(name for name in PROTOCOLS if name in theirs | ours)
        raise UsageError(f"--ignore-rights: must be {names}, as for the images of {root}. {remedy}")
    agents = set(options.get("robots_agents", o.robots_agents) or ())
    if set(o.robots_agents) - agents and "robots-agents" not in ours:
        asked = ",".join(sorted(agents)) or "none"
        raise UsageError(f"--robots-agents: must be {asked}, as for the images of {root}. {remedy}")
    lists = run.settings(BlocklistSettings).blocklist
    kinds = [kind for kind in ("md5", "sha1") if lists and len(Blocklist.read(lists).entries[kind])]
    if kinds:
        raise UsageError(
            f"--blocklist: holds {' and '.join(kinds)}, which are of images as served, and {root} holds none of these. "
            f"{remedy}"
        )


def stored_image(jpeg: bytes, facts: Mapping[str, Any], *, url: str, same_version: bool) -> StoredImage:
    """The image of a sample of another set.

    Args:
        jpeg: as stored.
        facts: the JSON of the sample. What is not known is "" or 0 there.
        url: of the row.
        same_version: the set comes from a version with these rules, so its perceptual hash is of the same kind.
    """

    def text(name: str) -> str:
        value = facts.get(name)
        return value if isinstance(value, str) else ""

    def number(name: str) -> int | None:
        value = facts.get(name)
        return value if isinstance(value, int) and 0 < value < 1 << 31 else None

    def digest(name: str) -> bytes | None:
        return bytes.fromhex(text(name)) if re.fullmatch(r"[0-9a-f]{64}", text(name)) else None

    phash = text("phash")
    came_from = text("final_url") or clean.canonical_urls(pa.array([text("url")]))[0][0].as_py()
    return StoredImage(
        jpeg,
        digest("original_sha256"),
        number("original_width"),
        number("original_height"),
        text("original_format") or None,
        int(phash, 16) if same_version and re.fullmatch(r"[0-9a-f]{16}", phash) else None,
        came_from if came_from != url else None,
        tuple(name for name in text("rights_protocol").split(",") if name in PROTOCOLS),
        tuple(name for name in text("rights_consulted").split(",") if name in PROTOCOLS),
        noted_sha256=digest("noted_sha256"),
    )


@functools.lru_cache(maxsize=1)
def _archived(folder: StepFolder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    words, sources, offsets = (storage.map_array(folder.file(0, name)) for name in ("hash", "source", "offset"))
    return words, sources, offsets


@functools.lru_cache(maxsize=1)
def archives(inputs: str, state: tuple[Any, ...] | None) -> dict[int, tuple[str, str]]:
    """Source number -> the format and the path behind it. `state` tells those of the list apart."""
    del state
    found = InputList.read(os.path.dirname(inputs))
    if found is None:
        raise storage.DamagedError(f"{inputs} is missing")
    return {found.sources[item.name]: (item.format, item.path) for item in found.units.values()}


@dataclasses.dataclass(frozen=True)
class DownloadHosts:
    """One unit for each bucket of hosts: fetches its rows in calls of ROWS_PER_CALL. Each result is stored at once."""

    plan: FetchPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.attempts.images(self.plan.attempts.first())

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.hosts, "rows")

    def units(self) -> int:
        return self.plan.attempts.hosts

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        rows = shuffle_files.table(messages, SELECTED_PART)
        rows = rows.take(pa.array(_by_uid(rows)))  # so that a call has rows of many pages and hosts
        attempts = self.plan.attempts
        kept = FETCHED_PART.empty_table()
        if attempts.earlier():
            kept = find_kept(rows, refuse_listed(attempts.outcomes(unit), self.plan.load_blocked()))
            kept = self._without_found(kept)
        missing = rows.filter(pc.invert(pc.is_in(rows["uid"], kept["uid"].combine_chunks())))
        return download(self.plan, self.folder, unit, missing, kept=kept)

    def _without_found(self, kept: pa.Table) -> pa.Table:
        """Without the failures of servers whose image an archive holds by now. A refusal stays."""
        archived = self.plan.archived_images()
        refused = pc.fill_null(pc.equal(kept["rights"], REFUSED), False)
        failed = pc.invert(pc.or_(pc.equal(kept["status"], "ok"), refused))
        if archived is None or not pc.any(failed).as_py():
            return kept
        found = archived.among(hashing.as_array(kept["url"])) >= 0
        return kept.filter(pc.invert(pc.and_(failed, pa.chunked_array([pa.array(found)])))).combine_chunks()


def refuse_listed(outcomes: pa.Table, blocked: Blocklist | None) -> pa.Table:
    """OUTCOMES: those of listed images become refusals. Refusals by an earlier list are left out."""
    outcomes = outcomes.filter(pc.not_equal(outcomes["status"], BLOCKED)).combine_chunks()
    listed = pa.array(blocked.among_fetched(outcomes)) if blocked is not None and outcomes.num_rows else None
    if listed is None or not pc.any(listed).as_py():
        return outcomes
    refusal = {"status": BLOCKED, "error": "a list of --blocklist names this image", "retryable": False}
    for place, field in enumerate(outcomes.schema):
        if field.name in refusal or field.name in OF_IMAGE:
            value = pa.scalar(refusal.get(field.name), field.type)
            column = pc.if_else(listed, value, hashing.as_array(outcomes[field.name]))
            outcomes = outcomes.set_column(place, field, column)
    return outcomes


def _by_uid(rows: pa.Table) -> np.ndarray:
    high, low = hashing.uid_words(rows["uid"])
    return np.lexsort((low, high))


def find_kept(rows: pa.Table, outcomes: pa.Table) -> pa.Table:
    """FETCHED_PART: the rows whose image has an outcome already, with this outcome, sorted by uid.

    Args:
        rows: SELECTED_PART.
        outcomes: OUTCOMES, each key once.
    """
    at = pc.index_in(keys_of_images(rows), value_set=hashing.as_array(outcomes["key"]))
    order = _by_uid(rows)
    order = order[at.is_valid().to_numpy(zero_copy_only=False)[order]]
    table, places = rows.take(pa.array(order)), at.take(pa.array(order))
    given = {name: table[name] for name in SELECTED.names}
    given |= {name: outcomes[name].take(places) for name in outcomes.column_names}
    given["row_hash"] = pa.array(hash_outcomes(table["row_hash"].to_numpy(), given))
    return pa.table([given[name] for name in FETCHED_PART.names], schema=FETCHED_PART).combine_chunks()


@dataclasses.dataclass(frozen=True)
class RetryHosts:
    """One unit for each bucket of hosts: fetches the rows whose newest outcome is a failure that may pass."""

    plan: FetchPlan
    number: int  # of this pass

    @property
    def folder(self) -> StepFolder:
        return self.plan.attempts.images(self.number)

    def units(self) -> int:
        return self.plan.attempts.hosts

    def run(self, unit: int) -> dict[str, Any]:
        in_round, ended = self.number % PASSES, self._ended(unit)
        if in_round > self.plan.rounds or (in_round and not ended):
            return {"parts": 0, "status": {}, "rows": 0, "ended": ended}
        tables = [table for _, _, table in fetched_rows(self.plan.attempts, unit, before=self.number)]
        table = pa.concat_tables(tables) if tables else FETCHED_PART.empty_table()
        start = time.time()
        if in_round:
            mine = pc.greater_equal(table["raw_attempt"], self.plan.attempts.first())  # not of an earlier generation
            table = table.filter(pc.and_(mine, worth_another_try(table, in_round)))
            start = max(start, start_of_round(table, ended, in_round, last=self.plan.rounds, plan=self.plan))
        failed = pc.sum(failed_for_now(table)).as_py() or 0
        table = table.filter(pc.and_(failed_for_now(table), pc.less_equal(table["retry_at"].fill_null(0), start)))
        wait = start - time.time()
        if table.num_rows and wait > 0:
            figures = UnitFigures(self.folder, unit, table.num_rows)
            figures.set_state(f"waits {wait:.0f} s before it asks again")
            time.sleep(wait)
        rows = table.select(SELECTED_PART.names).combine_chunks()
        shared_client(self.plan.options).remember(read_sites(self.plan.attempts.images(self.number - 1), unit))
        found = download(self.plan, self.folder, unit, rows, again=True)
        return found if table.num_rows == failed else {**found, "ended": time.time()}

    def _ended(self, unit: int) -> float:
        """When the pass before ended, in seconds since 1970; 0: nothing failed in it that may pass."""
        manifest = self.plan.attempts.images(self.number - 1).manifest(unit)
        return manifest.get("ended", 0.0) if manifest else 0.0


def failed_for_now(table: pa.Table) -> pa.ChunkedArray:
    """True for the rows with a failure that may pass."""
    return pc.and_(table["retryable"], pc.not_equal(table["status"], "ok"))


def worth_another_try(table: pa.Table, in_round: int) -> pa.ChunkedArray:
    """True for the rows that a round fetches again.

    A host that never answered gets one round if finding that out takes long. Most such hosts are gone for good.
    """
    worth = pc.and_(failed_for_now(table), pc.not_equal(table["status"], "internal"))
    if in_round == 1 or not table.num_rows:
        return worth
    hosts = host_hashes(hashing.as_array(table["url"]))
    answered = np.isin(hosts, hosts[table["http_status"].is_valid().to_numpy()])
    quick = pc.invert(pc.is_in(table["status"], pa.array(SLOW_FAILURES)))
    return pc.and_(worth, pc.or_(pa.chunked_array([pa.array(answered)]), quick))


def start_of_round(table: pa.Table, ended: float, in_round: int, *, last: int, plan: FetchPlan) -> float:
    """When the round starts. The last round waits a little longer for hosts that asked for a pause."""
    start = ended + ROUND_PAUSES_S[in_round - 1]
    if in_round == last:
        asked = table["retry_at"].drop_null().to_numpy()
        start = max(start, *asked[asked <= start + plan.options.longest_wait_s], 0.0)
    return start


def download(
    plan: FetchPlan,
    folder: StepFolder,
    unit: int,
    rows: pa.Table,
    *,
    kept: pa.Table | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Fetches the rows of a unit, part by part. What an interrupted run finished is not fetched again.

    `kept`: rows of the unit that have an outcome already (FETCHED_PART). They are the first parts.
    """
    order = np.lexsort((*reversed(hashing.uid_words(rows["uid"])), host_hashes(hashing.as_array(rows["url"]))))
    rows, kept = rows.take(pa.array(order)), FETCHED_PART.empty_table() if kept is None else kept
    figures = UnitFigures(folder, unit, rows.num_rows + kept.num_rows)
    counts: Counter[str] = Counter()
    waiting: set[str] = set()  # hosts of rows that may be fetched later
    parts = for_now = 0
    for start in range(0, kept.num_rows, ROWS_PER_CALL):
        some = kept.slice(start, ROWS_PER_CALL).combine_chunks()
        write_part(folder.file(unit, "arrow", parts), some.to_batches()[0])
        for status, count in Counter(some["status"].to_pylist()).items():
            counts[status] += count
            figures.add(status, count)
        parts += 1
    for start in range(0, rows.num_rows, ROWS_PER_CALL):
        path = folder.file(unit, "arrow", parts)
        was_there = storage.is_sound(path)
        if not was_there:
            _download_part(plan, folder, unit, parts, rows.slice(start, ROWS_PER_CALL), again=again, watch=figures)
        storage.remove(folder.file(unit, ASKED, parts))
        storage.remove(storage.beside(folder.file(unit, "pieces", parts)))
        for batch in storage.read_batches(path, ["status", "retryable", "url"]):
            for_now += pc.sum(batch["retryable"]).as_py() or 0
            waiting.update(map(host_of, batch["url"].filter(batch["retryable"]).to_pylist()))
            for item in pc.value_counts(batch["status"]).to_pylist():
                counts[item["values"]] += item["counts"]
                if was_there:
                    figures.add(item["values"], item["counts"])
        parts += 1
    write_sites(folder, unit, shared_client(plan.options).site_files(waiting) if waiting else [])
    total = rows.num_rows + kept.num_rows
    return {"parts": parts, "status": counts, "rows": total, "ended": time.time() if for_now else 0.0}


def write_sites(folder: StepFolder, unit: int, files: list[SiteFile]) -> None:
    """Keeps what is known of sites for the next round, which another process may carry out."""
    if files:
        arrays = [pa.array(column, field.type) for column, field in zip(zip(*files, strict=True), SITES, strict=True)]
        with storage.writing_batches(folder.file(unit, "sites"), SITES) as out:
            out.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SITES))


def read_sites(folder: StepFolder, unit: int) -> list[SiteFile]:
    """What `write_sites` kept."""
    path = folder.file(unit, "sites")
    batches = storage.read_batches(path) if storage.exists(path) else ()
    return [SiteFile(**item) for batch in batches for item in batch.to_pylist()]


def _download_part(
    plan: FetchPlan, folder: StepFolder, unit: int, part: int, rows: pa.Table, *, again: bool, watch: UnitFigures
) -> None:
    high, low = hashing.uid_words(rows["uid"])
    rows = rows.take(pa.array(np.lexsort((low, high)))).combine_chunks()
    batch = rows.to_batches()[0]
    archived = plan.archived_images()
    stones = Tombstones.load(folder.root)
    if not storage.is_sound(folder.file(unit, ASKED, part)):
        with storage.writing_batches(folder.file(unit, ASKED, part), SELECTED_PART) as out:
            out.write_batch(batch)
    pieces = storage.beside(folder.file(unit, "pieces", part))
    storage.make_folder(os.path.dirname(pieces))
    fetched = fetch_rows(
        batch.select(SELECTED.names),
        options=plan.options,
        raw_path=folder.file(unit, "raw", part),
        pieces_path=pieces,
        archived=archived,
        stored=archived.stored if archived is not None else None,
        again=again,
        watch=watch,
        forgotten=stones.among_fetched if stones else None,
        blocked=plan.load_blocked(),
        captures=ArchivedRobots(plan.robots) if plan.robots is not None else None,
    )
    if not fetched["uid"].equals(batch["uid"]):
        raise RuntimeError(f"the downloader returned other rows than it was given (unit {unit}, part {part})")
    write_part(folder.file(unit, "arrow", part), _as_part(fetched, batch["row_hash"].to_numpy(), folder, unit, part))


def _as_part(fetched: pa.RecordBatch, row_hash: np.ndarray, folder: StepFolder, unit: int, part: int) -> pa.RecordBatch:
    """FETCHED_PART of rows that were fetched. `row_hash` is that of balance."""
    found = dict(zip(fetched.schema.names, fetched.columns, strict=True))
    number = int(os.path.basename(folder.path).removeprefix("images-"))
    places = zip(RAW, (number, unit, part), strict=True)
    found |= {field.name: pa.array(np.full(fetched.num_rows, value), field.type) for field, value in places}
    found["row_hash"] = pa.array(hash_outcomes(row_hash, found))
    columns = [found[name] for name in FETCHED_PART.names]
    return pa.RecordBatch.from_arrays(columns, schema=FETCHED_PART)


def keep_pieces(attempts: Attempts, options: FetchOptions) -> None:
    """Makes parts of what interrupted parts of earlier generations had finished, so that it is not fetched again."""
    for folder in attempts.earlier_passes():
        names = (re.fullmatch(rf"(\d+)-(\d+)\.(pieces|{ASKED})", name) for name in storage.names(folder.path))
        for unit, part in sorted({(int(found[1]), int(found[2])) for found in names if found}):
            _keep_pieces(folder, unit, part, options)


def _keep_pieces(folder: StepFolder, unit: int, part: int, options: FetchOptions) -> None:
    """Appends a part to a unit of a pass that has ended. A crash loses nothing: the pieces go last."""
    pieces, asked = folder.file(unit, "pieces", part), folder.file(unit, ASKED, part)
    manifest = storage.read_json(folder.file(unit, "json")) or {"parts": 0, "status": {}, "rows": 0, "ended": 0.0}
    if storage.is_sound(asked) and manifest["parts"] <= part:
        (rows,) = storage.read_batches(asked)
        new = manifest["parts"]
        raw = folder.file(unit, "raw", new)
        fetched = read_pieces(rows.select(SELECTED.names), options=options, raw_path=raw, pieces_path=pieces)
        if fetched.num_rows:
            at = pc.index_in(fetched["uid"], value_set=rows["uid"]).to_numpy()
            made = _as_part(fetched, rows["row_hash"].to_numpy()[at], folder, unit, new)
            write_part(folder.file(unit, "arrow", new), made)
            status = Counter(manifest["status"]) + Counter(made["status"].to_pylist())
            counts = {"parts": new + 1, "status": status, "rows": manifest["rows"] + made.num_rows}
            folder.write_manifest(unit, {**manifest, **counts})
    for path in (asked, pieces):
        storage.remove(path)


def hash_outcomes(row_hash: np.ndarray, columns: Mapping[str, Any]) -> np.ndarray:
    """The hash of each row with its outcome. `row_hash` is that of balance."""
    return hashing.row_hash(row_hash, *(hashing.column_hash(hashing.as_array(columns[name])) for name in OUTCOME))


def write_part(path: str, batch: pa.RecordBatch) -> None:
    """Writes a part: rows of FETCHED_PART."""
    with storage.writing_batches(path, FETCHED_PART) as out:
        out.write_batch(batch)


@dataclasses.dataclass(frozen=True)
class Fetch(Stage):
    """The stage."""

    name: ClassVar[str] = "fetch"
    job: ClassVar[Job] = "fetch"
    options: ClassVar[type] = FetchSettings

    fetching: FetchPlan
    exchange: str
    robots_archives: tuple[Input, ...]

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        folder = before.plan(run, cls)
        selected = before.rows("balance")
        # A thread waits for an archive as long as for a server. The rounds of the fetch ask again.
        patient = dataclasses.replace(run.remote, patience=min(run.remote.patience, ARCHIVE_PATIENCE_S))
        robots = None
        if run.robots_archives:
            wanted, answers, index = (folder.step(f"robots-{name}") for name in ("wanted", "answers", "index"))
            count = len(run.robots_archives)
            whole = dataclasses.replace(run.remote, fill=True)
            robots = RobotsPlan(selected, wanted, answers, index, run.robots_file, whole, patient, count)
        options = fetch_options(run.settings(FetchSettings), run.settings(RightsSettings).ignore_rights)
        fetching = FetchPlan(
            attempts=Attempts(folder, before.folder("balance")),
            selected=selected,
            images=before.folder("gather").units("images"),
            hosts=folder.step("hosts"),
            archived=folder.step("archived"),
            inputs=run.inputs_file,
            options=dataclasses.replace(options, pdq=asks_for_pdq(run)),
            rounds=run.settings(FetchSettings).fetch_rounds,
            remote=patient,
            robots=robots,
            blocked=blocklist_of(before.folder("gather")) if run.settings(BlocklistSettings).blocklist else None,
        )
        return cls(folder, run.keep_rejected, fetching, run.exchange, run.robots_archives)

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        o = run.settings(FetchSettings)
        decided: dict[str, Json] = {
            "image_size": o.image_size,
            "columns": FETCHED_COLUMNS,
            "robots_agents": o.robots_agents,
        }
        if run.robots_archives:  # else as it was without the option
            decided["robots_archive"] = digest_of([[item.name, item.bytes] for item in run.robots_archives])
        if ignored := run.settings(RightsSettings).ignore_rights:
            decided["ignore_rights"] = ignored
        lists = run.settings(BlocklistSettings).blocklist
        listed = Blocklist.read(lists).digest(*FILES, *PICTURES) if lists else None
        return {**decided, **({"blocklist": listed} if listed else {})}

    def check(self, run: Run) -> None:
        if self.fetching.options.pdq and importlib.util.find_spec("pdqhash") is None:
            raise UsageError("--blocklist: PDQ hashes need the package pdqhash: pip install 'openwit[pdq]'")
        for root in published_sets.sets_among(run.inputs):
            check_set(root, run)
        try:
            for name, reader in READERS.items():
                reader.check([item for item in run.robots_archives if item.format == name], ReadSettings())
        except (InputError, OSError) as error:
            raise MissingInput(f"--robots-archive: {error}") from error

    def settle(self, run: Run) -> None:
        if self.robots_archives:
            save_archives(run.robots_file, self.robots_archives)

    def reopens(self, run: Run) -> bool:
        info = self.folder.info()  # None while an attempt is under way
        return run.settings(HowSettings).retry_failed and info is not None and bool(info["retryable"])

    def reopen(self) -> None:
        self.fetching.attempts.ask_for_another()

    def begin(self, run: Run) -> None:
        options = dataclasses.replace(self.fetching.options, memory=0)  # the same images with more memory
        lists = run.settings(BlocklistSettings).blocklist
        listed = Blocklist.read(lists).digest(*UNKNOWN_LATER) if lists else None
        form = {name: value for name, value in self.decided.items() if name != "blocklist"}
        self.fetching.attempts.begin(digest_of(form, listed) if listed else digest_of(form), digest_of(repr(options)))
        keep_pieces(self.fetching.attempts, self.fetching.options)

    def begin_anew(self) -> None:
        """Keeps the images: the next run fetches those that no earlier one fetched."""
        self.fetching.attempts.begin_anew()

    def expand(self, done: Any) -> beam.PCollection:
        plan = self.fetching
        hosts = plan.attempts.hosts
        by_host = ByHost(plan)
        max_units = units_at_start(done, by_host)
        if plan.robots is not None:
            done = run_task(done, WantedRobots(plan.robots), max_units=1)
            done = run_task(done, ReadRobots(plan.robots), max_units=plan.robots.count)
            index, buckets, count = IndexRobots(plan.robots), plan.robots.buckets, plan.robots.count
            done = run_exchange(done, index, buckets=buckets, exchange=self.exchange, producers=count)
        done = run_task(done, IndexArchivedImages(plan), max_units=1)
        done = run_task(done, by_host, max_units=max_units)
        groups = plan.selected.groups
        done = run_exchange(done, DownloadHosts(plan), buckets=hosts, exchange=self.exchange, producers=groups)
        for number in plan.attempts.passes()[1:]:
            done = run_task(done, RetryHosts(plan, number), max_units=hosts)
        return done

    @property
    def output(self) -> Rows | None:
        return None

    def steps(self) -> tuple[StepFolder, ...]:
        attempts = self.fetching.attempts
        return tuple(attempts.images(number) for number in attempts.passes())

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.folder.step("failed"),)

    def facts(self) -> dict[str, Json]:
        return {
            "attempts": self.fetching.attempts.count(),
            "retryable": self.folder.step("failed").total("retryable"),
            "passing": self.folder.step("failed").total("passing"),
            "archived_images": self.fetching.archived.total("images"),
            "rights": (self.folder.step("failed").manifest(0) or {}).get("rights", {}),
            **({"robots_archives": facts_of_archives(self.fetching.robots)} if self.fetching.robots else {}),
        }

    def complete(self) -> dict[str, Any]:
        self._count_failures()
        for step in self.steps():
            for name in storage.names(step.path):
                if name.endswith((".live", ".sites")):
                    storage.remove(os.path.join(step.path, name))
        return super().complete()

    def _count_failures(self) -> None:
        """Counts the newest outcome of each row by status class. The failed rows are the drops of the stage."""
        folder, rejects = self.folder.step("failed"), Rejects(self.keep_rejected)
        tally, retryable, passing = Tally(self.name, rejects), 0, 0
        refused: dict[str, Any] = {}
        for unit in range(self.fetching.attempts.hosts):
            for _, _, table in self.fetching.attempts.rows(unit):
                failed = table["status"].filter(failed_for_now(table))
                retryable += len(failed)
                passing += pc.sum(pc.is_in(failed, pa.array(PASSING))).as_py() or 0
                count_outcomes(table, tally)
                rights_ledger.add(refused, count_refusals(table))
        counts = {"retryable": retryable, "passing": passing, "rights": refused}
        folder.write_manifest(0, {**unit_body(folder, 0, [tally], rejects), **counts})

    def check_result(self, run: Run) -> None:
        info = self.folder.info()
        if info is None:
            return
        good, passing = info["rows_out"], info["passing"]
        least = run.settings(FetchSettings).min_success
        if good and good >= least * (good + passing):
            return
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(info["dropped"].items(), key=lambda item: -item[1]))
        again = "Add --retry-failed to fetch again what may pass" if info["retryable"] else "Check the input"
        if not good:
            none = f"not one of {info['rows_in']:,} images could be fetched ({kinds})"
            found = none if kinds else self._without_pairs()
            if list(info["dropped"]) == ["blocked_address"]:
                again = "No host has a public address: for hosts of yours, add --allow-address NETWORK and --redo fetch"
            raise BelowThreshold(f"{found}. The set is not published. {again}.")
        share = f"{good:,} of {good + passing:,} images ({100 * good / (good + passing):.0f} %)"
        raise BelowThreshold(
            f"only {share} were fetched, of those that can be fetched at all, and --min-success is {least:g} "
            f"(failed: {kinds}). The set is not published. {again}, or set a lower --min-success."
        )

    def _without_pairs(self) -> str:
        """Which stage let no pair pass, and what it dropped or lost."""
        for stage in STAGES[: STAGES.index(self.name)]:
            info = StageFolder(self.folder.root, stage).info()
            if info is not None and not info["rows_out"]:
                counts = {**(info.get("records_dropped") or {}), **info["dropped"]}
                worst = sorted(counts, key=lambda name: -counts[name])
                reasons = ", ".join(f"{counts[name]:,} {name}" for name in worst)
                return f"no pair was left after {stage} ({reasons or 'no pair came in'})"
        return "no pair was left"

    def watched(self) -> list[Watched]:
        attempts = self.fetching.attempts
        first = attempts.first()
        passes = [(number - first, attempts.images(number)) for number in attempts.passes()]
        images = [
            Watched(
                label_of_pass(number),
                folder,
                counted="images",
                live=PassFigures(folder, self._selected_rows if number == 0 else lambda: None),
                optional=number % PASSES > 0,
            )
            for number, folder in passes
        ]
        robots = self.fetching.robots
        read = [Watched("robots.txt archives", robots.answers, robots.count)] if robots is not None else []
        return [*read, Watched("fetch hosts", self.fetching.hosts), *images]

    def _selected_rows(self) -> int | None:
        info = self.fetching.attempts.selected.info()
        return info["rows_out"] if info else None


def count_refusals(table: pa.Table) -> dict[str, Any]:
    """The ledger of rights of rows that hold all URLs of their hosts."""
    found: dict[str, Any] = {}
    is_refused = pc.equal(table["rights"], REFUSED).fill_null(False)
    refused = table.filter(is_refused)
    seen = _count_names(table["rights_consulted"])
    allowed = _count_names(table["rights_protocol"].filter(pc.invert(is_refused)))
    for protocol in (name for name in PROTOCOLS if seen[name]):
        some = refused.filter(pc.equal(refused["rights_protocol"], protocol)).sort_by("row_hash")
        first = some.slice(0, rights_ledger.EXAMPLES).to_pylist()
        found[protocol] = {
            "seen": seen[protocol],
            "allowed": allowed[protocol],
            "pairs": some.num_rows,
            "hosts": len(np.unique(host_hashes(hashing.as_array(some["url"])))),
            "spared": pc.sum(pc.and_(some["http_status"].is_null(), some["image_sha256"].is_null())).as_py() or 0,
            "examples": [
                {"hash": f"{row['row_hash']:016x}", "url": row["url"], "evidence": row["error"]} for row in first
            ],
        }
    return found


def _count_names(column: pa.ChunkedArray) -> collections.Counter[str]:
    """How often each name stands in a column of names with commas between them."""
    counts: collections.Counter[str] = collections.Counter()
    for item in pc.value_counts(column.drop_null().combine_chunks()).to_pylist():
        counts.update(dict.fromkeys(item["values"].split(","), item["counts"]))
    return counts


def label_of_pass(number: int) -> str:
    """The name of a pass in the progress."""
    attempt, in_round = divmod(number, PASSES)
    label = "fetch images" if not attempt else f"fetch images, attempt {attempt + 1}"
    return f"{label}, round {in_round}" if in_round else label


def count_outcomes(table: pa.Table, tally: Tally) -> None:
    """Adds rows to the ledger. Failed rows are drops; their status class is the reason."""
    tally.ledger.rows_in += table.num_rows
    good = pc.equal(table["status"], "ok")
    tally.passed(table["row_hash"].filter(good).to_numpy())
    failed = table.filter(pc.invert(good))
    for status in sorted(set(failed["status"].to_pylist())):
        some = failed.filter(pc.equal(failed["status"], status)).combine_chunks()
        if status in ("forgotten", BLOCKED):  # counted, but never among the rejected rows
            tally.ledger.drop(status, some.num_rows)
            continue
        columns = (hashing.as_array(some[name]) for name in ("url", "text", "uid"))
        tally.drop(status, *columns)

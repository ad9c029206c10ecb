"""Steps of fetch that read the robots.txt archives of a crawl (`--robots-archive`) before any host is asked.

    balance's parts --WantedRobots--> the URLs of the robots.txt of all hosts to be fetched from
    archives --ReadRobots--> 00007-000.rows, one row an answer, and 00007.kept, the answers of wanted hosts
    rows --by hash--> IndexRobots: 00003.hash.., the newest answer of each URL

Any host of the archives can be looked up, since a redirect may lead to it: the answers of hosts that are not wanted are
read from the archive again. The memory is bounded by a bucket of the index and a record of an archive.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.engine import remote, shuffle_files, storage
from pipeline.engine.input_errors import InputError, TransferError
from pipeline.engine.ledger import Ledger
from pipeline.engine.remote import RemoteSettings
from pipeline.engine.rows import Rows
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StepFolder
from pipeline.fetching.archived import PATH, REDIRECTS, Capture
from pipeline.fetching.errors import Failure
from pipeline.fetching.robots import LARGEST
from pipeline.fetching.targets import PORTS, Target, follow, parse
from pipeline.sources.archive import Record, http_response, read_at, read_records
from pipeline.sources.base import Input
from pipeline.stages.run import AGAIN

KINDS = frozenset({"response", "resource"})
MAX_RECORD = 16 << 20  # bytes of a block that are read; a longer record is lost, and counted
MOST_TARGETS = 4096  # latest targets of redirects of an archive, which are answers about a host, too
KEPT_BYTES, KEPT_ROWS = 8 << 20, 1 << 16  # of a batch of answers that are kept
ARCHIVES_PER_BUCKET = 512  # of the index; an archive of Common Crawl has some hundred answers

ROBOTS_PLACES = pa.schema(
    [
        pa.field("hash", pa.uint64(), False),  # of the URL
        pa.field("date", pa.int64(), False),  # seconds since 1970
        pa.field("source", pa.int32(), False),  # number of the archive
        pa.field("offset", pa.int64(), False),  # of the record
        pa.field("kept", pa.int64(), False),  # batch * KEPT_ROWS + row of the file of kept answers; -1: not kept
    ]
)
ROBOTS_ANSWERS = pa.schema(
    [
        pa.field("url", pa.string(), False),
        pa.field("status", pa.int32(), False),
        pa.field("location", pa.string(), False),
        pa.field("body", pa.binary(), False),
        pa.field("date", pa.float64(), False),
        pa.field("record", pa.string(), False),
    ]
)


class Answer(NamedTuple):
    """An answer as an archive holds it. `record` names the record."""

    url: str
    status: int
    location: str
    body: bytes
    date: float
    record: str

    def capture(self, archive: str) -> Capture:
        """The answer as the client takes it."""
        place = f"{self.record}, archive {archive}"
        return Capture(self.status, self.location, self.body, self.date, place)


def read_answers(path: str, *, ledger: Ledger, size: int | None = None) -> Iterator[tuple[int, Answer]]:
    """(offset, answer) of each record of an archive that tells something about a robots.txt.

    These are the answers to requests for /robots.txt, and those at the targets of their redirects. An answer 5xx or 429
    tells nothing, since the crawler could not read the file.

    Args:
        path: of the archive, or its URL.
        ledger: counts records in, lost ones by reason, and answers that tell nothing.
        size: bytes of the file, if a listing gave them.
    """
    targets: dict[str, None] = {}
    for record in read_records(path, ledger=ledger, kinds=KINDS, max_record=MAX_RECORD, expected_bytes=size):
        at = _target(record.url)
        if at is None or (at.path != PATH and at.url not in targets):
            continue
        answer = _answer(record, at)
        if answer is None:
            ledger.notes["no_answer"] += 1
            continue
        targets.update(dict.fromkeys(_goals(at, answer.location)))
        while len(targets) > MOST_TARGETS:
            del targets[next(iter(targets))]
        yield record.offset, answer


def _target(url: str) -> Target | None:
    try:
        return parse(url)
    except Failure:
        return None


def _goals(at: Target, location: str) -> list[str]:
    """The URL that a redirect leads to; none for an answer that is no redirect."""
    try:
        return [follow(at, location).url] if location else []
    except Failure:
        return []


def _answer(record: Record, at: Target) -> Answer | None:
    response = http_response(record, max_body=LARGEST)
    if response is None:
        return None
    location = response.headers.get("location", "") if response.status in REDIRECTS else ""
    if not (response.status == 200 or location or (400 <= response.status < 500 and response.status != 429)):
        return None
    body = response.body if response.status == 200 else b""
    fields = record.headers
    date, words = date_of(fields.get("warc-date") or fields.get("date") or "")
    name = fields.get("warc-record-id") or f"at byte {record.offset}"
    return Answer(at.url, response.status, location, body, date, f"record {name}{words and f' of {words}'}")


def date_of(text: str) -> tuple[float, str]:
    """(seconds since 1970, the date in words) of a WARC-Date or the date of an ARC record; (0, ""): it is none.

    WARC/1.1, section 5.4, has YYYY-MM-DDThh:mm:ss.sZ, also cut after the day. ARC has YYYYMMDDhhmmss.
    """
    text = text.strip()
    try:
        if text.isascii() and text.isdigit() and len(text) == 14:
            text = f"{text[:4]}-{text[4:6]}-{text[6:8]}T{text[8:10]}:{text[10:12]}:{text[12:]}"
        found = datetime.datetime.fromisoformat(text[:40])
        found = (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        return 0.0, ""
    return max(0.0, found.timestamp()), found.strftime("%Y-%m-%dT%H:%M:%SZ")


def hash_of(url: str) -> int:
    """A 64-bit hash of a URL. A reader compares the URL itself, too."""
    return xxhash.xxh3_64_intdigest(url.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class RobotsPlan:
    """What the steps share.

    Attributes:
        selected: balance's rows.
        wanted, answers, index: where the three steps write.
        archives: path of the list of archives.
        remote: how archives on servers are read, as a whole.
        patient: how a single record of such an archive is read.
        count: of the archives.
    """

    selected: Rows
    wanted: StepFolder
    answers: StepFolder
    index: StepFolder
    archives: str
    remote: RemoteSettings
    patient: RemoteSettings
    count: int

    @property
    def buckets(self) -> int:
        """The number of buckets of the index. The result does not depend on it."""
        return max(1, self.count // ARCHIVES_PER_BUCKET)


@functools.lru_cache(maxsize=2)
def load_archives(path: str) -> list[Input]:
    """The archives as `save_archives` wrote them."""
    return [Input(**{**item, "part": None}) for item in storage.read_list(path)]


def save_archives(path: str, archives: tuple[Input, ...]) -> None:
    """Writes the list of archives for the workers."""
    storage.write_list(path, [asdict(item) for item in archives])
    load_archives.cache_clear()


@dataclass(frozen=True)
class WantedRobots:
    """The only unit: the sorted hashes of the URLs of robots.txt of all hosts that are fetched from."""

    plan: RobotsPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.wanted

    def units(self) -> int:
        return 1

    def run(self, unit: int) -> dict[str, Any]:
        selected, wanted = self.plan.selected, set[int]()
        for table in selected.tables(["url"]):
            urls = table["url"]
            origins = pc.struct_field(pc.extract_regex(urls, r"^(?P<origin>[a-z]+://[^/?#]+)"), "origin")
            for origin in pc.unique(origins.drop_null()).to_pylist():
                wanted.update(map(hash_of, _robots_urls(origin)))
        storage.save_array(self.folder.file(unit, "hash"), np.sort(np.array(list(wanted), np.uint64)))
        return {"hosts": len(wanted)}


def _robots_urls(origin: str) -> Iterator[str]:
    """The URLs of the robots.txt that concern an origin: its own one, and that of the host's other scheme."""
    at = _target(origin + PATH)
    if at is None:
        return
    yield at.url
    if at.port == PORTS[at.scheme]:
        yield f"{'https' if at.scheme == 'http' else 'http'}://{at.host_header}{PATH}"


@dataclass(frozen=True)
class ReadRobots:
    """One unit for each archive: reads it once, in one stream."""

    plan: RobotsPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.answers

    def units(self) -> int:
        return self.plan.count

    def run(self, unit: int) -> dict[str, Any]:
        remote.configure(self.plan.remote)
        archive = load_archives(self.plan.archives)[unit]
        wanted = storage.map_array(self.plan.wanted.file(0, "hash"))
        ledger, rows = Ledger(), []
        goals: set[int] = set()  # of the redirects that are kept: their targets most often follow in the same archive
        with _Kept(self.folder.file(unit, "kept")) as kept:
            try:
                for offset, answer in read_answers(archive.path, ledger=ledger, size=archive.bytes):
                    number = hash_of(answer.url)
                    at = np.searchsorted(wanted, np.uint64(number))
                    keeps = number in goals or (at < len(wanted) and wanted[at] == number)
                    if keeps and answer.location:
                        goals.update(map(hash_of, _goals(parse(answer.url), answer.location)))
                    rows.append((number, int(answer.date), unit, offset, kept.add(answer) if keeps else -1))
            except InputError as error:
                remedy = f" {AGAIN}" if isinstance(error, TransferError) else ""
                raise type(error)(f"--robots-archive: {error}.{remedy}") from error
        batch = pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), ROBOTS_PLACES, strict=True)]
            if rows
            else [pa.array([], field.type) for field in ROBOTS_PLACES],
            schema=ROBOTS_PLACES,
        )
        bucket = (batch["hash"].to_numpy() % np.uint64(self.plan.buckets)).astype(np.int64)
        shuffle_files.write(self.folder.file(unit, "rows", 0), shuffle_files.cut(batch, bucket, self.plan.buckets))
        return {"parts": 1, "answers": len(rows), "kept": kept.rows, "ledger": ledger.to_json()}


class _Kept:
    """Writes answers to a file of Arrow batches."""

    def __init__(self, path: str) -> None:
        self._writing = storage.writing_batches(path, ROBOTS_ANSWERS)
        self._pending: list[Answer] = []
        self._bytes = self._batches = self.rows = 0

    def __enter__(self) -> _Kept:
        self._out = self._writing.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._flush()
        self._writing.__exit__(kind, error, trace)

    def add(self, answer: Answer) -> int:
        """Adds an answer; returns its place."""
        if self._bytes > KEPT_BYTES or len(self._pending) == KEPT_ROWS:
            self._flush()
        self._pending.append(answer)
        self._bytes += len(answer.body)
        self.rows += 1
        return self._batches * KEPT_ROWS + len(self._pending) - 1

    def _flush(self) -> None:
        if self._pending:
            columns = zip(*self._pending, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, ROBOTS_ANSWERS, strict=True)]
            self._out.write_batch(pa.RecordBatch.from_arrays(arrays, schema=ROBOTS_ANSWERS))
            self._batches += 1
        self._pending, self._bytes = [], 0


@dataclass(frozen=True)
class IndexRobots:
    """One unit for each bucket of URLs: the newest answer of each URL, sorted by hash."""

    plan: RobotsPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.index

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.answers, "rows")

    def units(self) -> int:
        return self.plan.buckets

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        if not self.plan.answers.total("answers"):
            raise InputError(
                f"--robots-archive: no answer to a request for /robots.txt is in its {self.plan.count:,} files"
            )
        table = shuffle_files.table(messages, ROBOTS_PLACES)
        columns = {name: table[name].to_numpy() for name in ROBOTS_PLACES.names}
        order = np.lexsort((-columns["offset"], -columns["source"], -columns["date"], columns["hash"]))
        hashes = columns["hash"][order]
        newest = order[np.concatenate([np.ones(min(1, len(hashes)), bool), hashes[1:] != hashes[:-1]])]
        for name in ("hash", "source", "offset", "kept"):
            storage.save_array(self.folder.file(unit, name), columns[name][newest])
        return {"urls": len(newest)}


@dataclass(frozen=True)
class ArchivedRobots:
    """Finds the answer for a URL in the index. One value is equal to another for the same run."""

    plan: RobotsPlan

    def __call__(self, url: str) -> Capture | None:
        """The newest telling answer for a URL; None: no archive holds one.

        Raises:
            Failure: its archive cannot be read now. A later attempt may succeed.
        """
        number = hash_of(url)
        hashes, sources, offsets, places = _mapped(self.plan.index, number % self.plan.buckets)
        at = int(np.searchsorted(hashes, np.uint64(number)))
        if at >= len(hashes) or hashes[at] != number:
            return None
        archive, place = load_archives(self.plan.archives)[int(sources[at])], int(places[at])
        if place >= 0:
            answer: Answer | None = _kept_answer(self.plan.answers.file(int(sources[at]), "kept"), place)
        else:
            answer = self._read_again(archive, int(offsets[at]))
        return answer.capture(archive.name) if answer is not None and answer.url == url else None

    def _read_again(self, archive: Input, offset: int) -> Answer | None:
        remote.configure(self.plan.patient)
        try:
            record = read_at(archive.path, offset, max_record=MAX_RECORD)
        except (InputError, OSError) as error:
            raise Failure("tcp", f"the robots archive: {error}", retryable=True) from error
        at = _target(record.url) if record is not None else None
        return _answer(record, at) if record is not None and at is not None else None


@functools.lru_cache(maxsize=256)
def _mapped(index: StepFolder, bucket: int) -> tuple[np.ndarray, ...]:
    return tuple(storage.map_array(index.file(bucket, name)) for name in ("hash", "source", "offset", "kept"))


def _kept_answer(path: str, place: int) -> Answer:
    number, row = divmod(place, KEPT_ROWS)
    with pa.memory_map(storage.check(path)) as source:
        item = pa.ipc.open_file(source).get_batch(number).slice(row, 1).to_pylist()[0]
    return Answer(**item)


def facts_of_archives(plan: RobotsPlan) -> dict[str, Any]:
    """What the archives held: {"archives", "answers", "urls", "records_lost", "cut_files", "untelling"}."""
    found = [Ledger.from_json(manifest["ledger"]) for _, manifest in plan.answers.manifests()]
    return {
        "archives": plan.count,
        "answers": plan.answers.total("answers"),
        "urls": plan.index.total("urls"),
        "records_lost": sum(sum(ledger.records_dropped.values()) for ledger in found),
        "cut_files": sum(ledger.notes["cut_file"] for ledger in found),
        "untelling": sum(ledger.notes["no_answer"] for ledger in found),  # 5xx, 429, and what is no answer of HTTP
    }

"""img2dataset's own Downloader runs the shard; what it fetches with, resizes with and writes with is ours.

The class is loaded from the installed package without running the package's `__init__` (which would load pandas,
albumentations and, where installed, torch), under a private name and afresh for every shard: its module looks its fetch
function up among its globals, so a module of its own makes the injected function nobody else's.

Rows go in by an Arrow file in fsspec's memory file system (it deletes what it has read), and its per-shard statistics
come out there. It never raises; so its verdict, its statistics and the number of outcomes are checked here.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import os
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline import schema
from pipeline.engine import storage
from pipeline.fetching.client import Client, shared_client
from pipeline.fetching.errors import OK, Failure
from pipeline.fetching.helper import Decoder
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.picture import Picture
from pipeline.fetching.targets import host_of

PACKAGE = "_openwit_img2dataset"
KEPT_IN_MEMORY = 64 << 20  # encoded images of a shard; beyond, they wait in a temporary file
MOST_UNDECODED = 128 << 20  # bytes of bodies that wait for the decoder; beyond, no further download starts

_numbers = itertools.count()
_import_lock = threading.Lock()

Archived = Callable[[str], bytes | None]


@dataclasses.dataclass(slots=True)
class _Outcome:
    """What became of one row."""

    status: str = OK
    error: str | None = None
    retryable: bool = False
    http_status: int | None = None
    final_url: str | None = None
    sha256: bytes | None = None
    picture: Picture | None = None  # without its bytes once they are stored
    place: int = 0  # in the spool
    size: int = 0
    stored_sha256: bytes | None = None  # of the encoded image
    stored_xxh3: int | None = None

    def fail(self, failure: Failure) -> None:
        self.status, self.error, self.retryable = failure.status, str(failure), failure.retryable
        self.http_status = failure.http_status if failure.http_status is not None else self.http_status
        self.final_url = failure.final_url or self.final_url


class _Body(io.BytesIO):
    """The bytes of an image, and the row they belong to (the resizer is handed nothing but the stream)."""

    def __init__(self, body: bytes, row: int) -> None:
        super().__init__(body)
        self.row = row
        self.size = len(body)


class _Shard:
    """The three parts that are injected into the Downloader, around the outcomes of one call."""

    def __init__(
        self, order: list[int], client: Client, decoder: Decoder, archived: Archived | None, spool: IO[bytes]
    ) -> None:
        self.order = order  # of the downloads: position in the Downloader's file -> row
        self.outcomes = [_Outcome() for _ in order]
        self.written = [False] * len(order)
        self._client = client
        self._decoder = decoder
        self._archived = archived
        self._archive_lock = threading.Lock()
        self._spool = spool
        self.cancelled = False
        self.problem: Exception | None = None
        self._undecoded = 0
        self._room = threading.Condition()
        self._backlog: threading.Semaphore | None = None

    def download_image(self, row: tuple[int, str], *_: Any, **__: Any) -> tuple[int, _Body | None, str | None]:
        """In place of img2dataset's function of this name; called from its threads."""
        key, url = row
        outcome = self.outcomes[self.order[key]]
        try:
            if self.cancelled:
                raise Failure("internal", "the run was interrupted")
            body = self._from_archive(url)
            if body is None:
                with self._room:
                    self._room.wait_for(lambda: self._undecoded < MOST_UNDECODED or self.cancelled)
                fetched = self._client.fetch(url)
                body, outcome.http_status, outcome.final_url = fetched.body, fetched.http_status, fetched.final_url
        except Failure as failure:
            outcome.fail(failure)
            return key, None, failure.status
        except Exception as error:  # a bug of ours: this row is lost, the shard is not
            outcome.fail(Failure("internal", f"{type(error).__name__}: {error}"))
            return key, None, outcome.status
        with self._room:
            self._undecoded += len(body)
        return key, _Body(body, self.order[key]), None

    def resize(
        self, stream: _Body, _: Any = None
    ) -> tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]:
        """In place of img2dataset's Resizer; called from the thread that runs the shard."""
        outcome = self.outcomes[stream.row]
        body = stream.getvalue()
        outcome.sha256 = hashlib.sha256(body).digest()
        try:
            if self.cancelled:
                raise Failure("internal", "the run was interrupted")
            picture = self._decoder.decode(body)
        except Failure as failure:
            outcome.fail(failure)
            return None, None, None, None, None, failure.status
        except Exception as error:
            outcome.fail(Failure("internal", f"{type(error).__name__}: {error}"))
            return None, None, None, None, None, outcome.status
        finally:
            with self._room:
                self._undecoded -= stream.size
                self._room.notify_all()
        outcome.picture = dataclasses.replace(picture, jpeg=b"")
        return picture.jpeg, picture.width, picture.height, picture.original_width, picture.original_height, None

    def writer(self, *_: Any) -> _Shard:
        """In place of img2dataset's sample writer class."""
        return self

    def write(self, jpeg: bytes | None, _key: str, _caption: str | None, meta: dict[str, Any]) -> None:
        """Takes a row's image, in the order of completion."""
        row = meta["row"]
        if jpeg is not None:
            outcome = self.outcomes[row]
            try:
                outcome.place = self._spool.seek(0, os.SEEK_END)
                outcome.size = self._spool.write(jpeg)
                outcome.stored_sha256 = hashlib.sha256(jpeg).digest()
                outcome.stored_xxh3 = xxhash.xxh3_64_intdigest(jpeg)
            except OSError as error:
                self.problem = error  # the Downloader prints what a writer raises, and goes on
                raise
        self.written[row] = True

    def close(self) -> None:
        """The Downloader's last word."""

    def semaphore(self, permits: int) -> threading.Semaphore:
        """In place of threading.Semaphore: what bounds the Downloader's backlog, kept here for `cancel`."""
        self._backlog = threading.Semaphore(permits)
        return self._backlog

    def cancel(self) -> None:
        """Downloads that have not begun will not begin; the Downloader comes to its end (its thread pool, left waiting
        for the semaphore, would hang the exit of the process)."""
        with self._room:
            self.cancelled = True
            self._room.notify_all()
        if self._backlog is not None:
            self._backlog.release(len(self.order) + 1)

    def _from_archive(self, url: str) -> bytes | None:
        if self._archived is None:
            return None
        with self._archive_lock:
            return self._archived(url)


def fetch_rows(
    rows: pa.RecordBatch,
    *,
    options: FetchOptions,
    raw_path: str,
    archived: Archived | None = None,
) -> pa.RecordBatch:
    """Fetches the images of a batch, decodes them, and writes the encoded ones to `raw_path` in the order of uid.

    The rows of a host must be in this call or in neighbouring calls of the same process: the limits for a host are
    held there.

    Args:
        rows: schema SELECTED (or any that has uid and url; every column is carried through).
        options: bounds and manners.
        raw_path: where the JPEGs go, one after another; appears whole or not at all, and not where there is no image.
        archived: the bytes of an image that lies in the web archive itself; None: it must be downloaded.

    Returns:
        Schema FETCHED, one row an input row, sorted by uid.

    Raises:
        OSError: the raw file could not be written.
        RuntimeError: the Downloader lost rows.
    """
    rows = rows.take(pc.sort_indices(rows, sort_keys=[("uid", "ascending"), ("url", "ascending")]))
    client = shared_client(options)
    client.begin()
    with tempfile.SpooledTemporaryFile(max_size=KEPT_IN_MEMORY) as spool, _decoder(options) as decoder:
        shard = _Shard(_spread(rows["url"].to_pylist()), client, decoder, archived, spool)
        if rows.num_rows:
            _run(shard, rows["url"], options)
        offsets = _store(shard.outcomes, spool, raw_path)
    return _table(rows, shard.outcomes, offsets)


def load_downloader() -> types.ModuleType:
    """A fresh copy of the module `img2dataset.downloader`, loaded without its package's `__init__`."""
    with _import_lock, _without_wandb():
        if PACKAGE not in sys.modules:
            found = importlib.util.find_spec("img2dataset")  # finds, does not run
            if found is None or not found.submodule_search_locations:
                raise ImportError("img2dataset is not installed")
            package = types.ModuleType(PACKAGE, "img2dataset without its __init__")
            package.__path__ = list(found.submodule_search_locations)
            sys.modules[PACKAGE] = package
        spec = importlib.util.find_spec(f"{PACKAGE}.downloader")
        if spec is None or spec.loader is None:
            raise ImportError("img2dataset has no downloader: version 1.47 is needed")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@contextlib.contextmanager
def _without_wandb() -> Iterator[None]:
    """img2dataset's logger imports wandb (0.5 CPU s) for a process we do not start: an empty stand-in is enough."""
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = types.ModuleType("wandb")
    try:
        yield
    finally:
        del sys.modules["wandb"]


def _run(shard: _Shard, urls: pa.Array, options: FetchOptions) -> None:
    """Hands the shard to the Downloader, and does not take its word for it."""
    order = pa.array(shard.order, pa.int64())
    folder = f"memory://openwit-fetch/{os.getpid()}-{next(_numbers)}"
    import fsspec

    memory = fsspec.filesystem("memory")
    module = load_downloader()
    module.download_image = shard.download_image  # type: ignore[attr-defined]
    module.Semaphore = shard.semaphore  # type: ignore[attr-defined]
    downloader = module.Downloader(
        sample_writer_class=shard.writer,
        resizer=shard.resize,
        thread_count=max(1, min(options.threads, len(order))),
        save_caption=False,
        extract_exif=False,
        output_folder=folder,
        column_list=["url", "row"],
        timeout=options.deadline_s,
        number_sample_per_shard=max(2, len(order)),
        oom_shard_count=1,
        compute_hash=None,  # taken by the resizer
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,  # the client's own, which know what is worth it
        user_agent_token=None,
        disallowed_header_directives=None,
    )
    try:
        table = pa.table({"url": urls.take(order), "row": order})
        with memory.open(f"{folder}/rows.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
        done = _call(downloader, (0, f"{folder}/rows.arrow"), shard)
        stats = json.loads(memory.cat_file(f"{folder}/0_stats.json")) if done else {}
    finally:
        with contextlib.suppress(FileNotFoundError):
            memory.rm(folder, recursive=True)
    lost = shard.written.count(False)
    if shard.problem is not None:
        raise shard.problem
    if not done or lost or stats.get("count") != len(order):
        raise RuntimeError(
            f"img2dataset's Downloader lost {lost} of {len(order)} rows (finished: {done}); see its output"
        )
    images = sum(outcome.status == OK for outcome in shard.outcomes)
    if stats["successes"] != images:
        raise RuntimeError(f"img2dataset's Downloader counted {stats['successes']} images, {images} came out")


def _call(downloader: Callable[[Any], tuple[bool, Any]], row: tuple[int, str], shard: _Shard) -> bool:
    """Runs the Downloader in a thread and waits: an interrupt in the middle of its loop would hang its thread pool."""
    verdicts: list[bool] = []
    thread = threading.Thread(target=lambda: verdicts.append(downloader(row)[0]), name="img2dataset", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        shard.cancel()
        raise
    return verdicts == [True]


def _spread(urls: list[str]) -> list[int]:
    """The order of the downloads: the first URL of every host, then the second, ... so that no thread waits for a host
    while others are idle."""
    seen: dict[str, int] = {}
    turns = []
    for url in urls:
        host = host_of(url)
        seen[host] = seen.get(host, 0) + 1
        turns.append(seen[host])
    return sorted(range(len(urls)), key=turns.__getitem__)


def _store(outcomes: list[_Outcome], spool: IO[bytes], raw_path: str) -> list[int | None]:
    """Writes the images in the order of the rows; returns where each one begins."""
    offsets: list[int | None] = [None] * len(outcomes)
    if not any(outcome.status == OK for outcome in outcomes):
        return offsets
    end = 0
    with storage.writing(raw_path) as raw:
        for row, outcome in enumerate(outcomes):
            if outcome.status != OK:
                continue
            spool.seek(outcome.place)
            raw.write(spool.read(outcome.size))
            offsets[row] = end
            end += outcome.size
    return offsets


def _table(rows: pa.RecordBatch, outcomes: list[_Outcome], offsets: list[int | None]) -> pa.RecordBatch:
    """The input's columns and those of `schema.FETCHED` beside them."""

    def picture(name: str) -> list[Any]:
        return [getattr(o.picture, name) if o.picture is not None else None for o in outcomes]

    columns: dict[str, list[Any]] = {
        "status": [o.status for o in outcomes],
        "error": [o.error for o in outcomes],
        "retryable": [o.retryable for o in outcomes],
        "http_status": [o.http_status for o in outcomes],
        "image_sha256": [o.sha256 for o in outcomes],
        "image_offset": offsets,
        "image_bytes": [o.size if o.status == OK else None for o in outcomes],
        "stored_sha256": [o.stored_sha256 for o in outcomes],
        "stored_xxh3": [o.stored_xxh3 for o in outcomes],
        "final_url": [o.final_url for o in outcomes],
    }
    for name in ("width", "height", "original_width", "original_height", "original_format", "phash"):
        columns[name] = picture(name)
    fields = [schema.FETCHED.field(name) for name in schema.FETCHED.names if name in columns]
    made = [pa.array(columns[field.name], field.type) for field in fields]
    return pa.RecordBatch.from_arrays([*rows.columns, *made], schema=pa.schema([*rows.schema, *fields]))


_idle: dict[FetchOptions, list[Decoder]] = {}
_idle_lock = threading.Lock()


@contextlib.contextmanager
def _decoder(options: FetchOptions) -> Iterator[Decoder]:
    """A decoder of this process that nobody else is using; its child lives on for the next call."""
    with _idle_lock:
        decoder = (_idle.get(options) or [Decoder(options)]).pop()
    try:
        yield decoder
    except BaseException:
        decoder.close()  # an interrupted call's thread may still be talking to it
        raise
    with _idle_lock:
        _idle.setdefault(options, []).append(decoder)


@atexit.register
def close_decoders() -> None:
    """Ends the decoding processes of this process."""
    with _idle_lock:
        for decoders in _idle.values():
            for decoder in decoders:
                decoder.close()
        _idle.clear()


def _forget_decoders() -> None:
    """A forked child must not talk through its parent's pipes."""
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_decoders)

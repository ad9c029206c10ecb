"""img2dataset's own Downloader runs the shard. Its functions to fetch, resize and write are replaced by ours.

The class is loaded from the installed package without running the package's `__init__`, which would load pandas,
albumentations and torch. It is loaded under a private name, anew for every shard: its module finds the fetch function
among its globals, so each shard needs a module of its own.

The Downloader reads the rows from an Arrow file in fsspec's memory file system and then deletes the file. It writes its
statistics of the shard there. It never raises. So its result, its statistics and the number of outcomes are checked.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
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
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.engine import fence, storage
from pipeline.fetching.answer import Body
from pipeline.fetching.archived import Captures
from pipeline.fetching.client import Client, shared_client
from pipeline.fetching.errors import OK, Failure, NetworkError
from pipeline.fetching.helper import Decoder
from pipeline.fetching.memory import SMALL, Share
from pipeline.fetching.network import WITNESSES
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.outcome import FIELDS, Outcome, columns
from pipeline.fetching.picture import NeedsMemory, Picture, StoredImage
from pipeline.fetching.pieces import Pieces, opened
from pipeline.fetching.targets import host_of, parse
from pipeline.fetching.verdict import IN_ANSWER, IN_IMAGE, Verdict
from pipeline.text import rights

PACKAGE = "_openwit_img2dataset"

TAKEN_AT_ONCE = 8  # images out of other sets: they are not counted yet in the memory of the fetch
LOOK_S = 0.5  # seconds between two looks at a call under way

_numbers = itertools.count()
_import_lock = threading.Lock()

Archived = Callable[[str], bytes | None]
Stored = Callable[[str], StoredImage | None]
Forgotten = Callable[[bytes, str | None], bool]


class Blocked(Protocol):
    """Says which images must not be kept."""

    def served(self, body: Body, sha256: bytes, final_url: str | None) -> bool:
        """True if the bytes of an image as served, or its URL after redirects, are listed."""
        ...

    def shown(self, picture: Picture) -> bool:
        """True if what a picture shows is listed."""
        ...


class Watch(Protocol):
    """Is told how far a call is. Its methods are called from several threads."""

    def add(self, status: str) -> None:
        """A row is finished."""
        ...

    def set_notice(self, notice: str) -> None:
        """The call waits, for this reason; "": it does not wait."""
        ...


class _Stream(io.BytesIO):
    """The decoded picture of a row, in place of the stream with its bytes. The resizer gets only this stream."""

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        self.picture = picture


class _Shard:
    """The three parts that are injected into the Downloader, around the outcomes of one call."""

    def __init__(
        self,
        order: list[int],
        client: Client,
        decoder: Decoder,
        archived: Archived | None,
        pieces: Pieces,
        watch: Watch | None,
        licences: dict[int, tuple[str, str]],
        forgotten: Forgotten | None,
        blocked: Blocked | None,
        stored: Stored | None,
    ) -> None:
        self.licences = licences  # row -> the page of an image, and the RSL licence that it names
        self.order = order  # of the downloads: position in the Downloader's file -> row
        self.outcomes = {row: Outcome() for row in order}
        self.written: set[int] = set()
        self._client = client
        self._decoder = decoder
        self._archived = archived
        self._archive_lock = threading.Lock()
        self._taking = threading.Semaphore(TAKEN_AT_ONCE)
        self._decoder_lock = threading.Lock()
        self.pieces = pieces
        self._watch = watch
        self._forgotten = forgotten
        self._blocked = blocked
        self._stored = stored
        self.cancelled = False
        self.problem: Exception | None = None
        self._backlog: threading.Semaphore | None = None

    def download_image(self, row: tuple[int, str], *_: Any, **__: Any) -> tuple[int, _Stream | None, str | None]:
        """Replaces img2dataset's function of this name. Its threads call it. The picture is decoded at once."""
        key, url = row
        outcome = self.outcomes[self.order[key]]
        verdict = Verdict(self._client.options.ignore_rights)
        try:
            self._check_not_cancelled()
            picture = self._taken(url, outcome, verdict)
            if picture is None:
                if self.order[key] in self.licences:
                    self._client.check_page(*self.licences[self.order[key]], verdict)
                with self._client.memory.share() as share:
                    picture = self._picture(url, outcome, share, verdict)
            outcome.settle(verdict)
            outcome.picture = dataclasses.replace(picture, jpeg=b"")
            return key, _Stream(picture), None
        except Failure as failure:
            outcome.fail(failure, verdict)
        except NetworkError as error:
            self.problem = error
            self.cancel()
        except Exception as error:  # a bug of ours costs this row, not the shard
            outcome.fail(Failure("internal", f"{type(error).__name__}: {error}"))
        return key, None, outcome.status

    def _check_not_cancelled(self) -> None:
        if self.cancelled:
            raise Failure("internal", "the run was interrupted")

    def _taken(self, url: str, outcome: Outcome, verdict: Verdict) -> Picture | None:
        """An image that another set has stored; None: no set has. Nothing is sent to any server.

        What that set knows of the image holds: its rights were asked when it was fetched.
        """
        if self._stored is None:
            return None
        with self._taking:
            found = self._stored(url)
        if found is None:
            return None
        outcome.final_url = found.final_url
        for digest in (found.noted_sha256, found.image_sha256):
            if digest is not None:
                self._check_listed(found.jpeg, digest, outcome)
        if found.image_sha256 is not None:
            outcome.image_sha256 = found.image_sha256
        self._client.check_archives(parse(url), verdict)
        verdict.consult(*found.consulted)
        for protocol in found.allowed_by:
            verdict.allow(protocol)
        with self._client.memory.share() as share:
            share.grow(len(found.jpeg))
            share.complete()
            try:
                decoded = self._ask_decoder(found.jpeg, SMALL)
            except NeedsMemory as needs:
                share.shrink(0)
                share.wait_for(needs.size + len(found.jpeg))
                decoded = self._ask_decoder(found.jpeg, needs.size)
        picture = found.picture(decoded)
        self._check_shown(picture, outcome)
        return picture

    def _body(self, url: str, outcome: Outcome, share: Share, verdict: Verdict) -> Body:
        body = self._from_archive(url, share)
        if body is not None:
            verdict.consult(*IN_ANSWER, "rsl")  # gather listed the image after it had read its headers
            return body
        self._check_not_cancelled()
        fetched = self._client.fetch(url, share)
        verdict.add(fetched.verdict)
        outcome.http_status, outcome.final_url = fetched.http_status, fetched.final_url
        return fetched.body

    def _from_archive(self, url: str, share: Share) -> bytes | None:
        if self._archived is None:
            return None
        share.grow(self._client.options.max_bytes)
        share.complete()
        with self._archive_lock:
            body = self._archived(url)
        share.shrink(len(body or b""))
        return body

    def _picture(self, url: str, outcome: Outcome, share: Share, verdict: Verdict) -> Picture:
        """Fetches and decodes, and notes what the image itself says."""
        picture = self._decoded(url, outcome, share, verdict)
        self._check_shown(picture, outcome)
        verdict.consult(*IN_IMAGE)
        for protocol in picture.allowed_by.split(",") if picture.allowed_by else ():
            verdict.allow(protocol)
        return picture

    def _check_listed(self, body: Body, digest: bytes, outcome: Outcome) -> None:
        """Refuses an image that was forgotten, or that is listed. `digest`: sha256 of its bytes as served."""
        if self._forgotten is not None and self._forgotten(digest, outcome.final_url):
            outcome.final_url = None
            raise Failure("forgotten", "this image was forgotten")
        if self._blocked is not None and self._blocked.served(body, digest, outcome.final_url):
            outcome.final_url = None
            raise Failure("blocklisted", "a list of --blocklist names this image")

    def _check_shown(self, picture: Picture, outcome: Outcome) -> None:
        """Refuses an image that is listed by what it shows."""
        if self._blocked is not None and self._blocked.shown(picture):
            outcome.image_sha256 = outcome.final_url = None
            raise Failure("blocklisted", "a list of --blocklist names what this image shows")

    def _decoded(self, url: str, outcome: Outcome, share: Share, verdict: Verdict) -> Picture:
        """Fetches and decodes. A large picture waits until there is memory for it, with its body in a file."""
        body = self._body(url, outcome, share, verdict)
        digest = hashlib.sha256(body).digest()
        self._check_listed(body, digest, outcome)
        outcome.image_sha256 = digest
        if outcome.http_status is None:  # from a web archive
            self._client.check_archives(parse(url), verdict)
        try:
            return self._ask_decoder(body, SMALL)
        except NeedsMemory as needs:
            size = needs.size
        if share.claim(size):
            return self._ask_decoder(body, size)
        with tempfile.TemporaryFile() as file:
            file.write(body)
            del body
            share.shrink(0)
            share.wait_for(size + file.tell())
            file.seek(0)
            return self._ask_decoder(file.read(), size)

    def _ask_decoder(self, body: Body, memory: int) -> Picture:
        with self._decoder_lock:
            self._check_not_cancelled()
            return self._decoder.decode(body, memory)

    def resize(
        self, stream: _Stream, _: Any = None
    ) -> tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]:
        """Replaces img2dataset's Resizer: the picture has its size already."""
        picture = stream.picture
        return picture.jpeg, picture.width, picture.height, picture.original_width, picture.original_height, None

    def writer(self, *_: Any) -> _Shard:
        """Replaces img2dataset's sample writer class."""
        return self

    def write(self, jpeg: bytes | None, _key: str, _caption: str | None, meta: dict[str, Any]) -> None:
        """Keeps the row's outcome and image. A row that an interrupt cut off is not kept."""
        row = meta["row"]
        outcome = self.outcomes[row]
        if self.cancelled or self.problem is not None:
            return
        if jpeg is not None:
            outcome.image_bytes = len(jpeg)
            outcome.stored_sha256 = hashlib.sha256(jpeg).digest()
            outcome.stored_xxh3 = xxhash.xxh3_64_intdigest(jpeg)
        try:
            self.pieces.add(row, outcome, jpeg)
        except (OSError, fence.FenceError) as error:
            self.problem = error  # `_run` raises it. The Downloader would print a traceback for each row, and go on
            self.cancel()
            return
        self.written.add(row)
        if self._watch is not None:
            self._watch.add(outcome.status)

    def close(self) -> None:
        """The Downloader calls this at its end. There is nothing to do."""

    def semaphore(self, permits: int) -> threading.Semaphore:
        """Replaces threading.Semaphore, which bounds the Downloader's backlog: `cancel` needs the object."""
        self._backlog = threading.Semaphore(permits)
        return self._backlog

    def look(self) -> None:
        """Keeps rows that have waited, and shows whether the call waits for the network.

        Raises:
            FenceError: the run has ended, so no site is asked any more.
        """
        self.pieces.confirm()
        self.pieces.write_old()
        if self._watch is not None:
            self._watch.set_notice(self._client.network.state())

    def cancel(self) -> None:
        """Stops all downloads that have not begun, and lets the Downloader end.

        Its thread pool would otherwise wait for the semaphore, and the process could not exit.
        """
        self.cancelled = True
        if self._backlog is not None:
            self._backlog.release(len(self.order) + 1)


def fetch_rows(
    rows: pa.RecordBatch,
    *,
    options: FetchOptions,
    raw_path: str,
    pieces_path: str | None = None,
    archived: Archived | None = None,
    again: bool = False,
    watch: Watch | None = None,
    forgotten: Forgotten | None = None,
    blocked: Blocked | None = None,
    captures: Captures | None = None,
    stored: Stored | None = None,
) -> pa.RecordBatch:
    """Fetches the images of a batch, decodes them, and writes the encoded ones to `raw_path` in the order of uid.

    All rows of a host must be in this call or in neighbouring calls of the same process, because the process holds the
    limits of a host.

    Args:
        rows: schema SELECTED (or any that has uid and url; every column is carried through).
        options: limits and politeness.
        raw_path: the file for the JPEGs, one after another. It appears whole or not at all; without images not at all.
        pieces_path: the file that keeps finished rows while the call runs; None: a temporary file. A call that finds
            the file of an interrupted call goes on where that one was. The caller removes it.
        archived: returns the bytes of an image that is in the web archive; None: the image must be downloaded.
        again: the rows failed before; a host that rests after failures is tried once more.
        watch: is told of each finished row.
        forgotten: (sha256 of the bytes as served, URL after redirects) -> True if the image must not be kept.
        blocked: the lists of images that must not be kept; None: there are none.
        captures: robots.txt as archives hold it. What they refuse is never requested.
        stored: returns the image that another set has stored; None: no set has it.

    Returns:
        Schema FETCHED and RETRY_AT, one row an input row, sorted by uid.

    Raises:
        OSError: the raw file could not be written.
        NetworkError: the network went away and did not come back.
        RuntimeError: the Downloader lost rows.
    """
    rows = _in_order(rows)
    client = shared_client(options)
    client.begin(again=again, captures=captures)
    urls = rows["url"].to_pylist()
    with opened(pieces_path) as file, _decoder(options) as decoder:
        confirm = functools.partial(fence.confirm, raw_path)
        pieces = Pieces(file, asked=_description(rows, options), options=repr(options).encode(), confirm=confirm)
        order = [row for row in _spread(urls) if row not in pieces.found]
        for row in [row for row, outcome in pieces.found.items() if outcome.status == OK][:WITNESSES]:
            client.network.remember(parse(urls[row]))
        licences = _page_licences(rows)
        shard = _Shard(order, client, decoder, archived, pieces, watch, licences, forgotten, blocked, stored)
        if watch is not None:
            for outcome in pieces.found.values():
                watch.add(outcome.status)
        if order:
            _run(shard, rows["url"], options)
        done = pieces.found | shard.outcomes
        outcomes = [done[row] for row in range(len(urls))]
        offsets = _store(outcomes, pieces, raw_path)
    return _with_outcomes(rows, outcomes, offsets)


def read_pieces(rows: pa.RecordBatch, *, options: FetchOptions, raw_path: str, pieces_path: str) -> pa.RecordBatch:
    """The rows that an interrupted `fetch_rows` had finished, as it would have returned them. It asks no server.

    Args:
        rows: of that call.
        options: as in `fetch_rows`. With another form of images no row counts.
        raw_path: gets the images, as in `fetch_rows`.
        pieces_path: the file that the call left behind.
    """
    rows = _in_order(rows)
    with opened(pieces_path) as file:
        pieces = Pieces(file, asked=_description(rows, options), options=repr(options).encode())
        done = sorted(pieces.found)
        outcomes = [pieces.found[row] for row in done]
        offsets = _store(outcomes, pieces, raw_path)
    return _with_outcomes(rows.take(pa.array(done, pa.int64())), outcomes, offsets)


def _in_order(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.take(pc.sort_indices(rows, sort_keys=[("uid", "ascending"), ("url", "ascending")]))


def _with_outcomes(rows: pa.RecordBatch, outcomes: list[Outcome], offsets: list[int | None]) -> pa.RecordBatch:
    made = columns(outcomes, offsets)
    return pa.RecordBatch.from_arrays([*rows.columns, *made], schema=pa.schema([*rows.schema, *FIELDS]))


def _page_licences(rows: pa.RecordBatch) -> dict[int, tuple[str, str]]:
    """Row -> (URL of the page, of the RSL licence that it names; "": no usable one), for the rows of pages with one."""
    if "opt_out" not in rows.schema.names:
        return {}
    named = pc.match_substring_regex(rows["opt_out"], rf"(^|,){rights.RSL}(,|$)").fill_null(False)
    return {
        row: (rows["page_url"][row].as_py(), rows["license"][row].as_py() or "")
        for row in named.to_numpy(zero_copy_only=False).nonzero()[0].tolist()
    }


def _description(rows: pa.RecordBatch, options: FetchOptions) -> bytes:
    """Tells one call from another: its rows, and the options that decide the form of an image."""
    form = (options.image_size, options.quality, options.max_pixels, options.min_side, options.max_aspect)
    words = [xxhash.xxh3_128_digest(str(value).encode()) for name in ("uid", "url") for value in rows[name].to_pylist()]
    return b"".join((repr(form).encode(), *words))


def load_downloader() -> types.ModuleType:
    """A fresh copy of the module `img2dataset.downloader`, loaded without its package's `__init__`."""
    with _import_lock, _without_wandb():
        if PACKAGE not in sys.modules:
            found = importlib.util.find_spec("img2dataset")  # finds the package without running it
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
    """Puts an empty module in place of wandb (0.5 CPU s to import): only a process that we do not start uses it."""
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = types.ModuleType("wandb")
    try:
        yield
    finally:
        del sys.modules["wandb"]


def _run(shard: _Shard, urls: pa.Array, options: FetchOptions) -> None:
    """Runs the Downloader on the shard, then checks its result.

    Raises:
        OSError: an image could not be stored.
        RuntimeError: the Downloader lost rows, or its statistics differ from the outcomes.
    """
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
        retries=0,  # the client retries, by the class of the failure
        user_agent_token=None,
        disallowed_header_directives=None,
    )
    try:
        table = pa.table({"url": urls.take(order), "row": order})
        with memory.open(f"{folder}/rows.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
        done = _call(downloader, (0, f"{folder}/rows.arrow"), shard)
        shard.pieces.write()
        stats = json.loads(memory.cat_file(f"{folder}/0_stats.json")) if done else {}
    finally:
        with contextlib.suppress(FileNotFoundError):
            memory.rm(folder, recursive=True)
    lost = len(order) - len(shard.written)
    if shard.problem is not None:
        raise shard.problem
    if not done or lost or stats.get("count") != len(order):
        raise RuntimeError(
            f"img2dataset's Downloader lost {lost} of {len(order)} rows (finished: {done}); see its output"
        )
    images = sum(outcome.status == OK for outcome in shard.outcomes.values())
    if stats["successes"] != images:
        raise RuntimeError(f"img2dataset's Downloader counted {stats['successes']} images, but {images} were stored")


def _call(downloader: Callable[[Any], tuple[bool, Any]], row: tuple[int, str], shard: _Shard) -> bool:
    """Runs the Downloader in a thread and waits: an interrupt inside its loop would leave its thread pool hanging."""
    verdicts: list[bool] = []
    thread = threading.Thread(target=lambda: verdicts.append(downloader(row)[0]), name="img2dataset", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(LOOK_S)
            shard.look()
    except BaseException:
        shard.cancel()
        shard.pieces.write()
        raise
    if shard.problem is not None:
        shard.pieces.write()
    return verdicts == [True]


def _spread(urls: list[str]) -> list[int]:
    """The order of the downloads: the first URL of every host, then the second, and so on.

    So no thread waits for a host while other hosts are idle.
    """
    seen: dict[str, int] = {}
    turns = []
    for url in urls:
        host = host_of(url)
        seen[host] = seen.get(host, 0) + 1
        turns.append(seen[host])
    return sorted(range(len(urls)), key=turns.__getitem__)


def _store(outcomes: list[Outcome], pieces: Pieces, raw_path: str) -> list[int | None]:
    """Writes the images in the order of the rows; returns the offset of each."""
    offsets: list[int | None] = [None] * len(outcomes)
    if not any(outcome.status == OK for outcome in outcomes):
        return offsets
    end = 0
    with storage.writing(raw_path) as raw:
        for row, outcome in enumerate(outcomes):
            if outcome.status != OK:
                continue
            raw.write(pieces.image(outcome))
            offsets[row] = end
            end += outcome.image_bytes or 0
    return offsets


_idle: dict[FetchOptions, list[Decoder]] = {}
_idle_lock = threading.Lock()


@contextlib.contextmanager
def _decoder(options: FetchOptions) -> Iterator[Decoder]:
    """A decoder that no other thread uses. Its child process stays for the next call."""
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
    """Forgets the parent's decoders in a forked child, which must not use its parent's pipes."""
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_decoders)

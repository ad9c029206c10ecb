"""Batches in an order whose state is one integer, the number of samples seen.

`Stream` (order.py) maps each place of an endless sequence to a sample. Step s takes the places s*B .. (s+1)*B - 1 for
any number of ranks, micro-batches and threads, so a run can resume on any number of processes. `Loader` decodes batches
ahead in threads. Decoding releases the interpreter's lock, so no worker processes are needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from clip_train import keyed
from clip_train.errors import BelowThreshold, UsageError
from clip_train.image import BadImage, decode, random_crop
from clip_train.index import Index, Rows, key_of
from clip_train.order import Stream
from clip_train.remote import ShardCache
from clip_train.text import PackedText, flatten, pack_flat, pad_flat
from clip_train.tokenizer import Tokenizer

SAMPLES_A_TASK = 16  # decoded by one task of the pool: ~10 ms of work
MAX_IMAGE_BYTES, MAX_TEXT_BYTES = 1 << 28, 1 << 16  # larger members are not read
MAX_JSON_BYTES = 1 << 20  # of a sample with several texts
_CROP, _CAPTION = 2, 9  # purposes of keyed draws


class ShardReader:
    """Reads byte ranges of many files from many threads, and keeps the files open."""

    def __init__(self, paths: tuple[str, ...], *, keep_open: int = 512) -> None:
        self._paths, self._keep_open = paths, keep_open
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int, window: int = 0) -> bytes:
        """`size` bytes at `offset`, or fewer at the end of the file. Only ShardCache uses the window."""
        file = self._files.get(shard)
        if file is not None:
            return os.pread(file, size, offset)
        file = os.open(self._paths[shard], os.O_RDONLY)
        with self._lock:
            if shard not in self._files and len(self._files) < self._keep_open:
                self._files[shard] = file
                return os.pread(file, size, offset)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def stop(self) -> None:
        """Does nothing: files need no download."""

    def close(self) -> None:
        """Closes all files. No thread may be reading."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def open_reader(index: Index) -> Reader:
    """A reader of samples in any order. With a URL, all shards have to fit into the cache at the same time."""
    if index.remote is None:
        return ShardReader(index.paths)
    cache, everything = ShardCache(index.remote), range(len(index.paths))
    try:
        cache.check_fits(everything)
    except UsageError as error:
        cache.close()
        raise UsageError(f"{error}. Or copy the shards to this machine") from None
    cache.want(0, everything)
    return cache


Reader = ShardReader | ShardCache
_MOST = {"image": MAX_IMAGE_BYTES, "text": MAX_TEXT_BYTES, "label": MAX_TEXT_BYTES}


def read_member(reader: Reader, index: Index, kind: str, sample: int) -> bytes:
    """The image, text or label of a sample. Only the beginning, if it is larger than the bound for its kind."""
    shard, offset, size = index.place(kind, sample)
    return reader.read(shard, offset, min(size, _MOST[kind]))


class BadSamples:
    """Counts unusable samples by reason, and stops the run when there are too many."""

    def __init__(self, *, limit: float, samples: int) -> None:
        self.reasons: Counter[str] = Counter()
        self.names: list[str] = []  # of the first ones
        self.seen = 0
        self._limit, self._at_least = limit, min(samples, 10_000)

    def add(self, reason: str, name: str) -> None:
        """Counts one bad sample."""
        self.reasons[reason] += 1
        if len(self.names) < 100:
            self.names.append(f"{name} ({reason})")

    def check(self, newly_seen: int) -> None:
        """Raises if the share of bad samples is above the limit, among those seen or among the first 10,000."""
        self.seen += newly_seen
        bad = self.reasons.total()
        if bad > self._limit * max(self.seen, self._at_least):
            raise BelowThreshold(
                f"{bad} of {self.seen} samples could not be used ({_listed(self.reasons)}), more than --max-bad "
                f"{self._limit:g} allows; the first: {', '.join(self.names[:3])}"
            )

    def to_json(self) -> dict[str, int]:
        """Counts by reason."""
        return dict(sorted(self.reasons.items()))


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


class BadSample(Exception):
    """A sample that cannot be used. The message is the reason, one word."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank. A bad sample keeps its row, with a black image and no words; `good` excludes it."""

    images: torch.Tensor  # (b, S, S, 3) uint8
    text: PackedText | torch.Tensor  # b captions
    samples: np.ndarray  # (b,) int64, into the index
    epochs: np.ndarray  # (b,) int64
    good: torch.Tensor | None  # usable rows, int64; None: all of them
    tokens: int  # up to the ends of the captions


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Options of a loader."""

    image_size: int
    context_length: int
    batch_size: int  # over all ranks and micro-batches
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    seed: int = 0
    threads: int = 1
    prefetch: int = 3
    min_scale: float = 0.9
    packed: bool = True
    verify: bool = False
    max_bad: float = 0.01
    pin: bool = False


class Loader:
    """Yields the micro-batches of this rank, step by step. It owns threads and files: use it as a context manager."""

    def __init__(self, stream: Stream, tokenizer: Tokenizer, options: LoaderOptions) -> None:
        self.stream, self.tokenizer, self.options = stream, tokenizer, options
        self.bad = BadSamples(limit=options.max_bad, samples=len(stream.index))
        if stream.index.remote is not None and not stream.window:
            raise UsageError("shards from a URL are downloaded window by window: give --window, in shards")
        self._cache = None if stream.index.remote is None else ShardCache(stream.index.remote)
        self._reader = self._cache or ShardReader(stream.index.paths)
        self._pool = ThreadPoolExecutor(max(1, options.threads), thread_name_prefix="decode")

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def steps(self, samples_seen: int) -> Iterator[list[Batch]]:
        """Yields the micro-batches of each step without end, from place `samples_seen` on."""
        waiting: deque[tuple[int, list[_Pending]]] = deque()
        place = samples_seen
        while True:
            while len(waiting) <= self.options.prefetch:
                samples, epochs = self.stream.samples(place, self.options.batch_size)
                waiting.append((self._bring(samples, epochs), self._begin(samples, epochs)))
                place += self.options.batch_size
            window, step = waiting.popleft()
            if self._cache:
                self._cache.release(window)  # earlier windows belong to earlier steps
            batches = [pending.finish(self) for pending in step]
            self.bad.check(sum(len(batch.samples) for batch in batches))
            yield batches

    def _bring(self, samples: np.ndarray, epochs: np.ndarray) -> int:
        """Requests the shards of a step and of the window after it. Returns the first window of the step."""
        if self._cache is None:
            return 0
        windows = self.stream.windows(samples[[0, -1]], epochs[[0, -1]])
        first, last = (int(window) for window in windows)
        self._cache.check_fits([shard for window in range(first, last + 1) for shard in self.stream.shards_of(window)])
        for window in range(first, last + 2):
            self._cache.want(window, self.stream.shards_of(window))
        return first

    def _begin(self, samples: np.ndarray, epochs: np.ndarray) -> list[_Pending]:
        """Starts to decode one step. Micro-batch k of rank r has the rows from (k * ranks + r) * b of the batch."""
        options = self.options
        size = options.batch_size // (options.world_size * options.accumulate)
        pending = []
        for part in range(options.accumulate):
            at = (part * options.world_size + options.rank) * size
            pending.append(_Pending(self, samples[at : at + size], epochs[at : at + size]))
        return pending

    def load(
        self, rows: Rows, row: int, draws: np.ndarray, out: np.ndarray, window: int = 0, *, caption: int = 0
    ) -> list[int]:  # fmt: skip
        """Writes the crop of one sample into `out` and returns the ids of a caption. Raises BadSample.

        Args:
            rows, row: the places of some samples, and which of them it is.
            draws: (3,) of the crop, in [0, 1).
            out: (S, S, 3) uint8.
            window: to read it from.
            caption: which of its texts.
        """
        options, shard = self.options, int(rows.shard[row])
        size = int(rows.image_size[row])
        if size > MAX_IMAGE_BYTES:
            raise BadSample("image_too_large")
        data = self._read(shard, int(rows.image_offset[row]), size, window)
        if options.verify and rows.sha256 is not None:
            kept = rows.sha256[row].tobytes()
            if hashlib.sha256(data).digest()[: len(kept)] != kept:
                raise BadSample("sha256_differs")
        text = self._further_text(rows, row, caption, window) if caption else self._text(rows, row, window)
        ids = self.tokenizer.encode_caption(text, context_length=options.context_length)
        if len(ids) == 2:
            raise BadSample("text_empty")
        try:
            image = decode(data, size=options.image_size, min_scale=options.min_scale)
            random_crop(image, out, draws, min_scale=options.min_scale)
        except BadImage as error:
            raise BadSample(str(error)) from None
        return ids

    def _text(self, rows: Rows, row: int, window: int) -> str:
        size = int(rows.text_size[row])
        if size > MAX_TEXT_BYTES:
            raise BadSample("text_too_large")
        data = self._read(int(rows.shard[row]), int(rows.text_offset[row]), size, window)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise BadSample("text_not_utf8") from None

    def _further_text(self, rows: Rows, row: int, caption: int, window: int) -> str:
        """A text from the list in the JSON of the sample."""
        assert rows.json_offset is not None and rows.json_size is not None
        size = int(rows.json_size[row])
        if size > MAX_JSON_BYTES:
            raise BadSample("json_too_large")
        data = self._read(int(rows.shard[row]), int(rows.json_offset[row]), size, window)
        try:
            text = json.loads(data)["texts"][caption]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise BadSample("json_damaged") from None
        if not isinstance(text, str):
            raise BadSample("json_damaged")
        return text

    def windows(self, samples: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """The windows to read the samples from. Files have no windows: 0."""
        return self.stream.windows(samples, epochs) if self._cache else np.zeros(len(samples), np.int64)

    def _read(self, shard: int, offset: int, size: int, window: int) -> bytes:
        if not size:
            raise BadSample("member_missing")
        try:
            data = self._reader.read(shard, offset, size, window)
        except OSError:
            raise BadSample("shard_not_readable") from None
        if len(data) != size:
            raise BadSample("shard_cut")
        return data


def draw_captions(rows: Rows, seed: int, samples: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """The number of the text of each sample, (n,) from 0: a draw keyed by sample and epoch."""
    if rows.captions is None:
        return np.zeros(len(samples), np.int64)
    words = keyed.combine(seed, _CAPTION, epochs.astype(np.uint64), samples.astype(np.uint64))
    return (words % rows.captions.astype(np.uint64)).astype(np.int64)


class _Pending:
    """A micro-batch that is being decoded. The thread that ends last packs the captions."""

    def __init__(self, loader: Loader, samples: np.ndarray, epochs: np.ndarray) -> None:
        options = loader.options
        self.samples, self.epochs = samples, epochs
        size = options.image_size
        self.images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8, pin_memory=options.pin)
        words = keyed.combine(options.seed, _CROP, epochs.astype(np.uint64), samples.astype(np.uint64))
        self._draws = keyed.uniforms(words, 3)
        self._windows = loader.windows(samples, epochs).tolist()
        self._rows = loader.stream.index.rows(samples)
        self._captions = draw_captions(self._rows, options.seed, samples, epochs).tolist()
        self._pixels = self.images.numpy()
        self._parts: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # ids and lengths, by the first row
        self._bad: dict[int, str] = {}  # the reason, by the row
        self._text: PackedText | torch.Tensor | None = None
        self._tokens = 0
        starts = range(0, len(samples), SAMPLES_A_TASK)
        self._left, self._lock = len(starts), threading.Lock()
        self._futures: list[Future[None]] = [loader._pool.submit(self._work, loader, at) for at in starts]

    def _work(self, loader: Loader, at: int) -> None:
        """Reads and decodes some rows, and notes the reason of a bad sample."""
        captions: list[list[int]] = []
        for row in range(at, min(at + SAMPLES_A_TASK, len(self.samples))):
            try:
                place = self._draws[row], self._pixels[row], self._windows[row]
                captions.append(loader.load(self._rows, row, *place, caption=self._captions[row]))
            except BadSample as error:
                self._pixels[row] = 0
                self._bad[row] = str(error)
                captions.append([loader.tokenizer.start_id, loader.tokenizer.end_id])
        self._parts[at] = flatten(captions)
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._pack(loader.options)

    def _pack(self, options: LoaderOptions) -> None:
        parts = [self._parts[at] for at in sorted(self._parts)]
        ids, lengths = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        self._tokens = len(ids)
        length = options.context_length
        text = pack_flat(ids, lengths) if options.packed else pad_flat(ids, lengths, context_length=length)
        self._text = text.pin_memory() if options.pin else text

    def finish(self, loader: Loader) -> Batch:
        """Waits for the samples and counts the bad ones now, not when they were decoded."""
        for future in self._futures:
            future.result()
        assert self._text is not None
        for row, reason in sorted(self._bad.items()):
            loader.bad.add(reason, key_of(loader.stream.index, int(self.samples[row])))
        good = [row for row in range(len(self.samples)) if row not in self._bad] if self._bad else None
        return Batch(
            images=self.images,
            text=self._text,
            samples=self.samples,
            epochs=self.epochs,
            good=None if good is None else torch.tensor(good, dtype=torch.int64, pin_memory=loader.options.pin),
            tokens=self._tokens,
        )

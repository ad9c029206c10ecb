"""Batches in an order whose state is one integer, the number of samples seen.

`Stream` (order.py) maps each place of an endless sequence to a sample. Step s takes the places s*B .. (s+1)*B - 1 for
any number of ranks, micro-batches and threads, so a run can resume on any number of processes. `Loader` decodes batches
ahead: in threads, or in processes of their own where a GPU takes more than threads of one interpreter can give.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from clip_train import keyed
from clip_train.decode_processes import DecodeProcesses
from clip_train.decoder import Decoded, DecodeOptions, Decoder, Task
from clip_train.distill import Teacher
from clip_train.errors import BelowThreshold, UsageError
from clip_train.index import Rows, key_of
from clip_train.order import Stream
from clip_train.reader import ShardReader
from clip_train.remote import ShardCache
from clip_train.text import PackedText, pack_flat, pad_flat
from clip_train.tokenizer import Tokenizer

SAMPLES_A_TASK = 16  # decoded at a time: ~10 ms of work
_CROP, _CAPTION = 2, 9  # purposes of keyed draws


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


@dataclasses.dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank. A bad sample keeps its row, with a black image and no words; `good` excludes it."""

    images: torch.Tensor  # (b, S, S, 3) uint8
    text: PackedText | torch.Tensor  # b captions
    samples: np.ndarray  # (b,) int64, into the index
    epochs: np.ndarray  # (b,) int64
    good: torch.Tensor | None  # usable rows, int64; None: all of them
    tokens: int  # up to the ends of the captions
    teacher: torch.Tensor | None = None  # (b, 2, F) float16 unit vectors of image and text, with --distill

    def teacher_rows(self) -> torch.Tensor:
        """The vectors of the usable pairs, on the CPU."""
        assert self.teacher is not None
        return self.teacher if self.good is None else self.teacher[self.good]


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
    threads: int = 1  # or processes
    processes: bool = False
    prefetch: int = 3
    min_scale: float = 0.9
    packed: bool = True
    verify: bool = False
    max_bad: float = 0.01
    pin: bool = False

    @property
    def decode(self) -> DecodeOptions:
        """Those that decide the pixels and the ids of a sample."""
        return DecodeOptions(
            image_size=self.image_size, context_length=self.context_length, min_scale=self.min_scale,
            verify=self.verify,
        )  # fmt: skip


class Loader:
    """Yields the micro-batches of this rank, step by step.

    It owns threads, files and maybe processes: use it as a context manager. With shards from a URL it never starts
    processes.

    Args:
        stream: the order of the samples.
        teacher: whose vectors the batches have; a sample without one counts as bad.
    """

    def __init__(
        self, stream: Stream, tokenizer: Tokenizer, options: LoaderOptions, teacher: Teacher | None = None
    ) -> None:
        self.stream, self.tokenizer, self.options, self.teacher = stream, tokenizer, options, teacher
        self.bad = BadSamples(limit=options.max_bad, samples=len(stream.index))
        if stream.index.remote is not None and not stream.window:
            raise UsageError("shards from a URL are downloaded window by window: give --window, in shards")
        self._cache = None if stream.index.remote is None else ShardCache(stream.index.remote)
        threads = max(1, options.threads)
        self.decoder: Decoder | DecodeProcesses
        if options.processes and self._cache is None:
            self.decoder = DecodeProcesses(
                stream.index.paths, tokenizer, options.decode, count=threads, rows=SAMPLES_A_TASK
            )
        else:
            self.decoder = Decoder(self._cache or ShardReader(stream.index.paths), tokenizer, options.decode)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._cache:
            self._cache.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.decoder.close()

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

    def windows(self, samples: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """The windows to read the samples from. Files have no windows: 0."""
        return self.stream.windows(samples, epochs) if self._cache else np.zeros(len(samples), np.int64)

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
        rows = loader.stream.index.rows(samples)
        captions = draw_captions(rows, options.seed, samples, epochs)
        self._all = Task(rows, keyed.uniforms(words, 3), captions, loader.windows(samples, epochs))
        self._pixels = self.images.numpy()
        self._parts: dict[int, Decoded] = {}  # by the first row
        self._text: PackedText | torch.Tensor | None = None
        self._teacher: torch.Tensor | None = None
        self._untaught = np.zeros(0, np.int64)  # rows without a vector of the teacher
        self._tokens = 0
        starts = range(0, len(samples), SAMPLES_A_TASK)
        self._left, self._lock = len(starts), threading.Lock()
        self._futures: list[Future[None]] = [loader._pool.submit(self._work, loader, at) for at in starts]

    def _work(self, loader: Loader, at: int) -> None:
        """Decodes some rows."""
        task = self._all.part(at, min(at + SAMPLES_A_TASK, len(self.samples)))
        self._parts[at] = loader.decoder.decode(task, self._pixels[at : at + len(task)])
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._pack(loader.options)
            if loader.teacher is not None:
                vectors, self._untaught = loader.teacher.rows(self.samples)
                self._teacher = torch.from_numpy(vectors)

    def _pack(self, options: LoaderOptions) -> None:
        parts = [self._parts[at] for at in sorted(self._parts)]
        ids, lengths = np.concatenate([part.ids for part in parts]), np.concatenate([part.lengths for part in parts])
        self._tokens = len(ids)
        length = options.context_length
        text = pack_flat(ids, lengths) if options.packed else pad_flat(ids, lengths, context_length=length)
        self._text = text.pin_memory() if options.pin else text

    def finish(self, loader: Loader) -> Batch:
        """Waits for the samples and counts the bad ones now, not when they were decoded."""
        for future in self._futures:
            future.result()
        assert self._text is not None
        bad = {int(row): "teacher_missing" for row in self._untaught}
        bad |= {at + row: reason for at, part in self._parts.items() for row, reason in part.bad.items()}
        for row, reason in sorted(bad.items()):
            loader.bad.add(reason, key_of(loader.stream.index, int(self.samples[row])))
        good = [row for row in range(len(self.samples)) if row not in bad] if bad else None
        return Batch(
            images=self.images,
            text=self._text,
            samples=self.samples,
            epochs=self.epochs,
            good=None if good is None else torch.tensor(good, dtype=torch.int64, pin_memory=loader.options.pin),
            tokens=self._tokens,
            teacher=self._teacher,
        )

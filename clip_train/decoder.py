"""Bytes of samples to crops and token ids. A process that decodes imports this, and not torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np

from clip_train.image import BadImage, decode, random_crop
from clip_train.index import Rows
from clip_train.ragged import flatten
from clip_train.reader import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Reader
from clip_train.tokenizer import Tokenizer

MAX_JSON_BYTES = 1 << 20  # of a sample with several texts


class BadSample(Exception):
    """A sample that cannot be used. The message is the reason, one word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What decides the pixels and the ids of a sample."""

    image_size: int
    context_length: int
    min_scale: float = 0.9
    verify: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """n samples to decode."""

    rows: Rows  # where they are
    draws: np.ndarray  # (n, 3) in [0, 1), of the crops
    captions: np.ndarray  # (n,) which text of each
    windows: np.ndarray  # (n,) to read them from; only shards from a URL have windows

    def __len__(self) -> int:
        return len(self.draws)

    def part(self, start: int, stop: int) -> Task:
        """The samples start .. stop - 1 of this task."""
        rows = self.rows.part(start, stop)
        return Task(rows, self.draws[start:stop], self.captions[start:stop], self.windows[start:stop])


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a task gives beside the pixels."""

    ids: np.ndarray  # (t,) int32: of all captions, one after another
    lengths: np.ndarray  # (n,) int64
    bad: dict[int, str]  # the reasons of samples that cannot be used, by their row in the task


class Decoder:
    """Decodes samples, from any thread."""

    def __init__(self, reader: Reader, tokenizer: Tokenizer, options: DecodeOptions) -> None:
        self._reader, self._tokenizer, self._options = reader, tokenizer, options

    def decode(self, task: Task, out: np.ndarray) -> Decoded:
        """Writes the crops of a task into `out`, (n, S, S, 3) uint8. A bad sample is black and has no words."""
        captions: list[list[int]] = []
        bad: dict[int, str] = {}
        for row in range(len(task)):
            try:
                place = task.draws[row], out[row], int(task.windows[row])
                captions.append(self._load(task.rows, row, *place, caption=int(task.captions[row])))
            except BadSample as error:
                out[row] = 0
                bad[row] = str(error)
                captions.append([self._tokenizer.start_id, self._tokenizer.end_id])
        return Decoded(*flatten(captions), bad)

    def close(self) -> None:
        """Closes the files. No thread may be decoding."""
        self._reader.close()

    def _load(
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
        options, shard = self._options, int(rows.shard[row])
        size = int(rows.image_size[row])
        if size > MAX_IMAGE_BYTES:
            raise BadSample("image_too_large")
        data = self._read(shard, int(rows.image_offset[row]), size, window)
        if options.verify and rows.sha256 is not None:
            kept = rows.sha256[row].tobytes()
            if hashlib.sha256(data).digest()[: len(kept)] != kept:
                raise BadSample("sha256_differs")
        text = self._further_text(rows, row, caption, window) if caption else self._text(rows, row, window)
        ids = self._tokenizer.encode_caption(text, context_length=options.context_length)
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

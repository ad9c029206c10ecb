"""Computes with fastText models: the vectors of texts, and the shares of the labels.

`Model.feature_sums` gives the sum of the vectors of a text in fixed point. So the sum does not depend on an order, and
sums of several texts can be added and subtracted exactly. So the context of a text on its page is found without reading
the texts again. `Model.evidence` gives the shares of such sums. The hashes are those of fastText v0.9.2
(src/dictionary.cc).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.engine import jit
from pipeline.engine.hashing import as_array
from pipeline.text.fasttext_file import (
    END_OF_LINE,
    EVIDENCE,
    HIERARCHICAL,
    LABEL,
    LEAST_SHARE,
    MAX_TEXT,
    ONE,
    PER_LABEL,
    SOFTMAX,
    Ints,
    Weights,
    hash_bytes,
    read_weights,
)

BLANKS = b" \n\r\t\v\f\0"
ROW_COST = 20  # a text without the kernel costs as much as so many rows of another kernel


@dataclasses.dataclass(frozen=True)
class Model(Weights):
    """A model that computes. Each function has a compiled twin."""

    def feature_sums(self, texts: pa.Array | pa.ChunkedArray) -> tuple[Ints, Ints]:
        """For each text the sum of its vectors, int64 (rows, dim) in units of 1 / ONE, and their number.

        The vector of the end of the line is left out. `evidence` adds it.
        """
        array = as_array(texts).cast(pa.large_string()).fill_null("")
        kernel = jit.kernel("pipeline.text.fasttext_model_kernel", len(array) * ROW_COST)
        if kernel:
            return kernel.feature_sums(self, array)
        sums, counts = np.zeros((len(array), self.parameters.dim), np.int64), np.zeros(len(array), np.int64)
        for row, text in enumerate(array.to_pylist()):
            rows = self._rows_of(text.encode()[:MAX_TEXT])
            counts[row] = len(rows)
            sums[row] = self.vectors[rows].sum(axis=0, dtype=np.int64)
        return sums, counts

    def evidence(self, sums: Ints, counts: Ints) -> pa.ListArray:
        """list<int32>: the labels of at least LEAST_SHARE of each row, in the order of `labels`, with their P.

        An entry is label * PER_LABEL + P in thousandths. A row without a vector has no entry.
        """
        kernel = jit.kernel("pipeline.text.fasttext_model_kernel", len(sums) * ROW_COST)
        if kernel:
            return kernel.evidence(self, sums, counts)
        entries = [self._entries(total.tolist(), count) for total, count in zip(sums, counts.tolist(), strict=True)]
        return pa.array(entries, EVIDENCE)

    def _entries(self, total: list[int], count: int) -> list[int]:
        if not count:
            return []
        if self.end >= 0:
            total = [entry + more for entry, more in zip(total, self.vectors[self.end].tolist(), strict=True)]
            count += 1
        hidden = [entry / (count * float(ONE)) for entry in total]
        shares = self._down_the_tree(hidden) if self.loss == HIERARCHICAL else self._flat(hidden)
        return sorted(label * PER_LABEL + round_half_up(p * 1000) for label, p in shares if p >= LEAST_SHARE)

    def _dot(self, row: int, hidden: list[float]) -> float:
        total = 0.0
        for weight, entry in zip(self._weights[row], hidden, strict=True):
            total += weight * entry
        return total

    def _flat(self, hidden: list[float]) -> list[tuple[int, float]]:
        logits = [self._dot(label, hidden) for label in range(len(self.labels))]
        if self.loss != SOFTMAX:
            return [(label, _sigmoid(logit)) for label, logit in enumerate(logits)]
        top, total = max(logits), 0.0
        powers = [math.exp(logit - top) for logit in logits]
        for power in powers:
            total += power
        return [(label, power / total) for label, power in enumerate(powers)]

    def _down_the_tree(self, hidden: list[float]) -> list[tuple[int, float]]:
        """The leaves of at least LEAST_SHARE. A branch below it is not followed."""
        n_labels, found, todo = len(self.labels), [], [(2 * len(self.labels) - 2, 1.0)]
        while todo:
            node, p = todo.pop()
            if p < LEAST_SHARE:
                continue
            if node < n_labels:
                found.append((node, p))
                continue
            right = _sigmoid(self._dot(node - n_labels, hidden))
            todo += [(int(self.tree[node - n_labels, 0]), p * (1.0 - right))]
            todo += [(int(self.tree[node - n_labels, 1]), p * right)]
        return found

    @functools.cached_property
    def _weights(self) -> list[list[float]]:
        return self.output.tolist()

    def _rows_of(self, text: bytes) -> list[int]:
        """The rows of `vectors` of a text, the slow way."""
        rows: list[int] = []
        hashes: list[int] = []
        for token in text.translate(bytes.maketrans(BLANKS, b" " * len(BLANKS))).split(b" "):
            word = self._numbers.get(token, -1)
            if not token or token == END_OF_LINE or (word < 0 and token.startswith(LABEL)):
                continue
            hashes.append(hash_bytes(token))
            rows += [word] if word >= 0 else []
            rows += self._inside(b"<" + token + b">") if self.parameters.longest else []
        for first, value in enumerate(hashes):
            mixed = _signed(value)
            for other in hashes[first + 1 : first + self.parameters.word_ngrams]:
                mixed = (mixed * 116049371 + _signed(other)) % 2**64
                rows += self._row_of_bucket(mixed % self.parameters.bucket)
        return rows

    def _inside(self, word: bytes) -> list[int]:
        """The rows of the n-grams of a word in brackets."""
        starts = [place for place, byte in enumerate(word) if byte & 0xC0 != 0x80] + [len(word)]
        rows: list[int] = []
        for first in range(len(starts) - 1):
            for size in range(self.parameters.shortest, self.parameters.longest + 1):
                last = first + size
                if last >= len(starts) or size == 1 and (first == 0 or last == len(starts) - 1):
                    continue
                rows += self._row_of_bucket(hash_bytes(word[starts[first] : starts[last]]) % self.parameters.bucket)
        return rows

    def _row_of_bucket(self, bucket: int) -> list[int]:
        if not len(self.kept):
            return [self.parameters.words + bucket]
        row = int(self.kept[bucket])
        return [row] if row >= 0 else []

    @functools.cached_property
    def _numbers(self) -> dict[bytes, int]:
        offsets, data = self.word_offsets, self.word_bytes.tobytes()
        return {data[offsets[word] : offsets[word + 1]]: word for word in range(self.parameters.words)}


def read_model(path: str | Path) -> Model:
    """The model in a file.

    Raises:
        ValueError: the file is no supervised fastText model, or is cut or damaged.
        OSError: it cannot be read.
    """
    weights = read_weights(path)
    return Model(**{field.name: getattr(weights, field.name) for field in dataclasses.fields(Weights)})


def round_half_up(value: float) -> int:
    """The nearest whole number of a number that is not negative, the same way in both twins."""
    return int(value + 0.5)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


def _signed(value: int) -> int:
    """A 32-bit hash as fastText widens it to 64 bits."""
    return value if value < 2**31 else value + 2**64 - 2**32

"""Detects the language of texts with a fasttext model: our own small one, or any supervised model by path (lid.176).

`LanguageModel.load("own")` is pipeline/text/data/language.ftz, 0.9 MB. It knows about 100 languages by their ISO 639-1
codes. tools/train_language_model.py makes it. "und" stands for all other languages. Nothing is ever downloaded. A
filter should use a threshold on P(language) (`scores`), not the likeliest language (`predict`): in short alt-texts two
languages are often about as likely.

A model cannot be pickled. Load it once in each process.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.hashing import as_array

OWN = Path(__file__).parent / "data" / "language.ftz"
UNKNOWN = "und"
THRESHOLD = 0.2  # a good limit for P(language): 99.98% of real English captions reach it, 0.6% of foreign sentences

_LABEL = "__label__"
_BLOCK = 4_096  # texts a call, so that the lists from fasttext stay small
_LEAST = 1e-4  # smaller probabilities count as 0

Scores = npt.NDArray[np.float32]


class LanguageModel:
    """A loaded model. `languages` lists the codes that it knows."""

    def __init__(self, model: Any):
        self._model = model
        self.languages = sorted(label.removeprefix(_LABEL) for label in model.get_labels())
        self._lower = UNKNOWN in self.languages  # a model of our recipe is trained on lower case only

    @classmethod
    def load(cls, path: str | Path = "own") -> LanguageModel:
        """The model that ships ("own"), or the model in a file. A process loads each file once."""
        return _load(str(OWN if str(path) == "own" else path))

    def predict(self, texts: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
        """The likeliest language of each text, and its probability. A text without any word gives ("und", 0)."""
        languages: list[str] = []
        scores = np.zeros(len(texts), np.float32)
        for labels, probabilities in self._predictions(texts, 1, 0.0):
            if len(labels):
                scores[len(languages)] = probabilities[0]
            languages.append(labels[0].removeprefix(_LABEL) if len(labels) else UNKNOWN)
        return pa.array(languages, pa.string()), pa.array(np.minimum(scores, np.float32(1)))

    def scores(self, texts: pa.Array | pa.ChunkedArray, languages: Sequence[str]) -> tuple[pa.Array, pa.Array]:
        """The likeliest of the wanted languages for each text, and its probability.

        Keep a text if the probability reaches a threshold.
        """
        matrix = self.probabilities(texts, languages)
        best = matrix.argmax(axis=1) if len(matrix) else np.zeros(0, np.int64)
        return pa.array(languages, pa.string()).take(pa.array(best)), pa.array(matrix[np.arange(len(matrix)), best])

    def probabilities(self, texts: pa.Array | pa.ChunkedArray, languages: Sequence[str]) -> Scores:
        """P(language) of each text (row) for each wanted language (column).

        Raises:
            ValueError: the model does not know a language. The message names all such languages.
        """
        unknown = sorted(set(languages) - set(self.languages))
        if unknown:
            known = ", ".join(self.languages)
            raise ValueError(f"the language model does not know {', '.join(unknown)}; it knows {known}")
        column = {_LABEL + language: place for place, language in enumerate(languages)}
        matrix = np.zeros((len(texts), len(languages)), np.float32)
        for row, (labels, probabilities) in enumerate(self._predictions(texts, len(self.languages), _LEAST)):
            for label, probability in zip(labels, probabilities, strict=True):
                if label in column:
                    matrix[row, column[label]] = probability
        return np.minimum(matrix, np.float32(1))

    def _predictions(
        self, texts: pa.Array | pa.ChunkedArray, most: int, least: float
    ) -> Iterator[tuple[Sequence[str], Sequence[float]]]:
        """(labels, probabilities) of each text, likeliest first.

        fasttext gets lists only: with numpy 2, fasttext 0.9.3 fails on a single string. It gets no line feeds, because
        it reads one line.
        """
        array = pc.utf8_trim_whitespace(pc.replace_substring(as_array(texts), "\n", " "))
        if self._lower:
            array = pc.utf8_lower(array)
        for start in range(0, len(array), _BLOCK):
            block = array.slice(start, _BLOCK).to_pylist()
            for text, *prediction in zip(block, *self._model.predict(block, k=most, threshold=least), strict=True):
                yield (prediction[0], prediction[1]) if text else ((), ())  # fasttext guesses for an empty text too


@functools.lru_cache(maxsize=4)
def _load(path: str) -> LanguageModel:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no language model at {path}")
    import fasttext  # slow to import, and needed for languages alone

    fasttext.FastText.eprint = lambda *args, **kwargs: None  # it warns about its own API on every load
    return LanguageModel(fasttext.load_model(path))

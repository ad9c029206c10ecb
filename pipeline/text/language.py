"""Names the language of texts with a fasttext model: our own small one, or any supervised model by path (lid.176).

`LanguageModel.load("own")` is pipeline/text/data/language.ftz, 0.9 MB. It knows about 100 languages by their ISO 639-1
codes. tools/train_language_model.py makes it. "und" stands for all other languages. Nothing is ever downloaded. For a
filter, ask for a threshold on P(language) (`scores`), not for the likeliest language (`predict`): short alt-texts are
often close calls.

A model cannot be pickled: load it once a process.
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
THRESHOLD = 0.2  # a good P(language) to ask for: .9998 of real English captions reach it, .6% of foreign sentences

_LABEL = "__label__"
_BLOCK = 4_096  # texts a call: the lists that fasttext gives back stay small
_LEAST = 1e-4  # probabilities below count as 0

Scores = npt.NDArray[np.float32]


class LanguageModel:
    """A loaded model. `languages` are the codes it knows."""

    def __init__(self, model: Any):
        self._model = model
        self.languages = sorted(label.removeprefix(_LABEL) for label in model.get_labels())
        self._lower = UNKNOWN in self.languages  # a model of our recipe: it was trained on lower case only

    @classmethod
    def load(cls, path: str | Path = "own") -> LanguageModel:
        """The model that ships ("own"), or the one in a file. A process loads each file once."""
        return _load(str(OWN if str(path) == "own" else path))

    def predict(self, texts: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
        """The likeliest language of each text and its probability; ("und", 0) for a text without any word."""
        languages: list[str] = []
        scores = np.zeros(len(texts), np.float32)
        for labels, probabilities in self._predictions(texts, 1, 0.0):
            if len(labels):
                scores[len(languages)] = probabilities[0]
            languages.append(labels[0].removeprefix(_LABEL) if len(labels) else UNKNOWN)
        return pa.array(languages, pa.string()), pa.array(np.minimum(scores, np.float32(1)))

    def scores(self, texts: pa.Array | pa.ChunkedArray, languages: Sequence[str]) -> tuple[pa.Array, pa.Array]:
        """The likeliest of the wanted languages and its probability: keep a text if that reaches a threshold."""
        matrix = self.probabilities(texts, languages)
        best = matrix.argmax(axis=1) if len(matrix) else np.zeros(0, np.int64)
        return pa.array(languages, pa.string()).take(pa.array(best)), pa.array(matrix[np.arange(len(matrix)), best])

    def probabilities(self, texts: pa.Array | pa.ChunkedArray, languages: Sequence[str]) -> Scores:
        """P(language) of each text (row) for each wanted language (column).

        Raises:
            ValueError: naming the languages that the model does not know.
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

        Always by lists: with numpy 2, fasttext 0.9.3 fails on a single string. A line feed ends a line for it.
        """
        array = pc.utf8_trim_whitespace(pc.replace_substring(as_array(texts), "\n", " "))
        if self._lower:
            array = pc.utf8_lower(array)
        for start in range(0, len(array), _BLOCK):
            block = array.slice(start, _BLOCK).to_pylist()
            for text, *prediction in zip(block, *self._model.predict(block, k=most, threshold=least), strict=True):
                yield (prediction[0], prediction[1]) if text else ((), ())  # it would guess at an empty text too


@functools.lru_cache(maxsize=4)
def _load(path: str) -> LanguageModel:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no language model at {path}")
    import fasttext  # heavy, and not needed by those who do not ask for languages

    fasttext.FastText.eprint = lambda *args, **kwargs: None  # it warns about its own API on every load
    return LanguageModel(fasttext.load_model(path))

"""Small fastText models for tests, written byte by byte as fastText v0.9.2 saves them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

SOFTMAX, ONE_VS_ALL = 3, 4


def write_model(
    path: Path, words: dict[str, str], *, loss: int = SOFTMAX, word_ngrams: int = 1, bucket: int = 0
) -> Path:
    """A model that names the language of each word: word -> label. Its vectors are long, so that one word is enough.

    Args:
        path: of the file.
        words: each word with its label.
        loss: of the output.
        word_ngrams: longest run of words that is hashed into `bucket` vectors.
        bucket: the number of these vectors, all zero.
    """
    labels = sorted(set(words.values()))
    dim = len(labels)
    data = struct.pack("<ii", 793712314, 12)
    data += struct.pack("<12id", dim, 5, 1, 1, 0, word_ngrams, loss, 3, bucket, 0, 0, 100, 1e-4)
    data += struct.pack("<iiiqq", len(words) + dim, len(words), dim, 1, -1)
    data += b"".join(word.encode() + struct.pack("<xqb", 1, 0) for word in words)
    data += b"".join(f"__label__{label}".encode() + struct.pack("<xqb", 1, 1) for label in labels)
    vectors = np.zeros((len(words) + bucket, dim), "<f4")
    vectors[range(len(words)), [labels.index(label) for label in words.values()]] = 1
    data += struct.pack("<?qq", False, *vectors.shape) + vectors.tobytes()
    data += (
        struct.pack("<?qq", False, dim, dim)
        + (np.eye(dim, dtype="<f4") * 12 - (6 if loss == ONE_VS_ALL else 0)).astype("<f4").tobytes()
    )
    path.write_bytes(data)
    return path

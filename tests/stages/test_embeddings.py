"""Tables of embeddings: what is refused, and the arrays that the workers map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engine.cli import UsageError
from pipeline.engine.work import StageFolder
from pipeline.stages import embeddings, near_vectors

KEYS = [f"{number:032x}" for number in (3, 1, 2)]
ONE = [[1.0, 2.0], [2.0, 4.0], [0.0, -1.0]]


def table(path: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": KEYS}, "needs the columns 'key' and 'embedding' (columns: key)"),
        ({"embedding": ONE}, "needs the columns 'key' and 'embedding' (columns: embedding)"),
        ({"key": ["a", *KEYS[1:]], "embedding": ONE}, "the key 'a' is no key of a set: must be 32 hexadecimal digits"),
        ({"key": [None, *KEYS[1:]], "embedding": ONE}, "the key 'None' is no key"),
        ({"key": [1, 2, 3], "embedding": ONE}, "is no key of a set"),
        ({"key": [KEYS[0], KEYS[0], KEYS[1]], "embedding": ONE}, f"the key {KEYS[0]} comes twice"),
        ({"key": KEYS, "embedding": [1.0, 2.0, 3.0]}, "'embedding' is of type double: must be lists of floats"),
        ({"key": KEYS, "embedding": [[1], [2], [3]]}, "must be lists of floats"),
        ({"key": KEYS, "embedding": [[1.0], [2.0, 3.0], [1.0]]}, f"of the key {KEYS[1]} has 2 numbers, and others 1"),
        ({"key": KEYS, "embedding": [[1.0], None, [1.0]]}, f"of the key {KEYS[1]} has 0 numbers, and others 1"),
        ({"key": KEYS, "embedding": [[], [], []]}, "must be lists of floats"),
        ({"key": KEYS, "embedding": [[1.0, None], *ONE[1:]]}, "has empty cells within embeddings"),
        ({"key": KEYS, "embedding": [*ONE[:2], [0.0, 0.0]]}, f"the embedding of the key {KEYS[2]} is zero"),
        ({"key": KEYS, "embedding": [*ONE[:2], [1.0, float("nan")]]}, f"{KEYS[2]} has a number that is not finite"),
        ({"key": KEYS, "embedding": [*ONE[:2], [1.0, float("-inf")]]}, f"{KEYS[2]} has a number that is not finite"),
        ({"key": pa.array([], pa.string()), "embedding": pa.array([], pa.list_(pa.float32()))}, "has no rows"),
    ],
)
def test_bad_tables_are_refused_with_one_line(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        embeddings.check([table(tmp_path / "a.parquet", columns)])
    assert message in str(error.value) and str(error.value).startswith("--embeddings ")
    assert "\n" not in str(error.value)


def test_a_digest_of_a_missing_table_names_its_option(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^--embeddings .*gone.parquet: cannot be read"):
        embeddings.TABLES.digest([str(tmp_path / "gone.parquet")])


def test_tables_of_two_widths_and_other_files_are_refused(tmp_path: Path) -> None:
    first = table(tmp_path / "a.parquet", {"key": KEYS[:1], "embedding": [[1.0, 2.0]]})
    second = table(tmp_path / "b.parquet", {"key": KEYS[1:2], "embedding": [[1.0]]})
    with pytest.raises(UsageError, match=r"b.parquet: has embeddings of 1 numbers, and .*a.parquet of 2"):
        embeddings.check([first, second])
    (tmp_path / "c.csv").write_text("key,embedding\n")
    with pytest.raises(UsageError, match=r"c.csv: is no Parquet table"):
        embeddings.check([str(tmp_path / "c.csv")])
    with pytest.raises(UsageError, match=r"none.parquet: cannot be read \(No such file or directory\)"):
        embeddings.check([str(tmp_path / "none.parquet")])


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("fixed", [True, False])
def test_arrays_hold_each_key_with_its_vector(tmp_path: Path, kind: pa.DataType, fixed: bool) -> None:
    vectors = np.array([np.array(row, kind.to_pandas_dtype()) for row in ONE])
    flat = pa.array(vectors.ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, 2) if fixed else pa.ListArray.from_arrays([0, 2, 4, 6], flat)
    paths = [
        table(tmp_path / "a.parquet", {"key": KEYS[:2], "embedding": lists[:2]}),
        table(
            tmp_path / "b.parquet", {"uid": pa.array([bytes.fromhex(KEYS[2])], pa.binary(16)), "embedding": lists[2:]}
        ),
    ]
    assert embeddings.check(paths) == embeddings.Shape(3, 2)
    folder = StageFolder(str(tmp_path / "out"), "dedup-images", "0", "{}").step("embeddings")
    embeddings.write(paths, folder)
    found = embeddings.load(folder)
    uids = [bytes.fromhex(key) for key in (*KEYS, f"{9:032x}", f"{0:032x}")]
    place = found.places_of(pa.array(uids, pa.binary(16)))
    assert place.tolist() == [0, 1, 2, -1, -1]
    assert found.places_of(pa.array(uids, pa.binary(16))[2:4]).tolist() == [2, -1]
    assert (found.vectors == near_vectors.rounded(vectors)).all() and found.vectors.dtype == np.int16
    assert (found.vectors[0] == found.vectors[1]).all() and (found.sieve == found.vectors).all()
    assert found.centres.shape == (1, 2)


def test_a_batch_of_wide_embeddings_has_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "a.parquet", {"embedding": ONE, "more": [[7] * 9] * 3, "key": KEYS})
    monkeypatch.setattr(embeddings, "BATCH_NUMBERS", 5)
    batches = list(embeddings.READ.batches(path))
    assert [len(keys) for keys, _ in batches] == [2, 1]
    assert np.concatenate([floats for _, floats in batches]).tolist() == ONE
    monkeypatch.setattr(embeddings, "BATCH_NUMBERS", 1)
    assert [len(keys) for keys, _ in embeddings.READ.batches(path)] == [1, 1, 1]

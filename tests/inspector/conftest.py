"""A published folder, a run up to balance, and the inspector as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.engine import storage
from pipeline.engine.cli import DONE
from pipeline.inspect_shards import main
from pipeline.schema import DUPLICATES, DUPLICATES_FILE
from tests import samples


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pairs in three shards. One text is hostile, and one sample stands for another one."""
    folder = tmp_path_factory.mktemp("published")
    twin = {"key": samples.uid(500).hex(), "keeper": samples.uid(13).hex(), "kind": "near_duplicate", "distance": 2}
    storage.write_published(str(folder / DUPLICATES_FILE), pa.Table.from_pylist([twin], DUPLICATES))
    samples.publish(folder, count=30, per_shard=12, texts={4: samples.ESCAPE})
    return folder


@pytest.fixture(scope="session")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to balance: five dogs of which the query may pick three, two cats, one of both."""
    folder = tmp_path_factory.mktemp("selected")
    texts = [*(f"a dog number {n}" for n in range(5)), "a cat", "one more cat", "a cat and a dog"]
    table = pa.table({"url": [f"http://a.example/{n}.jpg" for n in range(8)], "text": texts})
    pq.write_table(table, folder / "pairs.parquet")
    lines = ("query source count language", "cat test 7 en", "dog test 9 en", "owl test 1 de")
    (folder / "list.tsv").write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
    words = ["--input", folder / "pairs.parquet", "--queries", folder / "list.tsv", "--output", folder / "out"]
    words += ["--cap", 3, "--languages", "all", "--stages", "gather..balance", "--workers", 1]
    assert build.main([str(word) for word in words]) == DONE
    return folder / "out"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: object) -> tuple[int, str, str]:
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return call

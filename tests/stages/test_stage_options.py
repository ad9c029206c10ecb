"""The options of the stages: what decides rows stands in the fingerprint. So an older folder never counts as done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.engine.cli import UsageError
from pipeline.engine.options import declared
from pipeline.options import Options
from pipeline.stages import STAGES
from pipeline.stages.base import Stage
from pipeline.stages.run import Run
from pipeline.text import rights

# Options that stand in no fingerprint under their own name, and why.
ELSEWHERE = {
    "input_format": "the digest of the inputs holds the format of each",
    "robots_archive": "the digest of the archives stands there if there are any",
    "allow_address": "it decides whether a URL can be reached, as the network does: fetched images stay",
    "deadline": "as allow_address",
    "user_agent_contact": "as allow_address",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "scores.csv").write_text("key,score\n")
    # Options whose value stands in the fingerprint only where it is given.
    (tmp_path / "blocklist.txt").write_text("bad.example\n")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "1.jpg").write_bytes(b"only its name and size are read")
    given: dict[str, Any] = {"scores": (str(tmp_path / "scores.csv"),), "keep": "score > 1"}
    given |= {"decontaminate": (str(tmp_path / "evaluation"),), "date": "2026-01-31", "creator": "Nobody"}
    pq.write_table(pa.table({"key": ["0" * 32], "embedding": [[1.0, 0.0]]}), tmp_path / "embeddings.parquet")
    given |= {name: (str(tmp_path / "embeddings.parquet"),) for name in ("embeddings", "decontaminate_embeddings")}
    return look_up(tmp_path, **given, blocklist=(str(tmp_path / "blocklist.txt"),))


@pytest.mark.parametrize("stage", STAGES, ids=[stage.name for stage in STAGES])
def test_each_option_that_decides_rows_is_in_the_fingerprint(run: Run, stage: type[Stage]) -> None:
    deciding = {item.name for item in declared(stage.options) if not item.steers}
    missing = deciding - stage.fingerprint(run).keys() - ELSEWHERE.keys()
    assert not missing, f"{stage.__name__}.fingerprint leaves out {sorted(missing)}"


def test_the_exceptions_are_options() -> None:
    names = {field.name for stage in STAGES for field in dataclasses.fields(stage.options)}
    assert ELSEWHERE.keys() <= names


def look_up(tmp_path: Path, **more: object) -> Run:
    (tmp_path / "a.csv").write_text("url,text\nhttps://a.example/1.jpg,a dog\n")
    (tmp_path / "queries.txt").write_text("dog\n")
    given = {"input": (str(tmp_path / "a.csv"),), "queries": str(tmp_path / "queries.txt"), **more}
    return build.look_up(Options(**given, output=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("ignored", "changed"),
    [
        (("tdmrep", "robots-tag"), {"gather", "fetch"}),
        (("robots-tag", "tdmrep", "tdmrep"), {"gather", "fetch"}),
        (("iptc",), {"fetch"}),
        ((), set()),
    ],
)
def test_ignored_protocols_concern_the_stages_that_ask_them(
    ignored: tuple[str, ...], changed: set[str], tmp_path: Path
) -> None:
    run = look_up(tmp_path)
    other = look_up(tmp_path, ignore_rights=ignored)
    assert {stage.name for stage in STAGES if stage.fingerprint(run) != stage.fingerprint(other)} == changed
    options = other.about.options
    assert options["ignore_rights"] == tuple(name for name in rights.PROTOCOLS if name in ignored)
    if ignored:
        again = look_up(tmp_path, ignore_rights=tuple(reversed(ignored)))
        assert [stage.fingerprint(again) for stage in STAGES] == [stage.fingerprint(other) for stage in STAGES]


def test_a_file_decides_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    found = {}
    for name, text in (("one.txt", "red"), ("moved.txt", "red"), ("other.txt", "blue")):
        (tmp_path / name).write_text(text)
        run = look_up(tmp_path, stop_queries=str(tmp_path / name))
        run = dataclasses.replace(run, language_model=str(tmp_path / name))
        found[name] = [stage.fingerprint(run) for stage in STAGES]
    assert found["one.txt"] == found["moved.txt"]
    changed = [one != other for one, other in zip(found["one.txt"], found["other.txt"], strict=True)]
    assert [stage.name for stage, differs in zip(STAGES, changed, strict=True) if differs] == ["gather", "balance"]


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--ignore-rights tdmrp: must be of robots, .*; did you mean tdmrep\\?"):
        look_up(tmp_path, ignore_rights=("tdmrp",))

"""The options of the stages: what decides rows stands in the fingerprint. So an older folder never counts as done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline import build
from pipeline.engine.options import declared
from pipeline.options import Options
from pipeline.stages import STAGES
from pipeline.stages.base import Stage
from pipeline.stages.run import Run

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
    (tmp_path / "a.csv").write_text("url,text\nhttps://a.example/1.jpg,a dog\n")
    (tmp_path / "queries.txt").write_text("dog\n")
    (tmp_path / "scores.csv").write_text("key,score\n")
    # Options whose value stands in the fingerprint only where it is given.
    given: dict[str, Any] = {"scores": (str(tmp_path / "scores.csv"),), "keep": "score > 1"}
    (tmp_path / "blocklist.txt").write_text("bad.example\n")
    given |= {"blocklist": (str(tmp_path / "blocklist.txt"),)}
    given |= {"input": (str(tmp_path / "a.csv"),), "queries": str(tmp_path / "queries.txt")}
    return build.look_up(Options(**given, output=str(tmp_path / "out")))


@pytest.mark.parametrize("stage", STAGES, ids=[stage.name for stage in STAGES])
def test_each_option_that_decides_rows_is_in_the_fingerprint(run: Run, stage: type[Stage]) -> None:
    deciding = {item.name for item in declared(stage.options) if not item.steers}
    missing = deciding - stage.fingerprint(run).keys() - ELSEWHERE.keys()
    assert not missing, f"{stage.__name__}.fingerprint leaves out {sorted(missing)}"


def test_the_exceptions_are_options() -> None:
    names = {field.name for stage in STAGES for field in dataclasses.fields(stage.options)}
    assert ELSEWHERE.keys() <= names

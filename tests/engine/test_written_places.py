"""A URL where a command writes on this machine alone: refused in one line, since it would become folders `s3:`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import explore, forget, inspect_shards
from pipeline.demo.__main__ import main as demo
from pipeline.engine.cli import USAGE
from queries import build as queries_build

Main = Callable[[list[str]], int]
LOCAL = "must be a {} of this machine: nothing is written to a URL here"
EXPORT = ["export", "out", "--format", "csv", "--to"]
ROWS = ["rows", "out", "--stage", "match", "--to"]
CASES: list[tuple[Main, list[str], str, str]] = [
    (inspect_shards.main, EXPORT, "s3://bucket/e", f"--to s3://bucket/e: {LOCAL.format('path')}"),
    (inspect_shards.main, EXPORT, "s3:/bucket/e", f"--to s3:/bucket/e: {LOCAL.format('path')}"),
    (inspect_shards.main, ["summary", "out", "--to"], "gs://b/s.md", f"--to gs://b/s.md: {LOCAL.format('path')}"),
    (inspect_shards.main, ["show", "k", "out", "--image"], "s3://b/i", f"--image s3://b/i: {LOCAL.format('path')}"),
    (inspect_shards.main, ROWS, "az://b/r.parquet", "--to az://b/r.parquet: must be a file of this machine, or s3://"),
    (inspect_shards.main, ROWS, "s3:/b/r.parquet", "--to s3:/b/r.parquet: must be a file of this machine, or s3://"),
    (explore.main, ["out", "--index"], "s3://bucket/i", f"--index s3://bucket/i: {LOCAL.format('folder')}"),
    (forget.main, ["out", "--uid", "0" * 32, "--log-file"], "s3://b/l", LOCAL.format("file")),
    (queries_build.main, ["--output", "out", "--log-file"], "s3://b/l", LOCAL.format("file")),
    (demo, [], "s3://bucket/demo", "s3://bucket/demo: must be a folder of this machine"),
]


@pytest.mark.parametrize(("main", "argv", "url", "said"), CASES)
def test_a_url_that_cannot_be_written_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Main,
    argv: list[str],
    url: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*argv, url]) == USAGE
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not list(tmp_path.iterdir())

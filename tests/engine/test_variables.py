"""Environment variables: a wrong value is refused in one line by each command, before it writes anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import build, doctor, explore, forget, inspect_shards
from pipeline.engine import cli, variables, work
from pipeline.options import Options
from queries import build as queries_build

SWITCH = "must be one of 0, off, no, false, 1, on, yes, true"
WRONG = [
    ("OPENWIT_SCRATCH_GB", "abc", "must be a number above 0 and at most 1,000,000,000"),
    ("OPENWIT_SCRATCH_GB", "-5", "must be a number above 0 and at most 1,000,000,000"),
    ("OPENWIT_SCRATCH_GB", "0", "must be a number above 0 and at most 1,000,000,000"),
    ("OPENWIT_SCRATCH_GB", "nan", "must be a number above 0 and at most 1,000,000,000"),
    ("OPENWIT_STALL_SECONDS", "5 minutes", "must be a number above 0 and at most 604,800"),
    ("OPENWIT_STALL_SECONDS", "inf", "must be a number above 0 and at most 604,800"),
    ("OPENWIT_PROGRESS", "never", SWITCH),
    ("OPENWIT_NO_KERNELS", "maybe", SWITCH),
    ("OPENWIT_SCRATCH", "s3://bucket/scratch", "must be a folder of this machine"),
    ("OPENWIT_SCRATCH", "/dev/null/scratch", "must be a folder of this machine"),
    ("OPENWIT_ENGINES", "/dev/null", "must be a folder of this machine"),
    ("OPENWIT_CC_BASE", "nowhere", "must be a URL, or a folder that is there"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(cli.UsageError) as refused:
        cli.check_variables()
    assert str(refused.value) == f"{name}={value}: {allowed}"


COMMANDS: list[tuple[Callable[..., int], list[str]]] = [
    (build.main, ["--input", "pairs.tsv", "--output", "out"]),
    (build.main, ["--input", "pairs.tsv", "--output", "out", "--plan"]),
    (inspect_shards.main, ["info", "out"]),
    (forget.main, ["out", "--uid", "0" * 32]),
    (explore.main, ["out"]),
    (doctor.main, ["--offline"]),
    (queries_build.main, ["--output", "out"]),
]


@pytest.mark.parametrize(("main", "argv"), COMMANDS)
def test_each_command_refuses_it_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[..., int],
    argv: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("url\ttext\nhttp://a.example/1.jpg\ta dog\n")
    monkeypatch.setenv("OPENWIT_STALL_SECONDS", "soon")
    assert main(argv) == cli.USAGE
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "OPENWIT_STALL_SECONDS=soon: must be a number above 0" in printed.err
    assert not printed.out and [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_the_api_and_a_worker_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENWIT_SCRATCH_GB", "abc")
    with pytest.raises(cli.UsageError, match="OPENWIT_SCRATCH_GB=abc: must be"):
        build.build(Options(input=("pairs.tsv",), output=str(tmp_path / "out")))
    with pytest.raises(work.WorkerError, match="the worker on .* has a wrong environment variable: OPENWIT_SCRATCH_GB"):
        work.lock_as_worker(str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_values_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variables.number(variables.SCRATCH_GB) == 20 and variables.is_on(variables.PROGRESS)
    assert not variables.is_on(variables.NO_KERNELS)
    for name, value in {"SCRATCH_GB": "0.5", "PROGRESS": "Off", "NO_KERNELS": "0", "CC_BASE": "http://a/"}.items():
        monkeypatch.setenv(f"OPENWIT_{name}", value)
    cli.check_variables()
    assert variables.number(variables.SCRATCH_GB) == 0.5 and not variables.is_on(variables.PROGRESS)
    assert not variables.is_on(variables.NO_KERNELS)
    for name in ("SCRATCH_GB", "PROGRESS", "SCRATCH"):
        monkeypatch.setenv(f"OPENWIT_{name}", "")
    cli.check_variables()
    assert variables.number(variables.SCRATCH_GB) == 20

"""The log of a command: one JSON line for each message, libraries in the file and not on the screen."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from pipeline import build, forget
from pipeline.engine import log_file, progress, quiet_beam
from pipeline.engine.cli import USAGE
from pipeline.engine.log_file import logging_to, note, say


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_has_what_the_screen_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, path = logging.getLogger(), tmp_path / "x.jsonl"
    before = (root.level, list(root.handlers))
    words = ["--input", "s3://u:p@b/x", "--s3_secret_access_key", "x", "--token=y"]
    with logging_to(str(path), program="p", argv=words, quiet=True) as ended:
        assert log_file.is_active() and log_file.is_quiet()
        logging.getLogger("apache_beam.x").warning("a warning of %s", "Beam")
        logging.getLogger("apache_beam.x").info("only for debug")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", UserWarning, stacklevel=1)
        logging.getLogger("pipeline.engine.x").warning("for the user")
        note("counted", stage="fetch", rows_in=3)
        say("a note")
        assert ended(3) == 3
    assert (root.level, list(root.handlers)) == before and not log_file.is_active()
    found = lines(path)
    assert found[1]["message"] == "a warning of Beam" and "UserWarning: old" in found[2]["message"]
    assert [line["message"] for line in found[3:]] == ["for the user", "counted", "a note", "p ends"]
    assert list(found[0]) == ["time", "level", "logger", "stage", "message", "fields"]
    assert found[4]["stage"] == "fetch" and found[4]["fields"] == {"rows_in": 3} and found[4]["level"] == "info"
    assert found[-1]["fields"]["exit_code"] == 3
    assert found[0]["fields"]["argv"] == ["--input", "s3://b/x", "--s3_secret_access_key", "...", "--token=..."]
    assert capsys.readouterr().err == "WARNING pipeline.engine.x: for the user\n"


def test_a_format_that_does_not_fit() -> None:
    record = logging.LogRecord("lib", logging.WARNING, "x.py", 1, "wrong %d", ("arguments",), None)
    assert log_file._line(record)["message"] == "wrong %d"


def test_debug_takes_all_and_error_little(tmp_path: Path) -> None:
    for level, count in (("debug", 5), ("info", 4), ("warning", 2), ("error", 1)):
        with logging_to(str(tmp_path / level), level=level, program="p"):
            for name, number in (("lib", 10), ("lib", 30), ("lib", 40)):
                logging.getLogger(name).log(number, "x")
        assert len(lines(tmp_path / level)) == count, level


def test_a_crash_and_what_was_there_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"message": "earlier"}\n')
    with pytest.raises(ValueError, match="wrong"), logging_to(str(path), program="p"):
        raise ValueError("wrong")
    found = lines(path)
    assert [line["message"] for line in found] == ["earlier", "p begins", "p crashed: ValueError('wrong')"]
    assert "Traceback" in found[-1]["traceback"]


def test_without_a_file_nothing_changes(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(None, level="warning", program="p"):
        note("not seen")
        say("seen")
    assert capsys.readouterr().err == "seen\n"


def test_after_an_interrupt_other_logs_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """`hush` hides Beam's last words, and nothing else, until the next job."""
    from apache_beam.runners.worker import sdk_worker

    quiet_beam.import_beam()
    quiet_beam.hush()
    try:
        eval("print('a traceback')", vars(sdk_worker))  # Beam's worker prints tracebacks by the name `print`
        assert not capsys.readouterr().out
        assert logging.root.manager.disable == 0 and logging.getLogger("mine").isEnabledFor(logging.WARNING)
        assert not logging.getLogger("apache_beam").isEnabledFor(logging.CRITICAL)
    finally:
        quiet_beam.import_beam()
    assert logging.getLogger("apache_beam").isEnabledFor(logging.WARNING) and "print" not in vars(sdk_worker)


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(None, quiet=True, program="p"), progress.watching([]):
        say("a note")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("main", [build.main, forget.main])
def test_a_file_that_cannot_be(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [str(out), "--uid", "0" * 32] if main is forget.main else ["--input", str(tmp_path), "--output", str(out)]
    for given, said in ((tmp_path, "it is a folder"), (tmp_path / "no/x", "a folder that exists")):
        assert main([*words, "--log-file", str(given)]) == USAGE
        assert f"--log-file {given}: must" in (err := capsys.readouterr().err) and said in err
    out.mkdir()
    assert main([*words, "--log-file", str(out / "x")]) == USAGE and "must not lie in" in capsys.readouterr().err
    assert main([*words, "--log-level", "loud"]) == USAGE and not list(out.iterdir())


def test_a_file_that_cannot_be_written_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to("/dev/full", program="p", argv=[]) as ended:
        note("counted")
        note("counted")
        assert ended(0) == 0
    assert capfd.readouterr().err.count("--log-file /dev/full: cannot be written: No space left") == 1

"""What an engine leaves: its lines are kept for one message, and the folders of Beam go."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest

from pipeline.engine import engine_flags, engine_output, quiet_beam, runners
from pipeline.engine.cli import with_next_step

PANIC = """{"time":"2026-11-28T10:00:00Z","level":"INFO","msg":"Serving"}
panic: listen tcp :8471: bind: address already in use

goroutine 7 [running]:
main.main.func1()
\t/root/go/prism.go:99 +0x4e
exit status 2"""
JAVA = """Error: Could not find or load main class a.B
Caused by: java.lang.ClassNotFoundException: a.B
\tat a.B.main(B.java:3)
    at a.B.main(B.java:3)
    ... 3 more"""


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("PrismJobServer", PANIC, "panic: listen tcp :8471: bind: address already in use"),
        (
            "FlinkJarJobServer",
            JAVA,
            "Error: Could not find or load main class a.B / Caused by: java.lang.ClassNotFoundException: a.B",
        ),
        ("SparkJarJobServer", "", "it said nothing"),
    ],
)
def test_a_job_server_that_does_not_start_is_told_by_its_own_lines(
    name: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beam tries it three times. The same command does not help unless something is mended."""
    logger = logging.getLogger(name)
    with engine_output.kept():
        for line in text.splitlines() * 3:
            logger.info(line)
        error = runners.explain_failure(RuntimeError("Service failed to start up with error 2"))
        assert not logger.propagate
    assert logger.propagate and not logger.handlers
    assert with_next_step(error) == (
        f"the job server ended with exit code 2 before it was ready: {said}. "
        "Mend this, then the same command continues the run"
    )
    with engine_output.kept():
        assert engine_output.last_lines() == ""  # another job


def test_lines_of_an_engine_reach_a_log_that_wants_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with engine_output.kept():
        logging.getLogger("PrismJobServer").info("serving")
    assert "serving" in caplog.messages


def test_folders_of_beam_go_and_the_scratch_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability import stager
    from apache_beam.transforms import environments

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert {"apache_beam.runners.portability.stager", "apache_beam.transforms.environments"} <= set(
        engine_output.MODULES
    )
    with engine_output.in_one_folder():
        environments.python_sdk_dependencies(PipelineOptions(["--runner=PrismRunner"]))
        (folder,) = tmp_path.iterdir()
        assert {"beam-requirements-cache"} < set(os.listdir(folder)) and folder.name.startswith("openwit-beam-")
        assert tempfile.gettempdir() == str(tmp_path)  # that of this process, where copies of objects are
    assert not list(tmp_path.iterdir()) and stager.tempfile is tempfile


def test_a_command_that_looks_at_beams_flags_has_no_handler_yet() -> None:
    """Beam adds a handler to the root logger, also for its options: it would print what a log file gets."""
    root, handlers = logging.getLogger(), logging.getLogger().handlers
    try:
        root.handlers = []
        engine_flags.check("flink", ["--parallelism=2"])
        engine_flags.check_as_beam("flink", ["--parallelism=2"])
        assert root.handlers == []
    finally:
        root.handlers = handlers


def test_a_worker_of_this_process_prints_no_traceback_that_is_told() -> None:
    from apache_beam.runners.worker import sdk_worker

    quiet_beam.quiet_loopback()
    try:
        assert vars(sdk_worker)["print"] is quiet_beam.print_unless_expected
    finally:
        del vars(sdk_worker)["print"]

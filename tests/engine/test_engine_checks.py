"""An engine whose parts are missing is refused before a job is made, by a message that says what to type."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from pipeline import build
from pipeline.engine import engine_checks
from pipeline.engine.cli import MISSING, USAGE, MissingInput, UsageError

CLUSTER = "--flink_master=h:8081"
PROCESS = "--environment_type=PROCESS"
CLOUD = ("--project=p", "--region=r", "--temp_location=gs://b/t")


@pytest.fixture(autouse=True)
def java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A java on the PATH, on any machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return tmp_path / "bin" / "java"


@pytest.mark.parametrize(
    ("runner", "given", "said"),
    [
        ("flink", [CLUSTER], "container without this package"),
        ("SparkRunner", ["--spark_master_url=spark://h:7077", "--environment_type=DOCKER"], "without this package"),
        ("FlinkRunner", ["--flink_master", "h:8081", PROCESS], "needs --environment_option=process_command=PATH"),
        ("flink", [CLUSTER, PROCESS, "--environment_option=process_command=bin/worker"], r"bin/worker is relative"),
        ("flink", [CLUSTER, "--environment_type=EXTERNAL"], "needs --environment_config=HOST:PORT"),
        ("dataflow", CLOUD[:1], "needs --region, --temp_location"),
        ("dataflow", CLOUD, "an image that holds this package"),
        ("dataflow", [*CLOUD, "--sdk_container_image=i"], "--output out: the workers of dataflow see no folder"),
        (
            "dataflow",
            [*CLOUD[:2], "--temp_location=/tmp", "--sdk_container_image=i"],
            "/tmp: dataflow needs gs://BUCKET",
        ),
    ],
)
def test_a_missing_part_is_named(runner: str, given: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        engine_checks.check_flags(runner, given, output="s3://b/out" if "/tmp" in said else "out")


def test_dataflow_needs_beams_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'apache-beam\[gcp\]'"):
        engine_checks.check_flags("dataflow", [*CLOUD, "--sdk_container_image=i"], output="s3://b/out")


@pytest.mark.parametrize(
    ("runner", "given"),
    [
        ("local", [CLUSTER]),
        ("flink", ["--flink_master=[local]"]),
        ("flink", [CLUSTER, "--environment_type=LOOPBACK"]),
        (
            "flink",
            [
                CLUSTER,
                PROCESS,
                "--environment_option=a=b",
                f"--environment_option=process_command={engine_checks.WORKER}",
            ],
        ),
        ("flink", [CLUSTER, PROCESS, '--environment_config={"command": "/w"}']),
        ("flink", [CLUSTER, "--sdk_container_image=image"]),
        ("spark", ["--spark_master_url=local[2]"]),
        ("DataflowRunner", [*CLOUD, "--sdk_container_image=i"]),
    ],
)
def test_what_can_work_is_not_refused(runner: str, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # Beam's client of Dataflow
    engine_checks.check_flags(runner, given, output="gs://b/out")


@pytest.mark.parametrize("runner", ["prism", "flink", "spark"])
def test_a_worker_of_this_machine_must_be_there(runner: str, java: Path) -> None:
    """Prism waits for ever for a program that it cannot start. On other hosts it cannot be known."""
    missing = "--environment_option=process_command=/none/openwit-worker"
    with pytest.raises(MissingInput, match="process_command=/none/openwit-worker: no such program"):
        engine_checks.check_flags(runner, [PROCESS, missing])
    engine_checks.check_flags(runner, [PROCESS, missing.replace("/none/openwit-worker", str(java))])
    masters = ["--flink_master=127.0.0.1:81", "--spark_master_url=spark://localhost:77"]
    if runner != "prism":
        with pytest.raises(MissingInput, match="no such program"):
            engine_checks.check_flags(runner, [*masters, PROCESS, missing])
        elsewhere = ["--flink_master=h:81", "--spark_master_url=spark://h:77"]
        engine_checks.check_flags(runner, [*elsewhere, PROCESS, missing])


def test_a_pool_that_does_not_answer_is_refused() -> None:
    """`localhost` is each worker's own host: only where the cluster is on this machine is it this one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"127.0.0.1:{server.getsockname()[1]}"
        external = ["--environment_type=EXTERNAL", f"--environment_config={here}"]
        for runner in ("prism", "flink"):
            engine_checks.check_answers(runner, external)
        on_cluster = [f"--flink_master={here}", external[0], "--environment_config=localhost:1"]
        with pytest.raises(UsageError, match="the worker pool at localhost:1 does not answer"):
            engine_checks.check_answers("flink", on_cluster)
    with pytest.raises(UsageError, match=f"the worker pool at {here} does not answer.*worker_pool_main"):
        engine_checks.check_answers("prism", external)


def test_java_is_that_of_java_home_if_it_is_set(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam looks there first, and then does not look on the PATH."""
    monkeypatch.setenv("JAVA_HOME", "/none")
    with pytest.raises(UsageError, match="--runner flink: needs java"):
        engine_checks.check_flags("flink", [])
    monkeypatch.setenv("JAVA_HOME", str(java.parents[1]))
    monkeypatch.setenv("PATH", "")
    engine_checks.check_flags("flink", [])


def test_java_and_jars_must_be_there(java: Path, tmp_path: Path) -> None:
    jar = tmp_path / "server.jar"
    for name in ("flink_job_server_jar", "spark_job_server_jar", "prism_location"):
        with pytest.raises(MissingInput, match=f"--{name} .*server.jar: no such file"):
            engine_checks.check_flags("prism", [f"--{name}={jar}"])
        engine_checks.check_flags("prism", [f"--{name}=https://h/server.jar"])
    jar.touch()
    engine_checks.check_flags("flink", [f"--flink_job_server_jar={jar}"])
    java.unlink()
    with pytest.raises(UsageError, match="--runner flink: needs java"):
        engine_checks.check_flags("flink", [])
    engine_checks.check_flags("flink", ["--flink_submit_uber_jar"])


def test_the_commands_refuse_before_they_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A closed port is found before OUT is made. So is a jar that is not there."""
    (tmp_path / "pairs.csv").write_text("url,text\nhttp://h/a.jpg,a dog\n")
    (tmp_path / "queries.txt").write_text("dog\n")
    command = ["--input", str(tmp_path / "pairs.csv"), "--queries", str(tmp_path / "queries.txt")]
    command += ["--output", str(tmp_path / "out"), "--runner", "flink"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    assert build.main([*command, "--flink_job_server_jar=/none/server.jar"]) == MISSING
    assert build.main([*command, f"--flink_master={closed}", "--environment_type=LOOPBACK"]) == USAGE
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "pipeline.build: --flink_job_server_jar /none/server.jar: no such file"
    assert said[1].startswith(f"pipeline.build: --runner flink: {closed} does not answer") and len(said) == 2
    assert not (tmp_path / "out").exists()

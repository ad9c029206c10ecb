"""An engine whose parts are missing is refused before a job is made, by a message that says what to type."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import zipfile
from pathlib import Path

import pytest

from pipeline import build
from pipeline.engine import engine_checks, engine_flags, runners
from pipeline.engine.cli import MISSING, USAGE, MissingInput, UsageError

CLUSTER = "--flink_master=h:8081"
PROCESS = "--environment_type=PROCESS"
ENGINES = {"prism": [], "flink": ["--flink_master=[local]"], "spark": [], "portable": ["--job_endpoint=embed"]}
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
        ("flink", ["--flink_master=localhost:8081"], "container without this package"),
        ("SparkRunner", ["--spark_master_url=spark://h:7077", "--environment_type=DOCKER"], "without this package"),
        ("FlinkRunner", ["--flink_master", "h:8081", PROCESS], "needs --environment_option=process_command=PATH"),
        ("flink", [CLUSTER, PROCESS, "--environment_option=process_command=bin/worker"], r"bin/worker is relative"),
        ("flink", [CLUSTER, "--environment_type=EXTERNAL"], "needs --environment_config=HOST:PORT"),
        *(
            (runner, [*given, *more], said)
            for runner, given in ENGINES.items()
            for more, said in (
                ([PROCESS], "needs --environment_option=process_command=PATH, absolute"),
                ([PROCESS, "--environment_option=process_command=bin/w"], "bin/w is relative"),
                ([PROCESS, '--environment_config={"command": "w"}'], "w is relative"),
                ([PROCESS, "--environment_config=/w"], "--environment_config /w: must be an object of JSON"),
                (["--environment_type=EXTERNAL"], "needs --environment_config=HOST:PORT"),
                (["--environment_type", "EXTERNAL", "--environment_config=h"], "needs --environment_config=HOST:PORT"),
                (["--environment_type=DOCKER"], "needs --environment_config=IMAGE"),
                (["--environment_type=FOO"], "FOO: must be DOCKER, EXTERNAL, LOOPBACK or PROCESS"),
                (["--environment_type=process"], "process: must be DOCKER"),
                (["--environment_type=LOOPBACK", "--environment_config=h:1"], "environment_config is not compatible"),
            )
        ),
        ("PortableRunner", ["--job_endpoint=h:1"], "container without this package"),
        ("flink", ["--parallelism=abc"], "--parallelism abc: must be a whole number of 1 to 32768"),
        ("flink", ["--parallelism"], "^--parallelism: must be a whole number"),
        ("flink", ["--flink_master="], "--flink_master: must not be empty"),
        ("flink", ["--max_parallelism", "0"], "--max_parallelism 0: must be a whole number"),
        ("prism", ["--job_port=65536"], "--job_port 65536: must be a whole number of 0 to 65535"),
        (
            "prism",
            ["--number_of_worker_harness_threads=x"],
            "--number_of_worker_harness_threads: invalid int value: 'x'",
        ),
        ("prism", ["--prism_log_level=loud"], "--prism_log_level: invalid choice: 'loud'"),
        ("spark", ["--spark_submit_uber_jar"], "needs --spark_rest_url"),
        ("local", [CLUSTER], "--flink_master: needs --runner flink; --runner is local"),
        ("LOCAL", ["--parallelism", "32"], "--parallelism: needs --runner flink"),
        ("DirectRunner", ["--spark_master_url=spark://h:1"], "needs --runner spark; --runner is DirectRunner"),
        ("local", ["--prism_location=p"], "needs --runner prism"),
        ("local", [PROCESS], "--environment_type: needs --runner with an engine, such as flink"),
        ("local", ["--max_num_workers=3"], "--max_num_workers: needs --runner with an engine"),
        ("local", ["--s3_endpoint_url=http://h"], "--s3_endpoint_url: needs --runner with an engine"),
        ("local", ["--direct_num_workers=3"], "must be given as --workers"),
        ("spark", ["--parallelism=3"], "--parallelism: needs --runner flink; --runner is spark"),
        ("prism", ["--spark_master_url=local"], "needs --runner spark; --runner is prism"),
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


def test_each_flag_of_an_engine_has_an_owner() -> None:
    """The names of Beam's classes are copies: a release that renames one would let its flags pass."""
    from apache_beam.options import pipeline_options

    assert [
        name for name in (*engine_flags.OF_ONE, *engine_flags.OF_ENGINES) if not hasattr(pipeline_options, name)
    ] == []
    known = set(engine_flags.known())
    assert not {f"--{name}" for name in (*engine_flags.READ_HERE, *engine_flags.NUMBERS)} - known


def test_dataflow_needs_beams_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'apache-beam\[gcp\]'"):
        engine_checks.check_flags("dataflow", [*CLOUD, "--sdk_container_image=i"], output="s3://b/out")


@pytest.mark.parametrize(
    ("runner", "given"),
    [
        ("local", ["--experiments=x", "--default_sdk_harness_log_level=INFO", "--direct_running_mode=in_memory"]),
        ("my.own.Runner", [CLUSTER, "--parallelism=2"]),
        ("FnApiRunner", ["--direct_num_workers=2"]),
        ("PortableRunner", ["--job_endpoint=h:1", "--parallelism=2", "--environment_type=LOOPBACK"]),
        ("flink", ["--flink_master=[local]"]),
        ("flink", ["--environment_type=EXTERNAL", "--environment_option=external_service_address=h:1"]),
        ("flink", ["--environment_type=EXTERNAL", '--environment_config={"url": "h:1"}']),
        ("prism", ["--environment_type=DOCKER", "--environment_config=image"]),
        ("prism", ["--environment_type=DOCKER", "--environment_option=docker_container_image=image"]),
        ("prism", ["--environment_type=beam:env:anyof:v1"]),
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
    masters = {"flink": "--flink_master=127.0.0.1:81", "spark": "--spark_master_url=spark://127.0.0.1:77"}
    if runner in masters:
        with pytest.raises(MissingInput, match="no such program"):
            engine_checks.check_flags(runner, [masters[runner], PROCESS, missing])
        engine_checks.check_flags(runner, [masters[runner].replace("127.0.0.1", "h"), PROCESS, missing])


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
    names = {"flink": "flink_job_server_jar", "spark": "spark_job_server_jar", "prism": "prism_location"}
    for runner, name in names.items():
        with pytest.raises(MissingInput, match=f"--{name} .*server.jar: no such file"):
            engine_checks.check_flags(runner, [f"--{name}={jar}"])
        engine_checks.check_flags(runner, [f"--{name}=https://h/server.jar"])
    make_jar(jar)
    engine_checks.check_flags("flink", [f"--flink_job_server_jar={jar}"])
    java.unlink()
    with pytest.raises(UsageError, match="--runner flink: needs java"):
        engine_checks.check_flags("flink", [])
    engine_checks.check_flags("flink", ["--flink_submit_uber_jar"])
    engine_checks.check_flags("flink", ["--job_endpoint=h:1", "--environment_type=LOOPBACK"])


def make_jar(path: Path, manifest: str = "Manifest-Version: 1.0\r\nMain-Class: a.B\r\n") -> Path:
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF" if manifest else "a.txt", manifest)
    return path


def test_what_is_no_jar_and_no_program_is_refused(tmp_path: Path) -> None:
    jar = tmp_path / "server.jar"
    for bad in (b"", b"# README", b"PK\x03\x04 cut off"):
        jar.write_bytes(bad)
        with pytest.raises(UsageError, match="--spark_job_server_jar .*server.jar: must be the jar of a job server"):
            engine_checks.check_flags("spark", [f"--spark_job_server_jar={jar}"])
    for manifest in ("", "Manifest-Version: 1.0\n"):
        make_jar(jar, manifest)
        with pytest.raises(UsageError, match="with a main class in its manifest"):
            engine_checks.check_flags("flink", [f"--flink_job_server_jar={jar}"])
    for head, right in ((b"# README", False), (b"", False), (b"\x7fELF", True), (b"#!/bin/sh", True)):
        jar.write_bytes(head)
        with contextlib.nullcontext() if right else pytest.raises(UsageError, match="must be the program prism"):
            engine_checks.check_flags("prism", [f"--prism_location={jar}"])


def test_a_port_of_the_job_server_must_be_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENWIT_ENGINES", str(tmp_path))
    (tmp_path / "prism").touch()
    make_jar(tmp_path / "beam-flink-1.19.jar")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for runner, name in (("prism", "job_port"), ("flink", "artifact_port"), ("flink", "expansion_port")):
            with pytest.raises(UsageError, match=f"--{name} {port}: taken by another process"):
                engine_checks.check_answers(runner, [f"--{name}={port}"])
            engine_checks.check_answers(runner, [f"--{name}={port}", "--job_endpoint=embed"])  # none is started here
            engine_checks.check_answers(runner, [f"--{name}=0"])
    engine_checks.check_answers("prism", [f"--job_port={port}"])


@pytest.mark.parametrize("runner", ["prism", "flink", "spark"])
def test_an_engine_that_is_not_here_is_looked_for_before_out_is_made(
    runner: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beam downloads it. The message names the folder of those that were fetched, and the variable for it."""
    monkeypatch.setenv("OPENWIT_ENGINES", str(tmp_path))
    asked: list[list[str]] = []

    def download(name: str, flags: list[str]) -> None:
        asked.append(flags)
        raise RuntimeError("Unable to fetch remote jar at https://h/a.jar: 404. Also at b")

    monkeypatch.setattr(runners, "download_engine", download)
    with pytest.raises(
        UsageError, match=rf"is not in {tmp_path}.*\(https://h/a.jar\).*OPENWIT_ENGINES names its folder"
    ):
        engine_checks.check_answers(runner, [])
    assert asked == [["--flink_version=1.19"] if runner == "flink" else []]  # the version that was run


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

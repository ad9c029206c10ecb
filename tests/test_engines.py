"""The same data set on every engine: the local runner, Beam's portable API, Prism, Flink and Spark.

All stages run on a small web: a WARC with images inside, a WAT, tables, and the pictures on loopback. Each run is a
process of its own with a time limit, since engines hang more often than they fail. At the limit its whole process group
is killed. Prism, Flink and Spark come from `make engines`. Without it their tests skip.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.demo import smallweb
from pipeline.schema import STAGES
from tests.places import ROOT
from tests.processes import group_members
from tools.cluster import KINDS, Flink

ENGINES = Path(os.environ.get("OPENWIT_ENGINES", ROOT / ".engines"))
LIMIT = 240  # seconds a run
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # it runs for seconds: a third less CPU than with HotSpot
WORKER = str(Path(sys.executable).parent / "openwit-worker")

pytestmark = [pytest.mark.engines, pytest.mark.timeout(LIMIT + 60)]

RUNS = {
    "two workers": ["--workers", "2"],
    "portable": ["--runner", "PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
    "portable, shuffle": [
        *["--runner", "PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
        *["--exchange", "shuffle"],
    ],
    "prism": ["--runner", "PrismRunner"],
    "flink": ["--runner", "FlinkRunner", "--parallelism=2"],
    "spark": ["--runner", "spark"],
}


SELECT = ("--stages", "gather..balance")


@dataclasses.dataclass(frozen=True)
class Given:
    """What all runs read: the files, and the other arguments."""

    inputs: tuple[Path, ...]
    arguments: tuple[str, ...]

    def command(self, out: Path, *more: str) -> list[str]:
        """The command line. The order of the inputs depends on the folder, and must not matter."""
        inputs = sorted(map(str, self.inputs))
        random.Random(str(out)).shuffle(inputs)
        command = [sys.executable, "-m", "pipeline.build", "--input", *inputs, "--output", str(out)]
        return [*command, *self.arguments, *more]


def need(engine: str) -> None:
    """Skips the test if the engine is not installed."""
    if engine.startswith("prism") and not (ENGINES / "prism").exists():
        pytest.skip("prism is not here: run `make engines`")
    jars = {"flink": "beam-flink-1.19.jar", "spark": "beam-spark-3.jar"}
    if jar := jars.get(engine.split(",")[0]):
        if not (ENGINES / jar).exists():
            pytest.skip(f"{jar} is not here: run `make engines`")
        if shutil.which("java") is None:
            pytest.skip(f"{jar} needs java")


def start(out: Path, given: Given, *more: str) -> subprocess.Popen[str]:
    """Starts a build in a process group of its own."""
    env = os.environ | {"OPENWIT_ENGINES": str(ENGINES), "JAVA_TOOL_OPTIONS": JVM}
    command = given.command(out, *more)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env, cwd=ROOT)


def kill(process: subprocess.Popen[str]) -> None:
    """Ends the process and all processes that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def facts(out: Path) -> dict[str, Any]:
    """What must be the same: digest and rows of each finished stage and of the published set."""
    found: dict[str, Any] = {}
    for path in sorted((out / "stages").glob("*/info.json")):
        info = json.loads(path.read_text())
        found[info["stage"]] = info["digest"], info["rows_in"], info["rows_out"], info["dropped"]
    if (out / "manifest.json").exists():
        manifest = json.loads((out / "manifest.json").read_text())
        found["manifest"] = manifest["digest"], manifest["files"]
    return found


def run(out: Path, given: Given, *more: str, limit: float = LIMIT) -> dict[str, Any]:
    """Runs a build to its end. Returns its facts."""
    process = start(out, given, *more)
    try:
        _, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        kill(process)
        pytest.fail(f"not done after {limit:g} s: {process.communicate()[1][-2000:]}")  # this closes the pipe, too
    finally:
        kill(process)
    assert process.returncode == 0, said
    return facts(out)


def write_tables(folder: Path, web: smallweb.SmallWeb) -> None:
    """Writes three tables of the pictures and of some missing pictures, with duplicates."""
    rng = random.Random(5)
    words = "a red blue green dog circle house tree star boat moon snow of and small garden".split()
    there = [web.base + path for path in sorted(web.pictures)]
    gone = [f"{web.base}/gone/{number}.jpg" for number in range(20)]
    # Up to five texts for each URL: a URL with more than eight, those of the archives among them, is a placeholder.
    texts_of = {url: [" ".join(rng.choices(words, k=rng.randint(2, 8))) for _ in range(5)] for url in there + gone}
    for part in range(3):
        urls = rng.choices(there, k=500) + rng.choices(gone, k=100)
        texts = [rng.choice(texts_of[url]) for url in urls]
        pq.write_table(pa.table({"url": urls, "text": texts}), folder / f"pairs-{part}.parquet")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    """A small web that is served while the tests run, its archives, tables of it, and queries."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "in").mkdir()
    words = [*smallweb.COLOURS, *smallweb.SHAPES, "a", "on", "of", "snow", "moon", "red star", "blue house"]
    (folder / "queries.txt").write_text("\n".join(words))
    with smallweb.serve(pages=16) as web:
        originals = sorted(web.pictures)[:20]  # URL hashes depend on the port: with 20 pictures some are selected
        web.pictures.update({f"/copies/{number}.jpg": web.pictures[path] for number, path in enumerate(originals)})
        smallweb.write_warc(web, str(folder / "in" / "crawl-0.warc.gz"), pages=slice(0, 8))
        smallweb.write_wat(web, str(folder / "in" / "crawl-1.warc.wat.gz"), pages=slice(8, None))
        write_tables(folder / "in", web)
        arguments = ("--queries", str(folder / "queries.txt"), "--allow-address", "127.0.0.0/8")
        small = ("--cap", "16", "--shards", "60")  # dedup keeps the smallest uid, so the first ranges hold the most
        yield Given(tuple((folder / "in").iterdir()), (*arguments, *small))


@pytest.fixture(scope="module")
def expected(given: Given, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of one worker of the local runner. All kinds of rows occur in them."""
    out = tmp_path_factory.mktemp("engines-one") / "out"
    found = run(out, given, "--workers", "1")
    assert set(found) == {*STAGES, "manifest"}
    for stage, drops in {
        "gather": "opt_out",
        "dedup": "other_text",
        "balance": "over_cap",
        "fetch": "http_4xx",
    }.items():
        assert found[stage][3].get(drops), found
    assert found["dedup-images"][3].get("same_image"), found
    assert found["publish"][2] > 30, found
    assert json.loads((out / "stages" / "fetch" / "info.json").read_text())["archived_images"] > 10
    assert len(list((out / "shards").glob("*.tar"))) > 2
    return found


@pytest.mark.parametrize("engine", RUNS)
def test_every_engine_makes_the_same_data_set(
    engine: str, given: Given, expected: dict[str, Any], tmp_path: Path
) -> None:
    need(engine)
    assert run(tmp_path / "out", given, *RUNS[engine]) == expected


@pytest.mark.parametrize(
    ("engine", "number"),
    [("local", signal.SIGTERM), ("prism", signal.SIGTERM), ("flink", signal.SIGINT)],  # local, SIGINT: test_reliability
)
def test_an_interrupted_run_leaves_nothing_running(
    engine: str, number: signal.Signals, given: Given, expected: dict[str, Any], tmp_path: Path
) -> None:
    need(engine)
    out = tmp_path / "out"
    process = start(out, given, *SELECT, "--runner", engine, *(["--workers", "2"] if engine == "local" else []))
    try:
        deadline = time.monotonic() + LIMIT / 2
        while not any((out / "stages").glob("*/parts/*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert "Traceback" not in said
        deadline = time.monotonic() + 30  # a JVM starts slowly on a busy machine
        while group_members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not group_members(process.pid)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        time.sleep(0.5)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before  # tools/ends.py waits longer
    finally:
        kill(process)
    selected = {stage: expected[stage] for stage in STAGES[:4]}
    assert run(out, given, *SELECT, "--workers", "1") == selected  # the same command continues the run


@pytest.fixture(scope="module")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flink]:
    """A Flink cluster of three processes: a job manager and two task managers."""
    if not (ENGINES / "flink" / "lib").is_dir():
        pytest.skip("Flink itself is not here: run `make engines`")
    cluster = Flink(tmp_path_factory.mktemp("flink") / "cluster", ENGINES / "flink")
    cluster.start(2, apart=False)
    yield cluster
    cluster.stop()


def jobs(cluster: Flink) -> list[tuple[str, str]]:
    """(name, state) of the jobs of a cluster, the oldest first."""
    found = sorted(cluster.get("/jobs/overview")["jobs"], key=lambda job: job["start-time"])
    return [(job["name"], job["state"]) for job in found]


def wait_for(condition: Any, seconds: float = LIMIT) -> None:
    """Waits until a function returns something true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.timeout(6 * LIMIT)
def test_a_job_on_a_cluster_ends_with_its_client(
    flink: Flink, given: Given, expected: dict[str, Any], tmp_path: Path
) -> None:
    need("flink")
    out, on_flink = tmp_path / "out", ["--runner", "flink", f"--flink_master={flink.address}", "--parallelism=2"]
    on_flink += ["--environment_type=PROCESS", f"--environment_option=process_command={WORKER}"]
    killed = start(out, given, *SELECT, *on_flink)
    wait_for(lambda: jobs(flink)[-1:] and jobs(flink)[-1][1] == "RUNNING")
    kill(killed)
    killed.communicate()
    assert jobs(flink)[-1][1] == "RUNNING"  # a killed client cannot end it
    again = start(out, given, *SELECT, *on_flink)
    try:
        wait_for(lambda: any((out / "stages").glob("*/parts/*.json")))
        assert [state for _, state in jobs(flink)] == ["CANCELED", "RUNNING"]
        again.send_signal(signal.SIGINT)
        _, said = again.communicate(timeout=60)
    finally:
        kill(again)
    assert again.returncode == 130, said
    assert [state for _, state in jobs(flink)] == ["CANCELED", "CANCELED"]
    before = sorted(out.rglob("*"))
    time.sleep(2)
    assert sorted(out.rglob("*")) == before  # nothing writes there any more
    assert run(out, given, *SELECT, *on_flink) == {stage: expected[stage] for stage in STAGES[:4]}
    assert jobs(flink)[-1][1] == "FINISHED"


@pytest.mark.timeout(6 * LIMIT)
def test_a_cluster_that_dies_ends_the_run(flink: Flink, given: Given, tmp_path: Path) -> None:
    need("flink")
    out, on_flink = tmp_path / "out", ["--runner", "flink", f"--flink_master={flink.address}", "--parallelism=2"]
    on_flink += ["--environment_type=PROCESS", f"--environment_option=process_command={WORKER}"]
    os.environ["OPENWIT_STALL_SECONDS"] = "10"
    try:
        waiting = start(out, given, *SELECT, *on_flink)
    finally:
        del os.environ["OPENWIT_STALL_SECONDS"]
    try:
        wait_for(lambda: jobs(flink)[-1][1] == "RUNNING")
        flink.stop()
        _, said = waiting.communicate(timeout=LIMIT)
    finally:
        kill(waiting)
    assert waiting.returncode == 1 and "does not answer" in said and "Traceback" not in said, said


@pytest.mark.skipif(not os.environ.get("OPENWIT_TEST_CLUSTERS"), reason="minutes: set OPENWIT_TEST_CLUSTERS=1")
@pytest.mark.timeout(6 * LIMIT)
@pytest.mark.parametrize("name", KINDS)
def test_the_whole_pipeline_on_a_cluster(name: str, given: Given, expected: dict[str, Any], tmp_path: Path) -> None:
    need(name)
    cluster = KINDS[name](tmp_path / "cluster", ENGINES / name)
    if not (cluster.engine / cluster.runs).is_dir():
        pytest.skip(f"{name} itself is not here: run `make engines`")
    processes = ("--environment_type=PROCESS", f"--environment_option=process_command={WORKER}")
    cluster.start(2, apart=False)  # the pictures are served on loopback
    try:
        assert run(tmp_path / "out", given, *cluster.flags(slots=2), *processes, limit=4 * LIMIT) == expected
        if name == "spark":
            page = cluster.get("/json/")
            assert not page["activeapps"] and {app["state"] for app in page["completedapps"]} == {"FINISHED"}
    finally:
        cluster.stop()

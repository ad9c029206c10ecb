"""The same rows on every engine: the local runner, Beam's portable API, Prism and Flink.

Each run is a process of its own with a limit of its own, since engines hang more often than they fail; at the limit its
whole group is killed. Prism and Flink come from `make engines`; without it their tests skip.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent
ENGINES = Path(os.environ.get("OPENWIT_ENGINES", ROOT / ".engines"))
LIMIT = 100  # seconds a run
STAGES = ("gather", "match", "dedup", "balance")
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
    "prism, processes": [
        *["--runner", "prism", "--environment_type=PROCESS"],
        f"--environment_option=process_command={WORKER}",
    ],
    "flink": ["--runner", "FlinkRunner"],
}


def need(engine: str) -> None:
    """Skips where the engine is not here."""
    if engine.startswith("prism") and not (ENGINES / "prism").exists():
        pytest.skip("prism is not here: run `make engines`")
    if engine.startswith("flink"):
        if not (ENGINES / "beam-flink-1.19.jar").exists():
            pytest.skip("the Flink job server is not here: run `make engines`")
        if shutil.which("java") is None:
            pytest.skip("Flink needs java")


def start(out: Path, inputs: Path, *more: str) -> subprocess.Popen[str]:
    """A build in a process group of its own."""
    command = [sys.executable, "-m", "pipeline.build", "--input", str(inputs), "--output", str(out)]
    command += ["--queries", str(inputs.parent / "queries.txt"), "--cap", "6", "--stages", "gather..balance", *more]
    env = os.environ | {"OPENWIT_ENGINES": str(ENGINES)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env, cwd=ROOT)


def kill(process: subprocess.Popen[str]) -> None:
    """Ends the process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def digests(out: Path, inputs: Path, *more: str) -> dict[str, tuple[str, int]]:
    """Runs a build to its end: stage -> digest and rows."""
    process = start(out, inputs, *more)
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        pytest.fail(f"not done after {LIMIT} s")
    finally:
        kill(process)
    assert process.returncode == 0, said
    infos = {stage: json.loads((out / "stages" / stage / "info.json").read_text()) for stage in STAGES}
    return {stage: (info["digest"], info["rows_out"]) for stage, info in infos.items()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small tables with duplicates, and queries beside it."""
    folder = tmp_path_factory.mktemp("engines")
    words = "a dog cat red blue sea tower bridge rare bird on of and small large house".split()
    rng = random.Random(5)
    (folder / "queries.txt").write_text("\n".join([*words, "red dog", "small house", "blue sea"]))
    (folder / "in").mkdir()
    for part in range(3):
        urls = [f"https://host{rng.randrange(40)}.example/{rng.randrange(800)}.jpg" for _ in range(600)]
        texts = [" ".join(rng.choices(words, k=rng.randint(2, 8))) for _ in range(600)]
        pq.write_table(pa.table({"url": urls, "text": texts}), folder / "in" / f"{part}.parquet")
    return folder / "in"


@pytest.fixture(scope="module")
def expected(inputs: Path) -> dict[str, tuple[str, int]]:
    """What one worker of the local runner makes."""
    found = digests(inputs.parent / "one", inputs, "--workers", "1")
    assert found["balance"][1] > 20
    return found


@pytest.mark.parametrize("engine", RUNS)
def test_every_engine_gives_the_same_rows(
    engine: str, inputs: Path, expected: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    need(engine)
    assert digests(tmp_path / "out", inputs, *RUNS[engine]) == expected


def group_members(group: int) -> list[str]:
    """Command lines of the processes of a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            state, _, number = stat[stat.rindex(")") + 2 :].split()[:3]
            if int(number) == group and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.parametrize(
    ("engine", "number"),
    [("local", signal.SIGINT), ("local", signal.SIGTERM), ("prism", signal.SIGTERM), ("flink", signal.SIGINT)],
)
def test_an_interrupted_run_leaves_nothing_running(
    engine: str, number: signal.Signals, inputs: Path, expected: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    need(engine)
    out = tmp_path / "out"
    process = start(out, inputs, "--runner", engine, *(["--workers", "2"] if engine == "local" else []))
    try:
        deadline = time.monotonic() + LIMIT / 2
        while not any((out / "stages").glob("*/parts/*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert "Traceback" not in said or engine == "prism"  # Beam's worker threads print theirs past the logging
        deadline = time.monotonic() + 5
        while group_members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not group_members(process.pid)
    finally:
        kill(process)
    assert digests(out, inputs, "--workers", "1") == expected  # the same command goes on where it was

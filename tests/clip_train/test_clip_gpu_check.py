"""benchmarks/gpu_check.py on a CPU with small models: what it writes, and what becomes of a check that goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

ROOT = Path(__file__).parents[2]
# checks of another kind, each with the seconds that are left for it
FAKE = """
import os, pathlib, runpy, sys, time
import benchmarks.gpu_check as g
def wrong(_): g.require(False, "off by 3 | 4")
def breaks(_): raise ValueError("x")
def dies(_): os._exit(7)
def hangs(_): time.sleep(600)
checks = (("good", lambda _: {"number": 1.5}, 100), ("wrong", wrong, 100), ("breaks", breaks, 100), ("dies", dies, 100),
          ("hangs", hangs, 3), ("late", lambda _: {}, 0.5))
setting = g.Setting(True, "", "")
g.write(pathlib.Path(sys.argv[1]), [g.perform(g.Check(name, 1, run), setting, left) for name, run, left in checks])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of checks of another kind, and of some true ones by the command line. One process does both."""
    folders = tmp_path_factory.mktemp("fake"), tmp_path_factory.mktemp("true")
    words = [str(ROOT / "benchmarks" / "gpu_check.py"), "--small", "--budget", "150", "--output", str(folders[1]),
             "--only", "environment", "loss", "packed", "logits", "fp16"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FAKE, str(folders[0]), *words],
        env=environment, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folders


def test_each_result_is_written_and_the_rest_is_skipped(results):
    folder, _ = results
    rows = {row["name"]: row for row in json.loads((folder / "gpu_check.json").read_text())}
    assert rows["good"]["status"] == "ok" and rows["good"]["numbers"] == {"number": 1.5}
    assert (rows["wrong"]["status"], rows["wrong"]["reason"]) == ("wrong", "off by 3 | 4")
    assert (rows["breaks"]["status"], rows["breaks"]["reason"]) == ("failed", "ValueError: x")
    assert (rows["dies"]["status"], rows["dies"]["reason"]) == ("failed", "the process ended with 7")
    assert rows["hangs"]["status"] == "failed"
    assert rows["hangs"]["reason"].startswith("not done after 3 s, in <string>:7 hangs")
    assert rows["late"]["status"] == "skipped" and "0 s left, needs 1" in rows["late"]["reason"]
    assert "| wrong | wrong |" in (folder / "gpu_check.md").read_text()


def test_checks_of_what_is_right_hold_on_a_cpu(results):
    _, folder = results
    rows = {row["name"]: row["status"] for row in json.loads((folder / "gpu_check.json").read_text())}
    assert rows.pop("fp16") == "skipped" and set(rows.values()) == {"ok"} and len(rows) == 4

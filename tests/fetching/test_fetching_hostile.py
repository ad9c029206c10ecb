"""Makes a network namespace with only the loopback device, and runs hostile_network.py in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import hostile_suite
from tests.hostile_network import METADATA, SITES
from tests.places import ROOT

SET_UP = " && ".join(
    ["ip link set lo up", *(f"ip addr add {one}/32 dev lo" for one in (*SITES, METADATA)), 'exec "$@"']
)


def test_the_small_suite(tmp_path: Path) -> None:
    """The large one is run by hand: python -m tests.hostile_suite"""
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs the commands unshare and ip (util-linux, iproute2)")
    command = hostile_suite.in_a_namespace(["--small"], tmp_path)
    if subprocess.run([*command[: command.index(sys.executable)], "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_in_a_namespace() -> None:
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs the commands unshare and ip (util-linux, iproute2)")
    command = [*unshare, "sh", "-c", SET_UP, "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    pytest_here = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "tests/hostile_network.py",
    ]
    done = subprocess.run(
        [*command, *pytest_here],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout

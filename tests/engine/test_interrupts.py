"""A signal ends a command with one line and exit code 130, while it is still importing its packages, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

# A thread of Arrow reads from a Python object. It asks for Python while the process ends.
SLOW_READER = """
from pipeline.engine import interrupts
interrupts.install("pipeline.build")
import atexit, io, sys, time
import pyarrow as pa
from pyarrow import csv
class Slow(io.RawIOBase):
    calls = 0
    def readable(self):
        return True
    def read(self, size=-1):
        Slow.calls += 1
        time.sleep(0.2 if Slow.calls > 2 else 0)
        return b"key,s\\n" + b"0,1\\n" * 20_000
reader = csv.open_csv(pa.PythonFile(Slow(), "r"), csv.ReadOptions(block_size=1 << 16))
reader.read_next_batch()
atexit.register(print, "registered")
print("printed")
sys.exit(interrupts.ending(2))
"""
SLOW_PACKAGE = "import sys, time\nsys.stdout.write('importing')\nsys.stdout.flush()\ntime.sleep(60)\n"
BUILD = "import pipeline.commands; sys.exit(pipeline.commands.build())"


def test_a_thread_that_needs_python_does_not_abort_a_command_that_ends() -> None:
    found = subprocess.run([sys.executable, "-c", SLOW_READER], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (2, "printed\nregistered\n", "")


def test_an_interrupt_of_our_own_says_why() -> None:
    """A run that has lost its lease interrupts itself, at any moment."""
    script = (
        "from pipeline.engine import interrupts; interrupts.install('p'); import os, signal\n"
        "interrupts.because('this run has lost the output'); os.kill(os.getpid(), signal.SIGINT)"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr) == (1, "p: this run has lost the output\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("pipeline.build", ["-m", "pipeline.build"]),
        ("pipeline.build", ["-c", f"import sys; sys.path.insert(0, sys.argv.pop()); {BUILD}"]),
        ("queries.build", ["-m", "queries.build"]),
    ],
)
def test_a_signal_during_the_imports(tmp_path: Path, number: int, program: str, command: list[str]) -> None:
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow/__init__.py").write_text(SLOW_PACKAGE)
    started = subprocess.Popen(
        [sys.executable, *command, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert started.stdout is not None
    assert started.stdout.read(9) == b"importing"
    started.send_signal(number)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130
    assert said.decode() == f"{program}: interrupted. Run the same command again to continue.\n"


def test_a_forked_child_ends_without_the_line(tmp_path: Path) -> None:
    program = (
        "import os, signal, time\nfrom pipeline.engine import interrupts\ninterrupts.install('a command')\n"
        "ready, started = os.pipe()\nchild = os.fork()\n"
        "if not child:\n    os.write(started, b'x')\n    time.sleep(60)\n    os._exit(1)\n"
        "os.read(ready, 1)\nos.kill(child, signal.SIGTERM)\nprint(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)\n"
        "interrupts.end_within(0.01)\ntime.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == f"{int(signal.SIGTERM)}\n" and done.returncode == 130
    assert done.stderr == "a command: interrupted. Run the same command again to continue.\n"

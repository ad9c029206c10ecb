"""A signal ends a command with one line and exit code 130, while it is still importing its packages, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

SLOW_PACKAGE = "import sys, time\nsys.stdout.write('importing')\nsys.stdout.flush()\ntime.sleep(60)\n"
BUILD = "import pipeline.commands; sys.exit(pipeline.commands.build())"


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

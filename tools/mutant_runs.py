"""Runs tests in a forked child of a process that has imported all libraries, in a copy of the checkout.

A child starts in milliseconds, where a new interpreter with Beam, Arrow, numba and torch takes seconds. The project's
own packages are imported in the child alone, so that it sees the fault.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools.mutant_tests import PACKAGES

COPIED = (*PACKAGES, "tests", "benchmarks", "tools", "setup.cfg", "ruff.toml", "README.md", "CONTRIBUTING.md", "docs")
OWN = (*PACKAGES, "tests", "tools", "benchmarks")
MEMORY = 8 << 30  # bytes that a faulty process may map for itself
FILE_SIZE = 2 << 30  # bytes of a file that it may write
KERNELS = "pipeline/engine/__pycache__/kernels-*"
FINE = (0, 1, 5)  # exit codes of pytest: all passed, some failed (the report names them), no test
ENDED = 3  # exit code of a child that pytest did not end


@dataclass(frozen=True)
class Report:
    """What a run of tests did. `ended` is False if it was stopped at its time limit."""

    ended: bool
    failed: str  # the first test that failed, "" if none did
    seconds: dict[str, float]
    entered: dict[str, list[str]]
    shared: list[str]
    complete: bool = False  # True if every test was run


def preload(root: Path) -> int:
    """Imports the libraries that the project and its tests name, but none of its own modules. Returns their number."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    names: set[str] = set()
    for package in (*PACKAGES, "tests"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module)
    loaded = 0
    for name in sorted(name for name in names if name.split(".")[0] not in OWN):
        with contextlib.suppress(Exception):  # optional, or not for this machine
            importlib.import_module(name)
            loaded += 1
    return loaded


def refresh(root: Path, folder: Path) -> Path:
    """Brings a copy of a checkout up to date, with the times of its files. Compiled kernels stay. Returns the copy."""
    copy = folder / "checkout"
    wanted = set()
    for name in COPIED:
        paths = sorted((root / name).rglob("*")) if (root / name).is_dir() else [root / name]
        for path in paths:
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(target := copy / path.relative_to(root))
                if not _same(path, target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, target)
    for path in copy.rglob("*.py"):
        if path not in wanted:
            path.unlink()
    shared = folder / "shared"
    if (root.parent / "shared").exists() and not shared.exists():
        shared.symlink_to((root.parent / "shared").resolve())
    return copy


def compile_kernels(checkout: Path) -> None:
    """Compiles the kernels of a new copy, so that no test seems to be slow because it compiles one."""
    if (checkout / "pipeline/engine/jit.py").exists() and not any(checkout.glob(KERNELS)):
        command = [sys.executable, "-m", "pipeline.engine.jit"]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)


def _same(path: Path, target: Path) -> bool:
    if not target.is_file():
        return False
    ours, theirs = path.stat(), target.stat()
    return ours.st_size == theirs.st_size and ours.st_mtime_ns == theirs.st_mtime_ns


@contextlib.contextmanager
def changed(checkout: Path, path: Path, source: bytes, number: int) -> Iterator[None]:
    """Writes a source file, and puts the old one back, with its time. Each `number` gives the file a time of its own.

    Python and numba look at the size and the time of a source to know whether what they compiled still holds.
    """
    before, stat = path.read_bytes(), path.stat()
    kernels = set(checkout.glob(KERNELS))
    path.write_bytes(source)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (number + 1) * 2 * 10**9))
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        for folder in set(checkout.glob(KERNELS)) - kernels:
            shutil.rmtree(folder, ignore_errors=True)


def run_tests(
    checkout: Path,
    files: list[str],
    *,
    chosen: list[str] | None,
    seconds: float,
    trace: bool = False,
    stop_after: float = 0,
    without: Collection[str] = (),
) -> Report:
    """Runs tests in a child: `chosen` ones in their order, or all of the files (`chosen` is None).

    It stops at the first test that fails, unless it traces.

    Args:
        checkout: where they run.
        files: that hold them.
        chosen: their ids.
        seconds: the child is killed after so many.
        trace: note which functions each test enters.
        stop_after: no further test starts after so many seconds (0: no such limit).
        without: ids of tests that are not run.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        out = Path(place, "report.json")
        Path(place, "tmp").mkdir()
        pid = os.fork()
        if not pid:
            _child(
                checkout, files, chosen=chosen, recorder=_Recorder(chosen, checkout, trace, stop_after, out, without)
            )
        status = _wait(pid, seconds)
        ended = status is not None
        log = Path(place, "log").read_text(errors="replace") if Path(place, "log").exists() else ""
        if not out.exists():
            return Report(ended, "" if not ended else log[-300:] or "no report", {}, {}, [])
        report = Report(ended, **json.loads(out.read_text()))
        if status not in (None, *FINE) and not report.failed:  # interrupted, or killed after the report
            report = dataclasses.replace(report, failed=f"pytest ended with {status}")
        return report


def _wait(pid: int, seconds: float) -> int | None:
    """Waits for a child, and ends it and its group after `seconds`. Returns its exit code; None: it was ended."""
    until = time.monotonic() + seconds
    ended = False
    try:
        while time.monotonic() < until:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended = True
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None
    finally:
        _end(pid, reap=not ended)


def _end(pid: int, *, reap: bool) -> None:
    """Kills the group of a child, and all descendants that it still has."""
    family = _descendants(pid)
    for kill, number in [(os.killpg, pid), *((os.kill, each) for each in family)]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(number, signal.SIGKILL)
    if reap:
        os.waitpid(pid, 0)


def _descendants(pid: int) -> list[int]:
    parents = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(name)] = int(Path("/proc", name, "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def _child(checkout: Path, files: list[str], *, chosen: list[str] | None, recorder: _Recorder) -> None:
    """Runs pytest in this process, and ends it."""
    code = ENDED
    try:
        os.setsid()
        place = recorder.out.parent
        log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(source, number)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        os.chdir(checkout)
        os.environ |= {"PYTHONPATH": str(checkout), "TMPDIR": str(place / "tmp")}
        tempfile.tempdir = None
        sys.path[:] = [str(checkout), *sys.path[1:]]
        for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
            del sys.modules[name]
        sys.modules["__main__"] = types.ModuleType("__main__")
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=line", "-m", "not engines"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        options += [] if recorder.trace else ["-x"]
        code = int(pytest.main([*options, *files], plugins=[recorder]))
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Recorder:
    """A plugin of pytest: chooses and orders the tests, and writes what they did to a JSON file."""

    def __init__(
        self,
        chosen: list[str] | None,
        checkout: Path,
        trace: bool,
        stop_after: float,
        out: Path,
        without: Collection[str],
    ) -> None:
        self.without = frozenset(without)
        self.complete = True
        self.order = None if chosen is None else {test: place for place, test in enumerate(chosen)}
        self.checkout, self.trace, self.out = f"{checkout}/", trace, out
        self.until = time.monotonic() + stop_after if stop_after else 0
        self.seconds: dict[str, float] = {}
        self.entered: dict[str, list[str]] = {}
        self.shared: set[str] = set()
        self.bad: set[str] = set()
        self.failed = ""
        self.codes: set[types.CodeType] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [each for each in items if each.nodeid not in self.without]
        if self.order is not None:
            order = self.order
            items[:] = sorted((each for each in items if each.nodeid in order), key=lambda each: order[each.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.codes = set()
        self._watch(self.trace)
        try:
            return (yield)
        finally:
            self._watch(False)
            if self.trace:
                self.entered[item.nodeid] = self._names()
            if self.until and time.monotonic() > self.until:
                item.session.shouldstop = "the time of this file is over"
                self.complete = False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[object]:
        if not self.trace or fixturedef.scope == "function":
            return (yield)
        before, self.codes = self.codes, set()
        self._watch(True)
        try:
            return (yield)
        finally:
            self.shared.update(self._names())
            self.codes |= before
            self._watch(True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed or report.skipped:
            self.bad.add(report.nodeid)
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} {_last_line(report)}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} {_last_line(report)}"

    def pytest_sessionfinish(self) -> None:
        good = {test: taken for test, taken in self.seconds.items() if test not in self.bad}
        about = {"failed": self.failed, "seconds": good, "entered": self.entered, "shared": sorted(self.shared)}
        self.out.write_text(json.dumps(about | {"complete": self.complete}))

    def _watch(self, on: bool) -> None:
        """Notes each function that is entered from now on, in all threads."""
        codes = self.codes

        def enter(frame: types.FrameType, event: str, argument: object) -> None:
            codes.add(frame.f_code)

        sys.settrace(enter if on else None)
        threading.settrace(enter if on else None)  # type: ignore[arg-type]

    def _names(self) -> list[str]:
        """The functions of the checkout that were entered, as `file:line`. A decorated one begins at its decorator."""
        codes = self.codes.copy()  # a thread may still add to it
        ours = [code for code in codes if code.co_filename.startswith(self.checkout)]
        return sorted({f"{code.co_filename.removeprefix(self.checkout)}:{code.co_firstlineno}" for code in ours})


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    return (report.longreprtext.strip().splitlines() or [""])[-1][:120]

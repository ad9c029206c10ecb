"""Progress: what it reads from manifests, and its output on a terminal, in a notebook and in a log."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import display, progress, screen, storage
from pipeline.engine.progress import Figures, Progress, Watched, watching
from pipeline.engine.work import StepFolder
from tests.places import ROOT


class Log(io.StringIO):
    """A stream that is not a terminal."""

    def take(self) -> list[str]:
        """The lines since the last call."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text.splitlines()


class Clock:
    """A clock that a test moves on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.TextIOWrapper):
    """A real terminal of some columns. `take` returns what was written to it."""

    def __init__(self, columns: int) -> None:
        self.reader, writer = pty.openpty()
        termios.tcsetwinsize(writer, (24, columns))
        super().__init__(open(writer, "wb"), encoding="utf-8")

    def take(self) -> str:
        self.flush()
        found = b""
        while select.select([self.reader], [], [], 0.05)[0]:
            found += os.read(self.reader, 1 << 16)
        return found.decode()


def shown(written: str) -> str:
    """The last line on the screen and all lines before it, of text with carriage returns."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENWIT_PROGRESS", "NO_COLOR", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal() -> Iterator[Callable[[int], Terminal]]:
    opened: list[Terminal] = []

    def make(columns: int) -> Terminal:
        opened.append(Terminal(columns))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
        os.close(one.reader)


def folder(tmp_path: Path, name: str) -> StepFolder:
    return StepFolder(str(tmp_path / name), "stage")


def commit(step: StepFolder, unit: int, rows: int, **more: Any) -> None:
    """Writes the manifest of a unit."""
    manifest = {"fingerprint": "stage", "rows": rows, "seconds": 0.0, **more}
    storage.write_json(step.file(unit, "json"), manifest)


def test_a_log_gets_a_line_after_10_seconds_and_each_30(tmp_path: Path, clock: Clock) -> None:
    step, log = folder(tmp_path, "a"), Log()
    shown = Progress([Watched("match parts", step, 4)], log, clock=clock)
    clock.now += 9
    shown.show()
    assert log.take() == []
    commit(step, 0, 1500, seconds=10)
    clock.now += 1
    shown.show()
    assert log.take() == ["match parts: 1/4 units, 1,500 rows, 150 rows/s, 0:30 left"]
    clock.now += 29
    shown.show()
    assert log.take() == []
    clock.now += 1
    shown.show()
    assert log.take() == ["match parts: 1/4 units, 1,500 rows, 38 rows/s, 2:00 left"]


def test_an_ended_step_leaves_one_line(tmp_path: Path, clock: Clock) -> None:
    first, second, log = folder(tmp_path, "a"), folder(tmp_path, "b"), Log()
    shown = Progress([Watched("gather", first, 2), Watched("dedup", second)], log, clock=clock)
    clock.now += 20
    commit(first, 0, 100, seconds=20)
    commit(first, 1, 300, seconds=15)
    shown.show()
    shown.show()
    assert log.take() == ["gather: 2/2 units, 400 rows, 20.0 s, 20 rows/s", "dedup: 0 units"]
    clock.now += 5
    commit(second, 0, 1, seconds=4.9)
    shown.show()
    assert log.take() == []  # the number of its units is not known
    shown.show(last=True)
    shown.close()
    assert log.take() == ["dedup: 1 unit, 1 row, 4.9 s, 0.2 rows/s"]


def test_a_step_of_unknown_units_has_ended_when_the_next_begins(tmp_path: Path, clock: Clock) -> None:
    first, second, log = folder(tmp_path, "a"), folder(tmp_path, "b"), Log()
    shown = Progress([Watched("dedup", first), Watched("publish", second)], log, clock=clock)
    commit(first, 0, 10)
    shown.show()
    assert log.take() == []
    commit(second, 0, 10)
    shown.show()
    assert log.take() == ["dedup: 1 unit, 10 rows, 0.0 s"]


def test_a_step_that_was_passed_over_is_not_shown_again(tmp_path: Path, clock: Clock) -> None:
    """Stages that run as one write only the manifests of the last stage."""
    steps = [folder(tmp_path, name) for name in "abc"]
    log = Log()
    watched = [Watched("gather", steps[0], 1), Watched("match", steps[1], 1), Watched("dedup", steps[2])]
    shown = Progress(watched, log, clock=clock)
    commit(steps[1], 0, 50, seconds=10)
    clock.now += 10
    shown.show()
    assert log.take() == ["match: 1/1 units, 50 rows, 10.0 s, 5.0 rows/s", "dedup: 0 units"]


def test_what_an_earlier_run_did_counts_into_no_rate(tmp_path: Path, clock: Clock) -> None:
    done, half, log = folder(tmp_path, "a"), folder(tmp_path, "b"), Log()
    commit(done, 0, 7)
    for unit in range(6):
        commit(half, unit, 1000)
    shown = Progress([Watched("gather", done, 1), Watched("match", half, 10)], log, clock=clock)
    clock.now += 10
    shown.show()
    assert log.take() == ["match: 6/10 units, 6,000 rows"]  # and no line for the finished step
    commit(half, 6, 1000, seconds=10)
    clock.now += 30
    shown.show()
    assert log.take() == ["match: 7/10 units, 7,000 rows, 100 rows/s, 0:30 left"]


def test_a_run_that_finds_all_done_says_nothing(tmp_path: Path) -> None:
    step, log = folder(tmp_path, "a"), Log()
    commit(step, 0, 7)
    with watching([Watched("gather", step, 1), Watched("match", folder(tmp_path, "none"))], log):
        pass
    assert log.take() == []


def test_manifests_of_another_plan_count_when_they_are_written_over(tmp_path: Path, clock: Clock) -> None:
    step, log = folder(tmp_path, "a"), Log()
    commit(step, 0, 900, fingerprint="older")
    shown = Progress([Watched("match", step, 2)], log, clock=clock)
    clock.now += 10
    shown.show()
    assert log.take() == ["match: 0/2 units"]
    commit(step, 0, 400, seconds=20)
    clock.now += 30
    shown.show()
    assert log.take() == ["match: 1/2 units, 400 rows, 20 rows/s, 0:20 left"]


def test_manifests_are_read_once_and_a_look_is_cheap(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = folder(tmp_path, "a")
    commit(step, 0, 3)
    for unit in range(1, 10_000):
        os.link(step.file(0, "json"), step.file(unit, "json"))
    read: list[str] = []
    read_json = storage.read_json
    monkeypatch.setattr(storage, "read_json", lambda path: (read.append(path), read_json(path))[1])
    shown = Progress([Watched("match", step, 10_002)], Log(), clock=clock)
    assert len(read) == 10_000
    times = []
    for unit in range(10_000, 10_002):
        commit(step, unit, 3)
        start = time.process_time()
        shown.show()
        times.append(time.process_time() - start)
        shown.show()
    assert [os.path.basename(path) for path in read[10_000:]] == ["10000.json", "10001.json"]
    print(f"a look: {min(times) * 1000:.1f} ms")
    assert min(times) < 0.1  # measured: 8 ms


def test_steps_that_count_no_rows_name_none(tmp_path: Path, clock: Clock) -> None:
    step, log = folder(tmp_path, "a"), Log()
    shown = Progress([Watched("band", step)], log, clock=clock)
    storage.write_json(step.file(0, "json"), {"fingerprint": "stage", "seconds": 0.5})
    clock.now += 1
    shown.show(last=True)
    assert log.take() == ["band: 1 unit, 0.5 s"]


def test_a_stage_adds_words_and_a_total(tmp_path: Path, clock: Clock) -> None:
    step, log, asked = folder(tmp_path, "a"), Log(), []

    def figures(manifests: Sequence[dict[str, Any]]) -> str:
        asked.append(len(manifests))
        ok, rows = (sum(one[name] for one in manifests) for name in ("ok", "rows"))
        return f"{100 * ok // rows} % ok"

    watched = Watched("fetch", step, 5, total=1000, counted="images", figures=figures)
    shown = Progress([watched], log, clock=clock)
    commit(step, 0, 100, ok=80, seconds=10)
    commit(step, 1, 100, ok=100, seconds=10)
    clock.now += 10
    shown.show()
    shown.show()
    assert log.take() == ["fetch: 2/5 units, 200/1,000 images, 20 images/s, 90 % ok, 0:40 left"]
    assert asked == [2]  # once, not at each display


def test_live_figures_are_faster_than_manifests(tmp_path: Path, clock: Clock) -> None:
    step, log, path = folder(tmp_path, "a"), Log(), tmp_path / "live.json"

    def live() -> Figures | None:
        found = storage.read_json(str(path))
        return None if found is None else Figures(found["done"], found["total"], found["words"])

    def tell(done: int, words: str) -> None:
        storage.write_json(str(path), {"done": done, "total": 6000, "words": words})

    tell(3000, "")  # left from an earlier run
    shown = Progress([Watched("fetch", step, 1, counted="images", live=live)], log, clock=clock)
    clock.now += 10
    shown.show()
    assert log.take() == ["fetch: 3,000/6,000 images"]
    tell(3500, "92 % ok, 31 dns\x1b[31m")
    clock.now += 10
    shown.show()
    path.unlink()  # the last figures stay on display
    clock.now += 20
    shown.show()
    assert log.take() == ["fetch: 3,500/6,000 images, 17 images/s, 92 % ok, 31 dns\ufffd[31m, 2:30 left"]
    tell(200, "again")  # the unit failed and began again
    clock.now += 10
    shown.show()
    tell(400, "again")
    clock.now += 20
    shown.show()
    assert log.take() == ["fetch: 400/6,000 images, 10 images/s, again, 9:20 left"]
    commit(step, 0, 6000)
    tell(6000, "")
    clock.now += 1
    shown.show()
    assert log.take() == ["fetch: 6,000/6,000 images, 21.0 s, 276 images/s"]


def test_live_figures_may_come_late(tmp_path: Path, clock: Clock) -> None:
    told: list[Figures] = []
    watched = Watched("fetch", folder(tmp_path, "a"), live=lambda: told[-1] if told else None)
    log = Log()
    shown = Progress([watched], log, clock=clock)
    clock.now += 10
    shown.show()
    told.append(Figures(50))
    clock.now += 30
    shown.show()
    assert log.take() == ["fetch: 0 units", "fetch: 50 rows, 1.7 rows/s"]


def test_a_terminal_has_one_bar_and_lines_of_ended_steps(
    tmp_path: Path, clock: Clock, terminal: Callable[[int], Terminal]
) -> None:
    first, second, out = folder(tmp_path, "a"), folder(tmp_path, "b"), terminal(100)
    bar = Progress([Watched("gather", first, 2), Watched("dedup", second)], out, clock=clock)
    commit(first, 0, 50, seconds=10)
    clock.now += 10
    bar.show()
    written = out.take()
    assert shown(written) == "gather:  50%|██████████          | 1/2 units, 50 rows, 5.0 rows/s, 0:10 left"
    commit(first, 1, 50)
    bar.show()
    written += out.take()
    assert shown(written) == "gather: 2/2 units, 100 rows, 10.0 s, 10 rows/s\ndedup: 0 units"
    bar.close()
    written += out.take()
    assert shown(written) == "gather: 2/2 units, 100 rows, 10.0 s, 10 rows/s\n"
    assert "\x1b" not in written  # no colour, so NO_COLOR holds


@pytest.mark.parametrize("columns", [1, 8, 30, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(
    tmp_path: Path, clock: Clock, terminal: Callable[[int], Terminal], columns: int
) -> None:
    step, out = folder(tmp_path, "a"), terminal(columns)
    watched = Watched("match parts", step, 4, figures=lambda _: "{words} 画像 of a stage")
    bar = Progress([watched], out, clock=clock)
    commit(step, 0, 12_345, seconds=9)
    clock.now += 10
    bar.show()
    written = out.take()
    parts = re.split(r"[\r\n]+", written)
    assert max(len(part.replace("画像", "....")) for part in parts) < max(columns, 2)
    assert ("█" in written) == (columns > 80)
    bar.close()
    assert shown(written + out.take()) == ""


def test_a_terminal_may_become_narrower(tmp_path: Path, clock: Clock, terminal: Callable[[int], Terminal]) -> None:
    step, out = folder(tmp_path, "a"), terminal(200)
    bar = Progress([Watched("match parts", step, 4)], out, clock=clock)
    commit(step, 0, 12_345, seconds=9)
    bar.show()
    assert max(map(len, out.take().split("\r"))) > 50
    termios.tcsetwinsize(out.fileno(), (24, 20))
    bar.show()
    bar.close()
    assert max(map(len, out.take().split("\r"))) == 19


def test_a_terminal_without_a_size_is_drawn_on(
    tmp_path: Path, terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = terminal(80)
    monkeypatch.setattr(sys, "stderr", out)  # tqdm itself asks for its size
    termios.tcsetwinsize(out.fileno(), (0, 0))
    bar = Progress([Watched("gather", folder(tmp_path, "a"), 2)], out)
    bar.show()
    assert shown(out.take()) == "gather:   0%|                    | 0/2 units"
    bar.close()


def test_a_dumb_terminal_gets_lines(
    tmp_path: Path, terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(screen.choose(terminal(80), 0.0), screen.Log)


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REDRAW", 0.2)
    step, out, written = folder(tmp_path, "a"), terminal(80), ""
    with pytest.raises(KeyboardInterrupt), watching([Watched("gather", step)], out):
        commit(step, 0, 5)
        end = time.monotonic() + 60
        while "1 unit, 5 rows" not in written and time.monotonic() < end:
            time.sleep(0.01)
            written += out.take()
        out.write("^C")  # a terminal shows it at the cursor
        raise KeyboardInterrupt
    written += out.take()
    assert "1 unit, 5 rows" in written
    assert shown(written) == "" and written.endswith("\r")


@pytest.mark.parametrize("setting", ["0", "off", "OFF"])
def test_it_can_be_silenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    def run(log: Log, quiet: bool) -> list[str]:
        step = folder(tmp_path, f"{setting}-{quiet}-{len(os.environ)}")
        with watching([Watched("gather", step, 1)], log, quiet=quiet):
            commit(step, 0, 5)
        return log.take()

    assert run(Log(), False) == ["gather: 1/1 units, 5 rows, 0.0 s"]
    assert run(Log(), True) == []
    monkeypatch.setenv("OPENWIT_PROGRESS", setting)
    assert run(Log(), False) == []


def test_a_fault_of_progress_fails_no_run_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "REDRAW", 0.01)
    step, calls = folder(tmp_path, "a"), []

    def figures(manifests: Sequence[dict[str, Any]]) -> str:
        calls.append(len(manifests))
        raise ZeroDivisionError("no rows")

    with caplog.at_level(logging.WARNING), watching([Watched("fetch", step, figures=figures)], Log()):
        commit(step, 0, 5)
        end = time.monotonic() + 60
        while len(calls) < 3 and time.monotonic() < end:
            commit(step, len(calls), 5)
            time.sleep(0.02)
    assert len(calls) >= 3
    assert [record.getMessage() for record in caplog.records] == [
        "progress cannot be shown (ZeroDivisionError('no rows')); the run goes on"
    ]


def test_a_fault_at_the_start_fails_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def live() -> Figures:
        raise OSError("no such host")

    ran = []
    with watching([Watched("fetch", folder(tmp_path, "a"), live=live)], Log()):
        ran.append(1)
    assert ran and "no such host" in caplog.text


class Shell:
    """The part of a notebook's IPython that tqdm looks at."""

    config = {"IPKernelApp": {}}


def play_notebook(monkeypatch: pytest.MonkeyPatch, *, ipywidgets: bool) -> type[Any]:
    """Makes this process look like a notebook. Returns the class of bar that tqdm.notebook would give."""
    from tqdm.std import tqdm

    class Widget(tqdm):  # type: ignore[misc]
        """Stands for tqdm.notebook.tqdm, which needs ipywidgets."""

    kernel, shell, notebook = (types.ModuleType(name) for name in ("zmqshell", "IPython", "tqdm.notebook"))
    shell.get_ipython = Shell  # type: ignore[attr-defined]
    notebook.IProgress = object if ipywidgets else None  # type: ignore[attr-defined]
    notebook.WARN_NOIPYW = "no ipywidgets"  # type: ignore[attr-defined]
    notebook.tqdm, notebook.trange = Widget, None  # type: ignore[attr-defined]
    for name, module in {"ipykernel.zmqshell": kernel, "IPython": shell, "tqdm.notebook": notebook}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "tqdm.autonotebook", raising=False)
    return Widget


def test_a_notebook_with_ipywidgets_has_tqdms_own_bar(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    widget, step, stream = play_notebook(monkeypatch, ipywidgets=True), folder(tmp_path, "a"), Log()
    assert screen.notebook_bar() is widget
    bar = Progress([Watched("gather", step, 2)], stream, clock=clock)
    bar.show()
    commit(step, 0, 5)
    commit(step, 1, 5)
    bar.show()
    bar.close()
    written = capsys.readouterr().out  # a notebook shows stderr in red
    assert "gather:   0%|" in written and written.rstrip().endswith("gather: 2/2 units, 10 rows, 0.0 s")
    assert stream.take() == []


def test_a_notebook_without_ipywidgets_has_text_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    play_notebook(monkeypatch, ipywidgets=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert screen.notebook_bar() is None
        assert isinstance(screen.choose(Log(), 0.0), screen.Log)


def test_no_notebook_is_seen_where_there_is_none() -> None:
    assert screen.notebook_bar() is None


def test_a_bar_starts_no_thread_and_no_process_and_has_no_colour(tmp_path: Path) -> None:
    """tqdm's monitor is a thread. Its lock is from multiprocessing, which may start a process."""
    program = f"""
import io, multiprocessing, sys, threading
from pipeline.engine.progress import Progress, Watched
from pipeline.engine.work import StepFolder
class Tty(io.StringIO):
    isatty = lambda self: True
made, lock = [], multiprocessing.RLock
multiprocessing.RLock = lambda *a: made.append(1) or lock(*a)
tty = Tty()
bar = Progress([Watched("gather", StepFolder({str(tmp_path)!r}, ""), 2)], tty)
bar.show()
print(threading.active_count(), len(made), "ipywidgets" in sys.modules, "asyncio" in sys.modules)
print("0/2 units" in tty.getvalue(), chr(27) in tty.getvalue())
bar.close()"""
    environment = os.environ | {"NO_COLOR": "1", "TQDM_COLOUR": "green"}
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert out.stdout.split() == ["1", "0", "False", "False", "True", "False"] and not out.stderr


def test_amounts_and_times_for_people() -> None:
    assert display.amount(1234, None, "rows") == "1,234 rows" and display.amount(1, None, "rows") == "1 row"
    assert display.amount(1, 2000, "units") == "1/2,000 units"
    assert [display.clock(seconds) for seconds in (0.4, 59.6, 245, 3723)] == ["0:00", "1:00", "4:05", "1:02:03"]

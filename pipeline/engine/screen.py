"""How progress is shown: by tqdm's bar on a terminal and in a notebook, elsewhere by a line each 30 seconds.

Nothing has a colour, so NO_COLOR holds without code. tqdm is imported where there is something to draw on.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import warnings
from typing import IO, Any, Protocol

FIRST, SPEAK = 10.0, 30.0  # seconds to the first line of a log, and between the lines after it
BAR, LEAST = 20, 5  # columns of a bar; fewer than the second are no bar
COLUMNS = 80  # of a terminal that does not tell
INTERRUPT = 3  # columns kept free: the last one, and two for the ^C that a terminal shows behind the cursor


@dataclasses.dataclass(frozen=True)
class Line:
    """A step under way; `text` has its figures in words."""

    label: str
    text: str
    done: int
    total: int | None


class Screen(Protocol):
    """Where progress is shown; times are in seconds of one clock."""

    def draw(self, line: Line, now: float) -> None:
        """Shows the step under way, if it is time to."""
        ...

    def say(self, text: str) -> None:
        """Writes a line that stays."""
        ...

    def close(self) -> None:
        """Takes away what does not stay."""
        ...


class Log:
    """A file, a pipe, a terminal that cannot go back: plain lines now and then."""

    def __init__(self, stream: IO[str], now: float) -> None:
        self._stream, self._due = stream, now + FIRST

    def draw(self, line: Line, now: float) -> None:
        """Writes the line, if the last one is long ago."""
        if now >= self._due:
            self._due = now + SPEAK
            self.say(f"{line.label}: {line.text}")

    def say(self, text: str) -> None:
        """Writes a line."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves all as it is."""


class Bar:
    """A terminal, or a notebook (`widget`): one bar of tqdm, for the step under way."""

    def __init__(self, kind: type[Any], stream: IO[str], *, widget: bool) -> None:
        # No second thread, and no lock that other processes could share: tqdm would start both.
        self._kind: Any = type("Bar", (kind,), {"monitor_interval": 0, "_lock": threading.RLock()})
        self._stream, self._widget = stream, widget
        self._bar: Any = None
        self._drawn: tuple[Any, ...] = ()

    def draw(self, line: Line, now: float) -> None:
        """Draws the bar over again; another step or width gets another bar."""
        columns = None if self._widget else width(self._stream)
        shape, done = form(line, columns), min(line.done, line.total or line.done)
        if self._drawn != (line.label, line.total, columns):
            self.close()
            self._bar = self._kind(
                total=line.total,
                initial=done,
                file=self._stream,
                leave=False,
                colour=None,
                ncols=columns,
                nrows=20,  # of no use, but tqdm does not draw on a terminal that says 0
                bar_format=shape,
            )
            self._drawn = (line.label, line.total, columns)
        self._bar.n, self._bar.bar_format = done, shape
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Writes a line in the place of the bar; the next is drawn below."""
        self.close()
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            if not self._widget:  # wiped by us: tqdm would leave the ^C, and wrap its blanks where the terminal shrank
                self._stream.write("\r" + " " * (width(self._stream) + INTERRUPT - 1) + "\r")
                self._stream.flush()
                self._bar.sp = self._bar.status_printer(self._stream)
            self._bar.close()
        self._bar, self._drawn = None, ()


def choose(stream: IO[str], now: float) -> Screen:
    """What suits the stream; in a notebook tqdm's widget where ipywidgets is installed, else lines."""
    widget = notebook_bar()
    if widget is not None:
        return Bar(widget, sys.stdout, widget=True)  # a notebook shows stderr in red
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        from tqdm.std import tqdm

        return Bar(tqdm, stream, widget=False)
    return Log(stream, now)


def notebook_bar() -> type[Any] | None:
    """tqdm's bar of notebooks, where tqdm would choose it: it needs ipywidgets."""
    if "ipykernel.zmqshell" not in sys.modules:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental, and warns where there is no ipywidgets
        from tqdm.autonotebook import tqdm
    from tqdm import std

    return None if tqdm is std.tqdm else tqdm


def width(stream: IO[str]) -> int:
    """The columns that a line may take."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max(1, (columns or COLUMNS) - INTERRUPT)


def form(line: Line, columns: int | None) -> str:
    """tqdm's bar_format: with a bar where the total is known and the columns (None: no end of them) have room."""
    from tqdm.utils import disp_trim

    bar = BAR if columns is None else min(BAR, columns - len(f"{line.label}: 100%|| {line.text}"))
    if not line.total or bar < LEAST:
        whole = f"{line.label}: {line.text}"
        return _escape(whole if columns is None else disp_trim(whole, columns))  # old versions of tqdm do not trim it
    shape = "{bar}" if columns is None else f"{{bar:{bar}}}"
    return f"{_escape(line.label)}: {{percentage:3.0f}}%|{shape}| {_escape(line.text)}"


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")

"""How progress is shown: by tqdm's bar on a terminal and in a notebook, elsewhere by a line every 30 seconds.

Nothing has a colour, so NO_COLOR needs no code. tqdm is imported only if a bar is drawn.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import warnings
from typing import IO, Any, Protocol

FIRST, SPEAK = 10.0, 30.0  # seconds to the first line of a log, and between the lines after it
BAR, LEAST = 20, 5  # columns of a bar, and the fewest: with less room there is no bar
COLUMNS = 80  # of a terminal that does not report its width
INTERRUPT = 3  # columns kept free: the last one, and two for the ^C that a terminal shows behind the cursor


@dataclasses.dataclass(frozen=True)
class Line:
    """A step under way. `text` holds its figures."""

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
        """Removes what is not meant to stay."""
        ...


class Log:
    """For a file, a pipe, or a terminal that cannot move its cursor: a line from time to time."""

    def __init__(self, stream: IO[str], now: float) -> None:
        self._stream, self._due = stream, now + FIRST

    def draw(self, line: Line, now: float) -> None:
        """Writes the line if SPEAK seconds have passed since the last one."""
        if now >= self._due:
            self._due = now + SPEAK
            self.say(f"{line.label}: {line.text}")

    def say(self, text: str) -> None:
        """Writes a line."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Does nothing: all lines stay."""


class Bar:
    """For a terminal or a notebook (`widget`): one tqdm bar, for the step under way."""

    def __init__(self, kind: type[Any], stream: IO[str], *, widget: bool) -> None:
        # tqdm would start a monitor thread and make a lock between processes. Both are turned off.
        self._kind: Any = type("Bar", (kind,), {"monitor_interval": 0, "_lock": threading.RLock()})
        self._stream, self._widget = stream, widget
        self._bar: Any = None
        self._drawn: tuple[Any, ...] = ()

    def draw(self, line: Line, now: float) -> None:
        """Draws the bar again. A new step or a new width gets a new bar."""
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
                nrows=20,  # any number: tqdm draws nothing on a terminal that reports 0 rows
                bar_format=shape,
            )
            self._drawn = (line.label, line.total, columns)
        self._bar.n, self._bar.bar_format = done, shape
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Writes a line in the place of the bar. The next bar is drawn below it."""
        self.close()
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            # We clear the line ourselves. tqdm would leave the ^C, and its blanks would wrap on a narrowed terminal.
            if not self._widget:
                self._stream.write("\r" + " " * (width(self._stream) + INTERRUPT - 1) + "\r")
                self._stream.flush()
                self._bar.sp = self._bar.status_printer(self._stream)
            self._bar.close()
        self._bar, self._drawn = None, ()


def choose(stream: IO[str], now: float) -> Screen:
    """The screen for the stream. In a notebook it is tqdm's widget if ipywidgets is installed, else lines."""
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
        warnings.simplefilter("ignore")  # it warns that it is experimental, and that ipywidgets is missing
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
    """tqdm's bar_format. It has a bar if the total is known and `columns` leaves room (None: any width)."""
    from tqdm.utils import disp_trim

    bar = BAR if columns is None else min(BAR, columns - len(f"{line.label}: 100%|| {line.text}"))
    if not line.total or bar < LEAST:
        whole = f"{line.label}: {line.text}"
        return _escape(whole if columns is None else disp_trim(whole, columns))  # old versions of tqdm do not trim it
    shape = "{bar}" if columns is None else f"{{bar:{bar}}}"
    return f"{_escape(line.label)}: {{percentage:3.0f}}%|{shape}| {_escape(line.text)}"


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")

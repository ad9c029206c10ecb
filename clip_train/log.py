"""The logs of a run: one JSON line per step, TensorBoard events, Weights & Biases, and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import struct
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from clip_train import messages
from clip_train.errors import TrainError


class Sink(Protocol):
    """What takes the numbers of the steps beside log.jsonl."""

    def write(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def open_sinks(kinds: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Sink]:
    """The sinks of --log-to. TrainError where wandb is not installed or does not start.

    Args:
        folder: of the run.
        config: the resolved options, which wandb shows beside the curves.
    """
    made: list[Sink] = []
    if "tensorboard" in kinds:
        made.append(EventWriter(folder / "tensorboard"))
    if "wandb" in kinds:
        made.append(WandbWriter(folder, config))
    return made


class StepLog:
    """Writes RUN/log.jsonl and the sinks. Lines after the step that a run resumes from are removed first."""

    def __init__(self, folder: Path, *, first_step: int, sinks: Sequence[Sink] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        _cut_after(path, first_step)
        self._lines = open(path, "a", encoding="utf-8")
        self._sinks = sinks

    def write(self, line: dict[str, Any]) -> None:
        """Writes one step. A number that is not finite becomes null."""
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in line.items()
        }
        try:
            self._lines.write(json.dumps(plain) + "\n")
            self._lines.flush()
            scalars = {name: value for name, value in plain.items() if isinstance(value, float)}
            for sink in self._sinks:
                sink.write(int(line["step"]), scalars)
        except OSError as error:
            raise TrainError(f"cannot write {self._lines.name}: {error}; free some space, then --resume") from error

    def close(self) -> None:
        """Closes all. Errors of a full disk are left out here, because `write` has raised them."""
        for close in (self._lines.close, *(sink.close for sink in self._sinks)):
            with contextlib.suppress(OSError):
                close()


def _cut_after(path: Path, step: int) -> None:
    """Keeps the lines up to `step`. A line that a crash has truncated is dropped too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


class WandbWriter:
    """Sends the numbers to Weights & Biases. Its own variables say where: WANDB_PROJECT, WANDB_MODE, WANDB_API_KEY.

    RUN/wandb-id has the id of the run there, so that a resumed run goes on with the same curves.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise TrainError("--log-to wandb needs the package: pip install wandb") from None
        kept = folder / "wandb-id"
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex[:8] + "\n")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "clip_train"), id=kept.read_text().strip(), resume="allow",
                name=folder.resolve().name, dir=folder, config=dict(config),
            )  # fmt: skip
        except (wandb.errors.Error, OSError, ValueError) as error:
            raise TrainError(f"--log-to wandb does not start: {error}") from error
        # a resumed run may go back a few steps: the axis is a number of the line, not wandb's own count
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Sends one step."""
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


class EventWriter:
    """Writes TensorBoard's scalar events, which are protocol buffers in TFRecords. It needs no package."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab")
        self._record(_double(1, time.time()) + _bytes(3, b"brain.Event:2"))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one event with a value per name."""
        values = b"".join(_bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in scalars.items())
        self._record(_double(1, time.time()) + _varint(2 << 3) + _varint(step) + _bytes(5, values))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _record(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked_crc(length) + data + _masked_crc(data))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # CRC-32C (Castagnoli), reflected
        table.append(byte)
    return tuple(table)


def _masked_crc(data: bytes) -> bytes:
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


class Progress:
    """Prints a line to stderr every few seconds, on the first rank only."""

    def __init__(self, *, steps: int, first_step: int, show: bool, every: float = 5.0) -> None:
        self._steps, self._done, self._show, self._every = steps, first_step, show, every
        self._started = self._last = time.monotonic()
        self._first = first_step

    def say(self, text: str) -> None:
        """Prints and logs a message."""
        if not self._show:
            return
        messages.note(text)
        if not messages.is_quiet():
            print(text, file=sys.stderr, flush=True)

    def step(self, line: dict[str, Any]) -> None:
        """Prints the numbers of a step, if it is time for a line."""
        now, done = time.monotonic(), int(line["step"])
        if not self._show or (now - self._last < self._every and done < self._steps):
            return
        self._last = now
        left = (now - self._started) / max(1, done - self._first) * (self._steps - done)
        messages.note(f"step {done}/{self._steps}", **line)
        if messages.is_quiet():
            return
        mfu = f"  MFU {line['mfu']:.0%}" if line.get("mfu") else ""
        print(
            f"step {done}/{self._steps}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  "
            f"scale {line['logit_scale']:.1f}  "
            f"{line['pairs_per_s']:,.0f} pairs/s{mfu}  data wait {line['data_wait']:.0%}  left {clock(left)}",
            file=sys.stderr,
            flush=True,
        )


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

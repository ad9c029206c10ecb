"""Checkpoints in the background: the state of their step, one at a time, and errors that come out."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train import checkpoint  # noqa: E402
from clip_train.config import TrainOptions  # noqa: E402
from clip_train.errors import TrainError  # noqa: E402
from clip_train.training import train  # noqa: E402


@pytest.fixture
def options(tars, vocabulary, tmp_path) -> TrainOptions:
    return TrainOptions(
        data=str(tars()), output=str(tmp_path / "run"), model="ViT-Tiny", bpe=str(vocabulary), batch_size=16, steps=7,
        save_every=3, ema=0.9, keep=9, log_to=("none",), threads=1,
    )  # fmt: skip


def files(folder: str | Path) -> dict[str, bytes]:
    """The bytes of all checkpoints."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.safetensors")}


def test_the_steps_go_on_and_the_next_save_waits(options, tmp_path, monkeypatch):
    train(options)
    expected = files(options.output)
    assert len(expected) == 9
    go_on, saved, began, true_save = threading.Event(), [], [], checkpoint.save

    def slow(folder, *, step, **rest):
        began.append(step)
        assert threading.current_thread() is not threading.main_thread()
        assert go_on.wait(60)
        saved.append(step)
        return true_save(folder, step=step, **rest)

    def note(line):
        if line["step"] == 5:
            assert (began, saved) == ([3], [])  # two steps later, the weights of step 3 are still not written
            go_on.set()
        if line["step"] == 7:
            assert saved[0] == 3

    monkeypatch.setattr(checkpoint, "save", slow)
    again = TrainOptions(**{**vars(options), "output": str(tmp_path / "again")})
    train(again, on_step=note)
    assert saved == [3, 6, 7] and files(again.output) == expected


def test_a_save_that_fails_ends_the_run(options, monkeypatch):
    tried, seen = threading.Event(), []

    def full(*_args):
        tried.set()
        raise OSError(28, "No space left on device")

    def note(line):
        seen.append(line["step"])
        if line["step"] == 4:
            assert tried.wait(60)

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(TrainError, match="cannot save .*step-00000003: .*free some space, then --resume"):
        train(options, on_step=note)
    assert 3 <= max(seen) <= 6  # not at the end only; the thread may fail before the next step
    assert not list(Path(options.output, "checkpoints").iterdir())


def test_a_last_save_that_fails_is_no_success(options, monkeypatch):
    true_save = checkpoint.save

    def last_fails(folder, *, step, **rest):
        if step == 7:
            raise TrainError("cannot save it")
        return true_save(folder, step=step, **rest)

    monkeypatch.setattr(checkpoint, "save", last_fails)
    with pytest.raises(TrainError, match="cannot save it"):
        train(options)


def test_another_error_waits_for_the_save_and_is_not_hidden(options, monkeypatch, capsys):
    class Crash(Exception):
        pass

    def crash(line):
        if line["step"] == 4:
            raise Crash

    with pytest.raises(Crash):
        train(options, on_step=crash)
    (path,) = checkpoint.all_steps(Path(options.output) / "checkpoints")
    checkpoint.verify(path)

    crashing = threading.Event()

    def full(*_args, **_rest):
        assert crashing.wait(60)
        raise TrainError("the disk is full")

    def crash_during_the_save(line):
        if line["step"] == 6:
            crashing.set()
            raise Crash

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(Crash):
        train(TrainOptions(**{**vars(options), "resume": True, "save_every": 5}), on_step=crash_during_the_save)
    assert "the disk is full" in capsys.readouterr().err and path.exists()


def test_a_second_signal_does_not_end_the_last_save(options, monkeypatch):
    """A launcher and a scheduler may both send SIGTERM."""
    true_save, handlers = checkpoint.save, {}

    def slow(folder, *, step, **rest):
        time.sleep(0.3 if step == 7 else 0)  # the loop has ended by then
        handlers[step] = signal.getsignal(signal.SIGTERM)
        return true_save(folder, step=step, **rest)

    monkeypatch.setattr(checkpoint, "save", slow)
    before = signal.getsignal(signal.SIGTERM)
    train(options)
    assert handlers[7] is handlers[3] is not before

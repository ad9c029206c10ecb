"""The lock of a run's folder, and the signals that let a run save and end."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from clip_train.errors import UsageError
from clip_train.lock import hold, stop_signals


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "a" / "run"):
        assert (tmp_path / "a" / "run" / ".lock").exists()
        1 / 0  # noqa: B018
    assert not (tmp_path / "a" / "run").exists()


def test_what_was_there_or_was_written_stays(tmp_path):
    with hold(tmp_path / "run"):
        (tmp_path / "run" / "log").write_text("")
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "log"]
    (tmp_path / "empty").mkdir()
    with hold(tmp_path / "empty"):
        pass
    assert os.listdir(tmp_path / "empty") == [".lock"]


def test_one_run_at_a_time(tmp_path):
    with hold(tmp_path), pytest.raises(UsageError, match="another process trains into"), hold(tmp_path):
        pass
    with hold(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/run cannot be written"), hold(tmp_path / "file" / "run"):
        pass


@pytest.fixture
def caught():
    """Handlers of the test in the place of those of this process."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    handlers = {number: signal.getsignal(number) for number in before}
    yield
    assert {number: signal.getsignal(number) for number in before} == handlers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event_and_a_second_ctrl_c_ends_at_once(caught, monkeypatch, number):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with stop_signals() as event:
        assert not event.is_set()
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert event.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_launcher_passes_ctrl_c_on_so_a_second_one_means_nothing(caught, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with stop_signals() as event:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert event.is_set()


def test_a_thread_leaves_the_signals_alone(caught):
    def body() -> None:
        with stop_signals() as event:
            found.append((event.is_set(), signal.getsignal(signal.SIGTERM) is before))

    found, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(False, True)]

"""The folder of kept inputs: whole files only, within its bound, whoever reads, copies or is killed beside."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import input_cache, opening, remote
from pipeline.engine.input_errors import InputError, MissingInputError, TransferError
from pipeline.engine.remote import RemoteFile, RemoteSettings
from tests.sources.crawl_simulator import Crawl, crawl

CONTENT = random.Random(2).randbytes(300_000)
FILES = {f"{name}.bin": CONTENT[index:] for index, name in enumerate("abcd")}


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process, with pauses of milliseconds."""
    monkeypatch.setattr(input_cache, "_asked", {})
    monkeypatch.setattr(input_cache, "_hashed", set())
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0005)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.002)


@pytest.fixture
def server() -> Iterator[Crawl]:
    with crawl(dict(FILES)) as running:
        yield running


def settings(folder: Path, *, bound: int = 10**9, fill: bool = True, patience: float = 5.0) -> RemoteSettings:
    return RemoteSettings(patience=patience, cache=str(folder), cache_bytes=bound, fill=fill)


def read(url: str, how: RemoteSettings) -> tuple[bytes, bool]:
    """The content of an input, and whether it came from a file of this machine."""
    with remote.configured(how), opening.open_input(url) as opened:
        return opened.stream.read(), opened.local


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


def forget() -> None:
    """As another process."""
    input_cache._asked.clear()
    input_cache._hashed.clear()


def test_a_kept_input_costs_one_request_a_process(server: Crawl, tmp_path: Path) -> None:
    how = settings(tmp_path / "new/cache")
    assert read(f"{server.base}a.bin", how) == (CONTENT, True)
    assert read(f"{server.base}a.bin", how) == (CONTENT, True) and server.asked["a.bin"] == 1
    forget()
    assert read(f"{server.base}a.bin", how) == (CONTENT, True) and server.asked["a.bin"] == 2
    (name,) = names(tmp_path / "new/cache")
    assert name.endswith("-300000-a.bin")


def test_without_fill_only_what_is_there_is_used(server: Crawl, tmp_path: Path) -> None:
    assert read(f"{server.base}a.bin", settings(tmp_path, fill=False)) == (CONTENT, False) and not names(tmp_path)
    read(f"{server.base}a.bin", settings(tmp_path))
    assert read(f"{server.base}a.bin", settings(tmp_path, fill=False)) == (CONTENT, True)
    assert read(f"{server.base}b.bin", RemoteSettings()) == (FILES["b.bin"], False)  # off by default


def test_a_file_that_changed_is_copied_again(server: Crawl, tmp_path: Path) -> None:
    read(f"{server.base}a.bin", settings(tmp_path))
    for content in (CONTENT[::-1], CONTENT[5:], b"x"):
        forget()
        server.files["a.bin"] = content
        assert read(f"{server.base}a.bin", settings(tmp_path)) == (content, True)
        assert len(names(tmp_path)) == 1


def test_a_server_that_is_away_does_not_matter_and_one_without_the_file_does(server: Crawl, tmp_path: Path) -> None:
    read(f"{server.base}a.bin", settings(tmp_path))
    forget()
    server.seed, server.faults = 1, ("reset",)
    assert read(f"{server.base}a.bin", settings(tmp_path, patience=0)) == (CONTENT, True)
    server.seed = None
    del server.files["a.bin"]
    forget()
    with pytest.raises(InputError, match="HTTP 403"):
        read(f"{server.base}a.bin", settings(tmp_path))
    assert names(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:9] + b"?" + data[10:], lambda _: b""])
def test_a_damaged_file_is_copied_again(damage: Callable[[bytes], bytes], server: Crawl, tmp_path: Path) -> None:
    read(f"{server.base}a.bin", settings(tmp_path))
    (path,) = tmp_path.glob("*.bin")
    path.write_bytes(damage(CONTENT))
    forget()
    assert read(f"{server.base}a.bin", settings(tmp_path)) == (CONTENT, True) and server.asked["a.bin"] == 3


def test_the_file_that_was_not_used_for_the_longest_time_goes_first(server: Crawl, tmp_path: Path) -> None:
    how = settings(tmp_path, bound=950_000)
    for name in "abc":
        read(f"{server.base}{name}.bin", how)
        for age, path in enumerate(sorted(tmp_path.glob("*.bin"), key=os.path.getmtime, reverse=True)):
            os.utime(path, (0, 1_000_000 - age))
    read(f"{server.base}a.bin", how)  # used again
    assert read(f"{server.base}d.bin", how) == (FILES["d.bin"], True)
    assert {name[-5:] for name in names(tmp_path)} == {"a.bin", "c.bin", "d.bin"}


def test_what_is_too_large_or_in_use_is_streamed(server: Crawl, tmp_path: Path) -> None:
    assert read(f"{server.base}a.bin", settings(tmp_path, bound=299_999)) == (CONTENT, False)
    how = settings(tmp_path, bound=400_000)
    with remote.configured(how), opening.open_input(f"{server.base}a.bin") as opened:
        assert read(f"{server.base}b.bin", how) == (FILES["b.bin"], False)
        assert opened.stream.read() == CONTENT
    assert read(f"{server.base}b.bin", how) == (FILES["b.bin"], True)
    assert [name[-5:] for name in names(tmp_path)] == ["b.bin"]


def test_a_file_without_size_or_version_is_streamed(
    server: Crawl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteFile, "version", "")
    assert read(f"{server.base}a.bin", settings(tmp_path)) == (CONTENT, False) and not names(tmp_path)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "ftruncate"])
def test_a_folder_that_fails_costs_the_cache_only(
    call: str, server: Crawl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    assert read(f"{server.base}a.bin", settings(tmp_path)) == (CONTENT, False)
    assert not names(tmp_path)


def test_a_transfer_that_breaks_for_good_leaves_nothing(
    server: Crawl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "fault", lambda path: "cut")
    with pytest.raises(TransferError, match="broke off after"):
        read(f"{server.base}a.bin", settings(tmp_path, patience=0.05))
    assert not names(tmp_path)
    with pytest.raises(MissingInputError):
        read("memory://none/a.bin", settings(tmp_path))


def test_other_files_are_left_alone(server: Crawl, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(bytes(1000))
    (tmp_path / "sub").mkdir()
    read(f"{server.base}a.bin", settings(tmp_path, bound=300_000))
    read(f"{server.base}b.bin", settings(tmp_path, bound=300_000))
    kept, *others = names(tmp_path)
    assert kept.endswith("b.bin") and others == ["mine.txt", "sub"]


def in_processes(work: Callable[..., None], *given: Any, count: int) -> list[Any]:
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(number, *given)) for number in range(count)]
    for process in started:
        process.start()
    return started


def read_often(number: int, base: str, how: RemoteSettings, rounds: int) -> None:
    rng = random.Random(number)
    for _ in range(rounds):
        name = rng.choice(list(FILES))
        forget()
        if read(f"{base}{name}", how)[0] != FILES[name]:
            os._exit(1)
    os._exit(0)


def held(folder: Path) -> int:
    """Bytes of all files, while others come and go."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_several_workers_and_kills(server: Crawl, tmp_path: Path) -> None:
    """Processes read at random, some are killed; the bound holds at each look, and each read is whole."""
    server.seed, server.faults = 3, ("drip", "cut", "reset")
    how = settings(tmp_path, bound=650_000)  # two of four files
    victims = in_processes(read_often, server.base, how, 1000, count=2)
    for victim in victims:
        time.sleep(0.2)
        assert held(tmp_path) <= 650_000
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
    workers = in_processes(read_often, server.base, how, 12, count=3)
    while any(worker.is_alive() for worker in workers):
        assert held(tmp_path) <= 650_000
        time.sleep(0.01)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    forget()
    assert read(f"{server.base}a.bin", how)[0] == CONTENT and not list(tmp_path.glob("*.part"))


def copy_once(number: int, url: str, how: RemoteSettings) -> None:
    os._exit(0 if read(url, how) == (CONTENT, True) else 1)


def test_an_input_is_copied_once_for_all_workers(server: Crawl, tmp_path: Path) -> None:
    workers = in_processes(copy_once, f"{server.base}a.bin", settings(tmp_path), count=3)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and len(names(tmp_path)) == 1
    assert server.asked["a.bin"] <= 3  # one copy, and at most a question of each of the others


def test_locks_of_the_reader_end_with_its_stream(server: Crawl, tmp_path: Path) -> None:
    with remote.configured(settings(tmp_path)):
        opened = opening.open_copy(f"{server.base}a.bin")
        (path,) = tmp_path.glob("*.bin")
        with open(path, "r+b") as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened.stream.close()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

"""The bound on the memory of the fetch: nothing goes beyond it by more than a body, and nothing waits for ever."""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from collections.abc import Callable

import pytest

from pipeline.fetching import client, memory
from pipeline.fetching.client import Client
from pipeline.fetching.memory import Memory, Share
from pipeline.text.rights import PROTOCOLS
from tests.fetching.test_fetching_rows import OPTIONS

LIMIT, BODY = 100, 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALL", 30)


def begun(work: Callable[[], None]) -> threading.Thread:
    """A thread that has ended, or waits."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive() and not waits(thread):
        time.sleep(0.001)
    return thread


def waits(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is threading.Condition.wait.__code__


def test_a_share_waits_until_another_is_freed() -> None:
    bound = Memory(LIMIT)
    first, second = Share(bound), Share(bound)
    first.grow(60)
    first.complete()
    assert second.fits(10) and not second.fits(1)
    waiting = begun(lambda: second.grow(20))
    assert waiting.is_alive() and bound.used == 70
    first.shrink(0)
    waiting.join(60)
    assert not waiting.is_alive() and bound.used == second.size == 30


def test_the_oldest_of_incomplete_bodies_goes_on() -> None:
    """All memory is held by bodies that cannot go on: without the rule they would wait for ever."""
    bound = Memory(LIMIT)
    shares = [Share(bound) for _ in range(7)]
    assert all(share.fits(10) for share in shares)
    assert not shares[1].fits(10) and shares[0].fits(10)
    assert bound.used == 80
    shares[0].complete()
    assert not shares[1].fits(10)  # the first one will be decoded, and frees its memory
    shares[0].shrink(0)
    assert shares[1].fits(10) and not shares[2].fits(10)
    assert not Share(bound).fits(1)


def test_a_large_picture_waits_for_its_turn_and_nothing_begins_before() -> None:
    bound = Memory(LIMIT)
    body, large, new = Share(bound), Share(bound), Share(bound)
    body.grow(10)
    assert not large.claim(95) and large.claim(60)
    large.shrink(0)
    waiting = begun(lambda: large.wait_for(500))  # larger than the bound: it waits to be alone
    assert waiting.is_alive() and not new.fits(1) and body.fits(10)
    opening = begun(lambda: bound.share().__enter__())
    assert opening.is_alive()
    body.complete()
    body.shrink(0)
    waiting.join(60)
    assert not waiting.is_alive() and bound.used == 500 and not new.fits(1)
    large.shrink(0)
    opening.join(60)
    assert not opening.is_alive() and new.fits(1)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_events_ends_within_the_bound(seed: int) -> None:
    bound = Memory(LIMIT)
    most: list[int] = []
    decoder = threading.Lock()

    def work(number: int) -> None:
        rng = random.Random(1000 * seed + number)
        for _ in range(30):
            with bound.share() as share:
                for _ in range(rng.randrange(BODY)):
                    if not share.fits(1):
                        share.grow(1)
                    most.append(bound.used)
                share.complete()
                needed = rng.choice([0, 0, 40, 80, 99])
                if needed and not share.claim(needed):
                    share.shrink(0)
                    share.wait_for(needed)
                most.append(bound.used)
                with decoder:
                    time.sleep(0)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert bound.used == 0 and max(most) <= LIMIT + BODY


def test_the_clock_of_a_request_stops_while_it_waits_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has sent its body must not be lost because others hold the memory for longer than the deadline."""
    monkeypatch.setattr(client.robots, "LARGEST", 1 << 20)
    body = b"x" * 50
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + body

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(answer[:-25])
            time.sleep(0.1)
            connection.sendall(answer[-25:])

    options = {**OPTIONS.__dict__, "memory": LIMIT, "deadline_s": 1.0, "ignore_rights": PROTOCOLS, "retries": 0}
    one = Client(type(OPTIONS)(**options))
    holder = Share(one.memory)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with one.memory.share() as share:
            holder.grow(60)
            holder.complete()
            threading.Timer(2.0, holder.shrink, (0,)).start()
            fetched = one.fetch(url, share)
            assert fetched.body == body and share.size == 50 and share.waited_s > 1

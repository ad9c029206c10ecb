"""The lock of a run's folder on an object store: one object, OUT/.lease, that its holder writes again and again.

The store writes it under a condition (no object, or the tag of the last sign), so one of several runs gets it. A lease
whose holder gave no sign for EXPIRES_S may be taken over. Ages come from the clock of the store alone. A lease of a
dead process of this machine is taken over at once: the lock in the scratch folder proves that it is dead.

A holder may be paused, and wake up when another run has the lease. So its processes look at the lease before each
commit (`confirm`), and stop when it is not theirs. Between this look and the commit a moment is left. What is then
written is what the other run writes, too: a unit's files depend on inputs and options alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from pipeline.engine import interrupts, object_store, remote, scratch
from pipeline.engine.cli import UsageError
from pipeline.engine.files import naming
from pipeline.engine.object_store import Conflict

NAME = ".lease"
FIELDS = ("token", "holder", "machine")  # of the object
BEAT_S, EXPIRES_S = 20.0, 120.0
MARGIN_S = 20.0  # before the end of a lease its holder asks again
LAST_PATIENCE_S = 5.0  # for the store, when a run fails

_tokens: dict[str, str] = {}  # OUT -> the token of the run that this process belongs to
_joined: dict[str, str] = {}  # as `_tokens`, where this process has seen the lease
_sure: dict[str, float] = {}  # OUT -> the time until which nobody can take the lease over, by `_now`


class Held(RuntimeError):
    """Another run holds the lease. The message says who."""


class LeaseError(RuntimeError):
    """The lease of this run was taken over, so it must not write any more."""

    @classmethod
    def of(cls, root: str, holder: str) -> LeaseError:
        """The usual message. (Beam makes the error anew, from its message.)"""
        return cls(
            f"this run has lost the output {root} to another one ({holder}), since it gave no sign for "
            f"{EXPIRES_S:.0f} s; it has stopped"
        )


def token_of(root: str) -> str:
    """The token of the run that this process belongs to; "": none."""
    return _tokens.get(root, "")


def join(root: str, token: str) -> None:
    """This process works for the run that holds the lease with a token.

    Raises:
        LeaseError: that run does not hold it any more.
    """
    if token and _joined.get(root) != token:
        _tokens[root] = token
        _sure.pop(root, None)
        confirm(root)
        _joined[root] = token


def holder_of(root: str) -> str:
    """The run that holds the lease, and the seconds since its last sign; "": none does."""
    found = _read(root)
    return f"{found['holder']}, last sign {found['age']:.0f} s ago" if found and found["age"] < EXPIRES_S else ""


def confirm(root: str) -> None:
    """Checks that the run of this process still holds the lease, if it has one.

    A worker on the machine of the run holds a lock that the next run there waits for. So it asks the store only when
    the lease that it saw last may have ended. A worker on another machine asks each time: the next run on the machine
    of a dead run takes its lease over at once, and knows nothing of the workers elsewhere.

    Raises:
        LeaseError: it does not.
    """
    token, asked = token_of(root), _now()
    if token and asked >= _sure.get(root, 0.0):
        found = _read(root)
        if found is None or found["token"] != token:
            raise LeaseError.of(root, "it has ended" if found is None else found["holder"])
        if found["machine"] == _machine(root):
            _sure[root] = asked + EXPIRES_S - MARGIN_S - found["age"]


@contextlib.contextmanager
def held(root: str) -> Iterator[None]:
    """Holds the lease of OUT while the block runs. The caller holds the lock of this machine for it.

    Raises:
        Held: another run holds it.
        UsageError: the store does not heed the conditions of a write.
        LeaseError: another run has taken it over while the block ran. The main thread is interrupted.
    """
    body = {
        "token": secrets.token_hex(8),
        "holder": f"process {os.getpid()} on {socket.gethostname()}",
        "machine": _machine(root),
    }
    tag, stop, lost = _acquire(root, body), threading.Event(), list[LeaseError]()
    _check_conditions(root, body)
    _tokens[root] = _joined[root] = body["token"]
    beats = threading.Thread(target=_beat, args=(root, body, tag, stop, lost), daemon=True, name="lease")
    beats.start()
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if lost:
            raise lost[0] from None
        if isinstance(error, Exception) and not isinstance(error, (UsageError, LeaseError)):
            _explain(root, error)
        raise
    finally:
        interrupts.because("")
        stop.set()
        beats.join(5.0)
        _tokens.pop(root, None)
        _joined.pop(root, None)
        _sure.pop(root, None)
        if not lost:
            with contextlib.suppress(Exception):  # it expires
                _release(root, body["token"])


def _explain(root: str, error: Exception) -> None:
    """Another run that has taken the lease over moves and removes files, so this one may fail before the next sign.

    Raises:
        LeaseError: so it was.
    """
    _sure.pop(root, None)
    with remote.configured(dataclasses.replace(remote.settings(), patience=LAST_PATIENCE_S)):
        try:
            confirm(root)
        except LeaseError as lost:
            raise lost from error
        except Exception:  # the store is away: the error says so
            return


def _now() -> float:
    """Seconds, those in which the machine slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _url(root: str) -> str:
    return f"{root}/{NAME}"


def _write(root: str, body: dict[str, Any], beat: int, **condition: Any) -> str:
    return object_store.write(_url(root), json.dumps({**body, "beat": beat}, indent=1).encode(), **condition)


def _acquire(root: str, body: dict[str, Any]) -> str:
    with contextlib.suppress(Conflict):
        return _write(root, body, 0, absent=True)
    found = _read(root)
    if found is None:
        raise Held("another run that has just ended: try again")
    if found["token"] == body["token"]:  # the answer to our request was lost
        return found["tag"]
    left = EXPIRES_S - found["age"]
    if found["machine"] != body["machine"] and left > 0:
        raise Held(f"{found['holder']}, last sign {found['age']:.0f} s ago; a dead run's lease ends in {left:.0f} s")
    try:
        return _write(root, body, 0, tag=found["tag"])
    except Conflict:
        found = _read(root) or {"token": "", "holder": "another run"}
        if found["token"] == body["token"]:
            return found["tag"]
        raise Held(found["holder"]) from None


def _check_conditions(root: str, body: dict[str, Any]) -> None:
    """Refuses a store where two runs could get the lease: one that writes whatever the condition is.

    Raises:
        UsageError: it does.
    """
    store = object_store.store_of(root)
    given: tuple[dict[str, Any], ...] = ({"absent": True}, {"tag": store.no_tag})
    for header, condition in zip(store.conditions, given, strict=True):
        with contextlib.suppress(Conflict):
            _write(root, body, 0, **condition)
            object_store.delete([_url(root)])
            raise UsageError(
                f"--output {root}: its store ignores {header}, so two runs could write there at once: use another store"
            )


def _beat(root: str, body: dict[str, Any], tag: str, stop: threading.Event, lost: list[LeaseError]) -> None:
    beat = 0
    while not stop.wait(BEAT_S):
        beat += 1
        try:
            tag = _write(root, body, beat, tag=tag)
        except Conflict:
            found = _read(root)
            if found is not None and found["token"] == body["token"]:
                tag = found["tag"]
                continue
            lost.append(LeaseError.of(root, found["holder"] if found else "it has ended"))
            if not stop.is_set():
                interrupts.because(str(lost[0]))
                os.kill(os.getpid(), signal.SIGINT)
            return
        except Exception:  # the store is away: every commit looks at the lease anyway
            continue


def _read(root: str) -> dict[str, Any] | None:
    """The lease with its tag and its age in seconds; None: there is none."""
    try:
        data, tag, age = object_store.read_with_age(_url(root))
    except FileNotFoundError:
        return None
    try:
        found = json.loads(data)
        found = {name: str(found[name]) for name in FIELDS}
    except (ValueError, KeyError, TypeError):
        found = {"token": "", "holder": "unknown", "machine": ""}
    return {**found, "tag": tag, "age": age}


def _release(root: str, token: str) -> None:
    found = _read(root)
    if found is not None and found["token"] == token:
        object_store.delete([_url(root)])


def _machine(root: str) -> str:
    """Names the place of the lock on this machine. Another machine, or another scratch folder, has another name."""
    path = scratch.beside(f"{root}/.machine")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileExistsError), naming(path), open(path, "x", encoding="ascii") as file:
        file.write(secrets.token_hex(8))
    with open(path, encoding="ascii") as file:
        return file.read()

"""Hosts for a cluster on this machine: network namespaces joined by a bridge where root allows it, else 127.0.0.1.

The bridge lies in the namespace of host 0, so neither this machine's network nor another cluster sees it: every cluster
has the same addresses. A namespace has its loopback, its end of the bridge, and no way out. All hosts share the file
system, but for the folders that `hide` names. FOLDER/hosts and FOLDER/pids hold what must be ended.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ADDRESS = "10.77.0.{}"
LOOPBACK = "127.0.0.1"
END_S = 5.0  # until a process that was told to end is killed


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        return taken.getsockname()[1]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _stat(pid: int) -> list[str]:
    """The state of a process and what follows it in /proc/PID/stat; nothing if it has ended."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        found = stat[stat.rindex(")") + 2 :].split()
        return found if found[0] not in "ZX" else []
    return []


def _age(pid: int) -> str:
    """When a process began, in ticks since the start of the machine; "" if it has ended. Process ids are used again."""
    stat = _stat(pid)
    return stat[19] if stat else ""


def _groups() -> set[int]:
    """The process groups of which a process lives."""
    stats = (_stat(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {int(stat[2]) for stat in stats if stat}


class Hosts:
    """The hosts of one folder, and the processes on them."""

    def __init__(self, folder: Path, hide: Sequence[Path] = ()) -> None:
        """`hide`: folders in whose place each host but host 0 has an empty one of its own. It needs root."""
        self.folder, self._hide = folder.absolute(), [str(path.absolute()) for path in hide]
        self._noted, self._pids = self.folder / "hosts", self.folder / "pids"
        self._started: list[subprocess.Popen] = []  # by this process

    @property
    def exist(self) -> bool:
        """True after `open`, until `stop`."""
        return self._noted.exists()

    def open(self, count: int, *, apart: bool = True) -> None:
        """Makes `count` hosts.

        Args:
            count: at least 1.
            apart: each is a network namespace, if this process may make them. Otherwise all are 127.0.0.1.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [f"openwit-{os.getpid()}-{number}" for number in range(count)]
        if apart and os.geteuid() == 0 and shutil.which("ip"):
            self._noted.write_text("".join(f"{name} {ADDRESS.format(n + 1)}\n" for n, name in enumerate(names)))
            try:
                return self._join(names)
            except subprocess.CalledProcessError as error:
                self._remove_namespaces()
                print(f"cluster: no namespaces ({error.stderr.strip()}): all is on {LOOPBACK}", file=sys.stderr)
        self._noted.write_text(f"- {LOOPBACK}\n" * count)

    def _join(self, names: Sequence[str]) -> None:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        hub = names[0]
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "addr", "add", f"{ADDRESS.format(1)}/24", "dev", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for number, name in enumerate(names[1:], 2):
            near = f"to-{number}"
            _ip("-n", hub, "link", "add", near, "type", "veth", "peer", "name", "bridged", "netns", name)
            _ip("-n", hub, "link", "set", near, "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{ADDRESS.format(number)}/24", "dev", "bridged")
            _ip("-n", name, "link", "set", "bridged", "up")

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self._noted.read_text().splitlines()] if self.exist else []

    def address(self, number: int) -> str:
        """The address of a host."""
        return self._lines()[number][1]

    def port(self, usual: int) -> int:
        """A free port: the usual one in a namespace, which is empty."""
        return usual if self.apart else free_port()

    @property
    def apart(self) -> bool:
        """True if each host is a namespace."""
        return self._lines()[0][0] != "-"

    def prefix(self, number: int) -> list[str]:
        """The words in front of a command that must run on a host."""
        return ["ip", "netns", "exec", self._lines()[number][0]] if self.apart else []

    def _hiding(self) -> list[str]:
        """The words in front of a command that must not see the hidden folders."""
        mounts = "".join(f"mount -t tmpfs none {shlex.quote(path)} && " for path in self._hide)
        return ["unshare", "-m", "sh", "-c", f'{mounts}exec "$@"', "sh"] if self._hide else []

    def start(self, number: int, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Starts a process on a host, in a process group of its own. Its output goes to FOLDER/log/NAME.log.

        Returns:
            Its process id.
        """
        (self.folder / "log").mkdir(exist_ok=True)
        with open(self.folder / "log" / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [*self.prefix(number), *(self._hiding() if number else []), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        self._started.append(process)
        with open(self._pids, "a") as pids:
            pids.write(f"{process.pid} {_age(process.pid) or '-'} {name}\n")
        return process.pid

    def stop(self) -> None:
        """Ends the processes that `start` started, with all that they started, and removes the namespaces."""
        lines = self._pids.read_text().splitlines() if self._pids.exists() else []
        noted = [(int(pid), age) for pid, age, _ in (line.split() for line in lines)]
        groups = {pid for pid, age in noted if _age(pid) == age}  # a group keeps its number while one of it lives
        for number in (signal.SIGTERM, signal.SIGKILL):
            for group in groups:
                with suppress(ProcessLookupError):
                    os.killpg(group, number)
            deadline = time.monotonic() + END_S
            while (groups := groups & _groups()) and time.monotonic() < deadline:
                time.sleep(0.05)
        for process in self._started:
            process.wait()
        self._started.clear()
        self._pids.unlink(missing_ok=True)
        self._remove_namespaces()

    def _remove_namespaces(self) -> None:
        for name, _ in self._lines():
            if name != "-":
                with suppress(subprocess.CalledProcessError):
                    _ip("netns", "del", name)
        self._noted.unlink(missing_ok=True)

"""What /proc says of processes: which are alive, and which process started them."""

from __future__ import annotations

import os
from pathlib import Path

# A prefix of a command: it takes from root the right to read and write files against their modes.
AS_ANYBODY = """import ctypes, os, sys
drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
for capability in (dac_override, dac_read_search) if os.geteuid() == 0 else ():
    ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def stat_of(pid: int) -> list[str] | None:
    """State, parent, process group and the next fields of /proc/PID/stat. None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat[stat.rindex(")") + 2 :].split()


def all_stats() -> dict[int, list[str]]:
    """`stat_of` of all processes."""
    found = {int(name): stat_of(int(name)) for name in os.listdir("/proc") if name.isdecimal()}
    return {pid: stat for pid, stat in found.items() if stat}


def alive(pid: int) -> bool:
    """True for a process that exists and has not ended. A zombie has ended."""
    stat = stat_of(pid)
    return stat is not None and stat[0] not in "ZX"


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and their descendants."""
    parents = {child: int(stat[1]) for child, stat in all_stats().items()}
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def group_members(group: int) -> list[str]:
    """Command lines of the processes in a group that have not ended."""
    members = [pid for pid, stat in all_stats().items() if int(stat[2]) == group and stat[0] not in "ZX"]
    found = []
    for pid in members:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found

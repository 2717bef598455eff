"""What the processes of a service cost, as Linux counts it; nothing elsewhere."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
TRIES = 5
SET_CHILD_SUBREAPER = 36  # of prctl(2)


def tree(pid: int) -> list[int]:
    """``pid`` and all processes below it; empty when there is no such process."""
    found, pids = [], [pid]
    while pids:
        one = pids.pop()
        try:
            children = [int(child) for path in _threads(one) for child in path.read_text().split()]
        except OSError:
            continue  # it ended while we looked, or this is no Linux
        found.append(one)
        pids.extend(children)
    return found


def adopt_orphans() -> None:
    """From now on, processes below this one whose parent ends become its children, and stay in its `tree`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def cpu_seconds(pid: int) -> float:
    """CPU time of ``pid``, of all below it and of those of them that ended, in user and in kernel mode. It never falls.

    A process that ends while they are read would count twice or not at all: then they are read again.
    """
    for _ in range(TRIES):
        pids = tree(pid)
        ticks = [_ticks(one) for one in pids]
        if None not in ticks and tree(pid) == pids:
            break
    return sum(one or 0 for one in ticks) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int | None:
    try:
        fields = (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return sum(map(int, fields[11:15]))  # utime, stime, and of children that were waited for: cutime, cstime


def memory_bytes(pids: list[int]) -> int:
    """Resident memory; what processes share counts once (proportional set size)."""
    return sum(_proportional_bytes(pid) for pid in pids)


def resident_bytes() -> int:
    """Resident memory of this process, shared pages too; 0 where that cannot be told."""
    try:
        pages = int((PROC / "self" / "statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _threads(pid: int) -> Iterator[Path]:
    """A process has the children of each of its threads."""
    for thread in (PROC / str(pid) / "task").iterdir():
        yield thread / "children"


def _proportional_bytes(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)

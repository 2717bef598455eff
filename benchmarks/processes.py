"""Servers as processes: pinned to cores, awaited, weighed, and ended with everything they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

START_S = 120.0
STOP_S = 20.0
ORPHANS_S = 3.0
LOOK_S = 0.005


class Failed(Exception):
    """A server did not do what was asked of it; the reason in one line."""


@dataclass(frozen=True)
class Start:
    """How to start a server: its command, its whole environment, where it runs and where it logs."""

    command: list[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path


class Server:
    """A server that was started by `start`, with all that it starts itself."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._started = time.perf_counter()
        self.port = port
        self._log = log

    @classmethod
    def start(cls, how: Start, port: int, cores: str) -> Server:
        """Run it on ``cores``, as taskset writes them."""
        how.folder.mkdir(parents=True, exist_ok=True)
        how.log.parent.mkdir(parents=True, exist_ok=True)
        with how.log.open("wb") as log:
            process = subprocess.Popen(
                ["taskset", "-c", cores, *how.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(how.environment),
                cwd=how.folder,
                start_new_session=True,
            )
        return cls(process, port, how.log)

    def await_answer(self, path: str, body: bytes) -> float:
        """Seconds from the start to the first answer with status 200. Raises `Failed`."""
        while time.perf_counter() - self._started < START_S:
            with contextlib.suppress(OSError, HTTPException):
                if post(self.port, path, body)[0] == 200:
                    return time.perf_counter() - self._started
            if self._process.poll() is not None:
                raise Failed(f"ended with code {self._process.returncode}: {self._last_words()}")
            time.sleep(LOOK_S)
        raise Failed(f"did not answer within {START_S:g} s: {self._last_words()}")

    def memory_mb(self) -> float:
        """What it and all that it started cost: their own pages, and their shares of those they share."""
        return proportional_set_kb(self._members()) * 1024 / 1e6

    def cpu_s(self) -> float:
        """Seconds of processor time of it and all that it started and that still runs."""
        return cpu_ticks(self._members()) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """SIGTERM to it; whatever is left of it and its children after `STOP_S` is killed."""
        members = self._members()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        _await_end(members)
        for pid in _left(members):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _await_end(members)
        self._process.wait()

    def _members(self) -> dict[int, str]:
        table = list(_processes())
        ids = members(self._process.pid, [(pid, parent, session) for pid, parent, session, _ in table])
        return {pid: born for pid, _, _, born in table if pid in ids}

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "its log is empty"


def members(leader: int, table: Iterable[tuple[int, int, int]]) -> set[int]:
    """``leader``, all of its session, and all descendants of these. ``table`` has (pid, parent, session)."""
    rows = list(table)
    found = {leader} | {pid for pid, _, session in rows if session == leader}
    while new := {pid for pid, parent, _ in rows if parent in found} - found:
        found |= new
    return found


def proportional_set_kb(pids: Iterable[int], proc: Path = Path("/proc")) -> int:
    """The sum of their PSS; a process that is gone, or a zombie, costs nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def cpu_ticks(pids: Iterable[int], proc: Path = Path("/proc")) -> int:
    """The sum of their user and system time; a process that is gone has none."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += sum(map(int, (proc / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return total


def post(port: int, path: str, body: bytes, timeout_s: float = 60.0) -> tuple[int, bytes]:
    """The status and the body of one answer. Raises OSError or HTTPException."""
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _processes() -> Iterable[tuple[int, int, int, str]]:
    """(pid, parent, session, time of birth) of every process; a pid with its birth names one process for ever."""
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
                if fields[0] != "Z":
                    yield int(path.name), int(fields[1]), int(fields[3]), fields[19]


def _await_end(of: Mapping[int, str]) -> None:
    deadline = time.monotonic() + ORPHANS_S
    while _left(of) and time.monotonic() < deadline:
        time.sleep(0.02)


def _left(of: Mapping[int, str]) -> list[int]:
    now = {pid: born for pid, _, _, born in _processes()}
    return [pid for pid, born in of.items() if now.get(pid) == born]

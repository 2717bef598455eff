"""Locks and living workers, over real processes that really die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import notes
from serving.state import Lock, ModelState, Workers, bell_of

# Takes a lock, says so, and waits to be told or killed.
HOLDER = """
import sys
from pathlib import Path
from serving.state import Lock
print(Lock(Path(sys.argv[1])).acquire(), flush=True)
sys.stdin.read()
"""

# Takes a lock and gives it to a child that sleeps; says the child's pid and waits.
GIVER = """
import subprocess, sys
from pathlib import Path
from serving.state import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire()
child = subprocess.Popen(["sleep", "60"], pass_fds=(lock.fileno(),), stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""

# Counts as a living worker and has a note, until it is killed.
WORKER = """
import sys
from pathlib import Path
from serving import notes
from serving.state import Workers
workers = Workers(Path(sys.argv[1]))
lock = workers.lock(sys.argv[2])
assert lock.acquire()
notes.write(workers.note(sys.argv[2]), {"models": {}})
print("here", flush=True)
sys.stdin.read()
"""

# Looks for the dead without a pause.
LOOKER = """
import sys
from pathlib import Path
from serving.state import Workers
print("here", flush=True)
while True:
    Workers(Path(sys.argv[1])).living()
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process with one of the codes above and waits for its first line; all are killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def comes_free(lock: Lock, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not lock.acquire():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- Lock ------------------------------------------------------------------------------------------------------------


def test_one_holder_at_a_time_over_processes(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "deep" / "a.lock"
    holder = start(HOLDER, path)
    assert first_line(holder) == "True"
    assert first_line(start(HOLDER, path)) == "False"
    assert not Lock(path).acquire()


def test_one_holder_at_a_time_within_a_process(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "a.lock"), Lock(tmp_path / "a.lock")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_a_killed_holder_gives_it_back(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "a.lock"
    holder = start(HOLDER, path)
    assert first_line(holder) == "True"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert comes_free(Lock(path))


def test_a_lock_handed_to_a_child_outlives_the_parent(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "a.lock"
    giver = start(GIVER, path)
    child = int(first_line(giver))
    try:
        kill(giver)
        assert not Lock(path).acquire(), "the child is alive and has the lock"
    finally:
        os.kill(child, signal.SIGKILL)
    assert comes_free(Lock(path))


def test_a_release_leaves_the_lock_with_the_child_that_has_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.lock")
    assert lock.acquire()
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lock.fileno(),))
    lock.release()
    try:
        assert not Lock(lock.path).acquire()
    finally:
        kill(child)
    assert comes_free(Lock(lock.path))


def test_a_child_that_is_not_given_the_lock_does_not_hold_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.lock")
    assert lock.acquire()
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    lock.release()
    try:
        assert Lock(lock.path).acquire()
    finally:
        kill(child)


def test_a_lock_that_is_not_held_has_nothing_to_hand_over(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not held"):
        Lock(tmp_path / "a.lock").fileno()


def test_a_release_may_come_twice(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.lock")
    assert lock.acquire()
    lock.release()
    lock.release()
    assert lock.acquire()
    lock.release()


def test_a_lock_leaves_no_open_file_behind(tmp_path: Path) -> None:
    held = Lock(tmp_path / "a.lock")
    assert held.acquire()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        assert not Lock(held.path).acquire()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    held.release()


# --- Workers ---------------------------------------------------------------------------------------------------------


def test_before_any_worker_nobody_lives(tmp_path: Path) -> None:
    assert Workers(tmp_path).living() == []


def test_the_living_are_those_whose_process_lives(tmp_path: Path, start: Start) -> None:
    processes = [start(WORKER, tmp_path, name) for name in ("1-aa", "2-bb", "3-cc")]
    assert [first_line(process) for process in processes] == ["here"] * 3
    assert Workers(tmp_path).living() == ["1-aa", "2-bb", "3-cc"]


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_what_the_dead_left_behind_is_removed(tmp_path: Path, start: Start, sig: signal.Signals) -> None:
    dying, staying = start(WORKER, tmp_path, "1-aa"), start(WORKER, tmp_path, "2-bb")
    assert (first_line(dying), first_line(staying)) == ("here", "here")
    dying.send_signal(sig)
    dying.wait()
    assert Workers(tmp_path).living() == ["2-bb"]
    assert sorted(path.name for path in (tmp_path / "workers").iterdir()) == ["2-bb.json", "2-bb.lock"]


def test_an_id_can_come_back_after_a_death(tmp_path: Path, start: Start) -> None:
    """Process ids do, after a restart of the machine."""
    first = start(WORKER, tmp_path, "1-aa")
    assert first_line(first) == "here"
    kill(first)
    assert first_line(start(WORKER, tmp_path, "1-aa")) == "here"
    assert Workers(tmp_path).living() == ["1-aa"]


def test_looking_does_not_disturb_the_living(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    lock = workers.lock("1-aa")
    assert lock.acquire()
    notes.write(workers.note("1-aa"), {"pid": 1})
    assert [workers.living() for _ in range(3)] == [["1-aa"]] * 3
    assert notes.read(workers.note("1-aa")) == {"pid": 1}
    lock.release()


def test_no_worker_is_taken_for_dead_while_it_starts(tmp_path: Path, start: Start) -> None:
    """Others look for the dead at any moment, also at the one when the lock's file is there and not yet locked."""
    assert [first_line(start(LOOKER, tmp_path)) for _ in range(2)] == ["here"] * 2
    workers = Workers(tmp_path)
    until = time.monotonic() + 1.0
    births = 0
    while time.monotonic() < until or births < 500:
        name = f"{births}-birth"
        lock = workers.lock(name)
        assert lock.acquire(), f"after {births} births"
        assert lock.path.is_file(), f"after {births} births"
        assert name in workers.living(), f"after {births} births"
        lock.path.unlink()
        lock.release()
        births += 1


def test_two_lookers_at_once_find_the_same_living(tmp_path: Path, start: Start) -> None:
    assert first_line(start(WORKER, tmp_path, "1-aa")) == "here"
    assert first_line(start(LOOKER, tmp_path)) == "here"
    workers = Workers(tmp_path)
    for number in range(100):  # each of the dead is found by both at about the same time
        (tmp_path / "workers" / f"{number}-dead.lock").touch()
        assert "1-aa" in workers.living()
    time.sleep(0.05)
    assert workers.living() == ["1-aa"]


# --- paths -----------------------------------------------------------------------------------------------------------


def test_two_models_share_no_path(tmp_path: Path) -> None:
    first, second = (set(vars(ModelState(tmp_path, name)).values()) for name in ("iris", "fraud"))
    assert first & second == {bell_of(tmp_path)}
    assert all(path.is_relative_to(tmp_path / "models" / "iris") for path in first - second)

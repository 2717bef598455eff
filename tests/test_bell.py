"""The bell wakes who waits, and where it cannot ring nobody waits longer than the pause."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from serving.bell import Bell, ring


def test_it_wakes_who_waits(tmp_path: Path) -> None:
    bell = Bell(tmp_path / "bell")
    threading.Timer(0.05, ring, [tmp_path / "bell"]).start()
    started = time.monotonic()
    assert bell.wait(30.0)
    assert time.monotonic() - started < 15.0
    bell.close()


def test_rung_before_anybody_waits_it_is_heard_once(tmp_path: Path) -> None:
    bell = Bell(tmp_path / "bell")
    for _ in range(3):
        ring(tmp_path / "bell")
    assert bell.wait(0.0)
    assert not bell.wait(0.0)
    bell.close()


def test_it_is_heard_however_often_it_rang(tmp_path: Path) -> None:
    bell = Bell(tmp_path / "bell")
    for _ in range(100_000):  # more than a pipe holds
        ring(tmp_path / "bell")
    assert bell.wait(0.0)
    bell.close()


def test_who_was_killed_left_a_bell_that_rings_for_the_next(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bell")
    bell = Bell(tmp_path / "bell")
    ring(tmp_path / "bell")
    assert bell.wait(0.0)
    bell.close()


def test_nobody_there_hears_nothing_and_nobody_is_held_up(tmp_path: Path) -> None:
    ring(tmp_path / "none")
    os.mkfifo(tmp_path / "bell")
    ring(tmp_path / "bell")
    assert not (tmp_path / "none").exists()


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    Bell(tmp_path / "bell").close()
    assert list(tmp_path.iterdir()) == []


def test_where_there_can_be_no_pipe_it_is_a_pause(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bell = Bell(tmp_path / "file" / "bell")
    started = time.monotonic()
    assert not bell.wait(0.05)
    assert time.monotonic() - started >= 0.04
    bell.close()

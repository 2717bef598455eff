"""The spool: many write, one empties it, and nothing in it is half a file."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from serving.ledger import Spool
from serving.ledger import spool as spools
from serving.ledger.spool import waiting


def test_files_come_out_in_the_order_in_which_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 1000)
    for number in range(20):
        assert spool.write(b"%d" % number) is not None
    assert [path.read_bytes() for path in spool.pages()] == [b"%d" % number for number in range(20)]
    assert spool.bytes() == 30


def fill(folder: Path) -> None:
    spool = Spool(folder, 1 << 20)
    for _ in range(200):
        spool.write(b"x" * 100, durable=False)


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("spawn").Process(target=fill, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    seen: set[Path] = set()
    while any(process.is_alive() for process in processes):
        for path in waiting(tmp_path):
            assert path.stat().st_size == 100
            seen.add(path)
    assert len(seen | set(waiting(tmp_path))) == 400


def test_what_is_full_takes_nothing_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "LOOK_PAUSE_S", 0.0)
    monkeypatch.setattr(spools, "LOOK_SHARE", 0)
    spool = Spool(tmp_path, 100)
    assert spool.write(b"x" * 60) is not None
    assert spool.write(b"x" * 60) is None
    assert spool.write(b"x" * 40) is not None
    spool.pages()[0].unlink()
    assert spool.write(b"x" * 60) is not None
    assert Spool(tmp_path, 0).write(b"x") is None


def test_between_two_looks_a_process_counts_what_it_wrote_itself(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    assert spool.write(b"x" * 60) is not None
    (tmp_path / "of-another-process").write_bytes(b"x" * 40)
    assert spool.write(b"x" * 40) is not None
    assert spool.write(b"x") is None


def test_a_disk_that_takes_nothing_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, 1 << 20)
    (tmp_path / "taken").mkdir()
    monkeypatch.setattr(spools, "_name", lambda: "taken")  # where a folder is no file can be
    with pytest.raises(OSError, match="taken"):
        spool.write(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_what_the_dead_left_half_done_is_removed_after_a_minute(tmp_path: Path) -> None:
    old, new, page = tmp_path / ".old", tmp_path / ".new", tmp_path / "page"
    for path in (old, new, page):
        path.write_bytes(b"x")
    for path in (old, page):
        os.utime(path, (time.time() - 61, time.time() - 61))
    spool = Spool(tmp_path, 1000)
    assert not old.exists()
    assert new.exists()
    assert spool.pages() == [page]


def test_no_folder_is_an_empty_spool(tmp_path: Path) -> None:
    assert waiting(tmp_path / "none") == []


def test_a_large_spool_is_not_looked_at_often(tmp_path: Path) -> None:
    """57,000 files are an hour of four workers without a database: looking at each write would take all their time."""
    spool = Spool(tmp_path, 1 << 30)
    for number in range(1000):
        (tmp_path / str(number)).touch()
    began = time.perf_counter()
    for _ in range(200):
        spool.write(b"x")
    assert (time.perf_counter() - began) / 200 < 0.002

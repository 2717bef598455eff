"""What processes cost: all of a tree, and nothing is forgotten when one of them ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from serving import processes
from serving.processes import cpu_seconds, memory_bytes, tree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts as Linux does")

BUSY = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_a_tree_has_everyone_below() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess; subprocess.Popen(['sleep', '60']).wait()"], start_new_session=True
    )
    try:
        deadline = time.monotonic() + 10
        while len(tree(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(tree(parent.pid)) == 2
        assert tree(parent.pid)[0] == parent.pid
        assert set(tree(parent.pid)) < set(tree(os.getpid()))
    finally:
        os.killpg(parent.pid, 9)
        parent.wait()
    assert tree(parent.pid) == []


def test_who_ended_still_counts() -> None:
    before = cpu_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert cpu_seconds(os.getpid()) - before >= 0.25


ORPHANED = """
import os, subprocess, sys, time
from serving.processes import adopt_orphans, cpu_seconds, tree

adopt_orphans()
# A process that leaves another behind, which works for a while.
middle = [sys.executable, "-c", f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BUSY!r}])"]
subprocess.run(middle, check=True)
assert len(tree(os.getpid())) == 2, tree(os.getpid())
before, deadline = 0.0, time.monotonic() + 20
while len(tree(os.getpid())) == 2 and time.monotonic() < deadline:
    now = cpu_seconds(os.getpid())
    assert now >= before, (before, now)
    before = now
    time.sleep(0.01)
    os.waitpid(-1, os.WNOHANG)
assert cpu_seconds(os.getpid()) >= 0.3
"""


def test_an_orphan_is_not_forgotten() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"BUSY = {BUSY!r}\n{ORPHANED}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_is_what_is_resident() -> None:
    before = memory_bytes([os.getpid()])
    block = bytearray(50_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert memory_bytes([os.getpid()]) - before > 40_000_000


def test_who_is_gone_costs_nothing() -> None:
    assert (cpu_seconds(2**22 + 1), memory_bytes([2**22 + 1])) == (0.0, 0)


def test_elsewhere_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert tree(os.getpid()) == []

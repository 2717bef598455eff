"""Random bytes for ids: never twice, not in another thread and not after a fork."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from serving.entropy import FETCHED_IDS, ID_BYTES, random_id
from serving.settings import ROOT

FORKED = """
import os
from serving.entropy import random_id
random_id()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, b"".join(random_id() for _ in range(50)))
    os._exit(0)
os.wait()
theirs = os.read(reader, 800)
print(len({random_id() for _ in range(50)} | {theirs[at:at + 16] for at in range(0, 800, 16)}))
"""


def test_it_is_as_long_as_said_and_never_the_same() -> None:
    made = [random_id() for _ in range(3 * FETCHED_IDS)]
    assert {len(one) for one in made} == {ID_BYTES}
    assert len(set(made)) == len(made)


def test_threads_are_given_different_ones() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: random_id(), range(20 * FETCHED_IDS)))
    assert len(set(made)) == len(made)


def test_a_fork_is_given_different_ones() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "100"

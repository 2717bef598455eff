"""The compose stack, as a project of its own beside any that runs: ``make e2e``; never part of ``make test``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "e2e")]  # the load

if "E2E_STACK" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def stack() -> Iterator[object]:
    """A stack that was brought up from nothing, by one command.

    E2E_SERVICES names services, if not all shall run; E2E_KEEP takes a stack that runs, and leaves it running.
    """
    from composed import Stack

    stack = Stack(os.environ.get("E2E_SERVICES", "").split())
    keep = "E2E_KEEP" in os.environ
    if not keep:
        stack.compose("down", "--volumes", "--remove-orphans")
    stack.compose("build")
    try:
        stack.up()
        yield stack
    finally:
        if not keep:
            stack.compose("down", "--volumes")

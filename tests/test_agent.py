"""One agent for each service, whoever keeps it; asks are answered or given up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from serving.agent import Config, Keeper, ask
from serving.settings import ROOT
from serving.state import ModelState


def config(home: Path) -> Config:
    """An agent whose registry refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Config(
        models=("m",),
        state_dir=str(home / "state"),
        model_dir=str(home / "models"),
        tracking_uri=f"http://127.0.0.1:{port}",
        poll_interval_s=60,
        prepare_timeout_s=5,
        keep_bundles=1,
        challenger="shadow",
        url="",
        log_level="error",
        log_format="json",
    )


def agents(home: Path) -> list[int]:
    """The pids of agents that were told of ``home``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"serving.agent" in command and str(home).encode() in command:
            found.append(int(process.name))
    return found


def wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answered(home: Path) -> bool:
    outcome = ask(ModelState(home / "state", "m"), 5)
    return outcome is not None and outcome["status"] == 502


def test_an_ask_is_answered_with_what_came_of_the_look(tmp_path: Path) -> None:
    keeper = Keeper(config(tmp_path))
    keeper.start()
    try:
        outcome = ask(ModelState(tmp_path / "state", "m"), 20)
    finally:
        keeper.close()
    assert outcome is not None
    assert (outcome["status"], outcome["code"], outcome["version"]) == (502, "registry_unreachable", None)
    assert agents(tmp_path) == []


def test_an_ask_that_nobody_answers_is_taken_back(tmp_path: Path) -> None:
    state = ModelState(tmp_path, "m")
    assert ask(state, 0.1) is None
    assert list(state.asks.iterdir()) == []


def test_two_keepers_keep_one_agent_and_the_second_takes_over(tmp_path: Path) -> None:
    first, second = Keeper(config(tmp_path)), Keeper(config(tmp_path))
    first.start()
    wait(lambda: len(agents(tmp_path)) == 1)
    second.start()
    try:
        time.sleep(1)
        before = agents(tmp_path)
        assert len(before) == 1
        first.close()
        wait(lambda: len(agents(tmp_path)) == 1 and agents(tmp_path) != before)
        assert answered(tmp_path)
    finally:
        second.close()


def test_a_killed_agent_is_started_again(tmp_path: Path) -> None:
    keeper = Keeper(config(tmp_path))
    keeper.start()
    try:
        wait(lambda: len(agents(tmp_path)) == 1)
        killed = agents(tmp_path)[0]
        os.kill(killed, signal.SIGKILL)
        wait(lambda: len(agents(tmp_path)) == 1 and agents(tmp_path) != [killed])
        assert answered(tmp_path)
    finally:
        keeper.close()


def test_the_agent_ends_when_its_keeper_is_killed(tmp_path: Path) -> None:
    code = f"import time\nfrom serving.agent import *\nKeeper({config(tmp_path)!r}).start()\ntime.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait(lambda: len(agents(tmp_path)) == 1)
    finally:
        holder.kill()
        holder.wait()
    wait(lambda: agents(tmp_path) == [])

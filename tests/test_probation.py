"""A new version on probation: what sends it back, what does not, and that this holds over restarts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from registries import empty_registry

from serving import bundle as bundles
from serving import metrics as all_metrics
from serving import notes, probation
from serving.bundle import Bundle, Proof
from serving.errors import RegistryUnreachable
from serving.metrics import Metrics
from serving.probation import ERROR_RATIO, FAILED, LATENCY, Back, Bounds, Came, Probation, roll_back_in_child
from serving.registry.moves import Aliases
from serving.settings import ROOT
from serving.state import ModelState
from serving.tensors import Signature

BOUNDS = Bounds(probation_s=600, error_ratio=0.05, latency_ratio=2.0, min_rows=50)
DONE, REFUSED, BROKEN = Came(0, "done"), Came(3, "somebody was faster"), Came(1, "the registry is away")


def ago(seconds: float = 0.0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


@dataclass
class Pod:
    """What a pod has: notes of what is desired, and counts. Rollbacks are written down, and end as ``came`` says."""

    home: Path
    came: Came = DONE
    metrics: Metrics = field(default_factory=lambda: None)  # type: ignore[assignment,return-value]
    backs: list[Back] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    looks: list[None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = ModelState(self.home, "iris")
        self.begin()

    def begin(self, at: str = "today") -> None:
        """The service begins (anew), and counts from zero."""
        notes.write(self.home / "service.json", {"started_at": at})
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)

    def agent(self, bounds: Bounds = BOUNDS) -> Probation:
        """A probation as an agent that starts has it."""

        def roll_back(back: Back, _stop: threading.Event) -> Came:
            self.backs.append(back)
            return self.came

        return Probation(
            "iris",
            "champion",
            self.home,
            bounds,
            self.registry.collect,
            roll_back,
            on_rollback=self.reasons.append,
            look=lambda: self.looks.append(None),
        )

    def bundle(self, version: str, source: str = "registry") -> str:
        folder = self.state.bundles / f"{version}-{source}"
        if not folder.exists():
            work = self.state.bundles / f".work-{version}-{source}"
            work.mkdir(parents=True)
            told = "iris", version, source, None, "sha256:1", True, "onnx"
            shown = Bundle(work, *told, Signature("unknown", ()), None, None, Proof(0, None, None), {})
            bundles.write(shown, folder)
        return f"bundles/{folder.name}"

    def desire(self, version: str, before: str | None, *, since: str | None = None, **changed: Any) -> None:
        note = {
            "bundle": self.bundle(version),
            "version": version,
            "source": "registry",
            "previous": self.bundle(before) if before else None,
            "since": since or ago(),
        }
        notes.write(self.state.desired, {**note, **changed})

    def count(self, version: str, ok: int = 0, failed: int = 0, seconds: float = 0.002) -> None:
        self.metrics.predictions.labels("iris", version, "ok").inc(ok)
        self.metrics.predictions.labels("iris", version, "error").inc(failed)
        for _ in range(ok + failed):
            self.metrics.inference_s.labels("iris", version).observe(seconds)


def look(agent: Probation) -> None:
    """Look now, however short ago it did."""
    agent._look_at = 0.0
    agent.look()


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    """One in which version 1 has answered a while, and 2 has just taken over."""
    pod = Pod(tmp_path)
    pod.count("1", ok=200)
    pod.desire("2", "1")
    return pod


def test_a_version_that_fails_goes_back(pod: Pod) -> None:
    agent = pod.agent()
    agent.look()
    pod.count("2", ok=80, failed=20)
    look(agent)
    [back] = pod.backs
    assert back == Back("iris", "champion", "1", "2", "20 of its 100 rows failed, more than 0.05 of them")
    assert (pod.reasons, len(pod.looks)) == ([ERROR_RATIO], 1)
    note = notes.read(pod.state.rolled_back) or {}
    assert (note["from"], note["to"], note["why"]) == ("2", "1", back.why)
    look(agent)
    assert len(pod.backs) == 1


def test_a_version_that_is_slow_goes_back(pod: Pod) -> None:
    agent = pod.agent()
    agent.look()
    pod.count("2", ok=60, seconds=0.02)
    look(agent)
    assert pod.reasons == [LATENCY]
    assert "95 % of its calls take 24.2 ms, of version 1 2.43 ms" in pod.backs[0].why


@pytest.mark.parametrize(
    "counted",
    [
        {},
        {"ok": 48, "failed": 2},  # just within
        {"failed": 49},  # too few to tell
        {"ok": 100, "seconds": 0.004},  # twice as slow, nearly
        {"ok": 49, "seconds": 0.02},  # slow, but too few
    ],
)
def test_a_version_within_its_bounds_stays(pod: Pod, counted: dict[str, Any]) -> None:
    agent = pod.agent()
    agent.look()
    pod.count("2", **counted)
    look(agent)
    assert pod.backs == []


def test_what_callers_did_wrong_is_not_held_against_it(pod: Pod) -> None:
    agent = pod.agent()
    agent.look()
    pod.metrics.predictions.labels("iris", "2", "invalid").inc(1000)
    look(agent)
    assert pod.backs == []


def test_what_it_did_before_as_a_challenger_does_not_count(pod: Pod) -> None:
    pod.count("2", ok=100, failed=100, seconds=1.0)
    agent = pod.agent()
    agent.look()
    pod.count("2", ok=100)
    look(agent)
    assert pod.backs == []


def test_without_calls_of_the_version_before_nobody_knows_what_is_slow(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.desire("2", "1")
    agent = pod.agent()
    agent.look()
    pod.count("2", ok=100, seconds=5.0)
    look(agent)
    assert pod.backs == []


def test_after_its_time_it_stays(pod: Pod) -> None:
    agent = pod.agent(Bounds(0.2, 0.05, 2.0, 50))
    agent.look()
    time.sleep(0.25)
    pod.count("2", failed=100)
    look(agent)
    assert pod.backs == []


def test_one_that_is_live_for_long_is_not_on_probation(pod: Pod) -> None:
    pod.desire("2", "1", since=ago(601))
    agent = pod.agent()
    agent.look()
    pod.count("2", failed=100)
    look(agent)
    assert pod.backs == []


@pytest.mark.parametrize("case", ["first", "local", "from local", "same", "pruned"])
def test_without_a_version_before_it_there_is_no_way_back(pod: Pod, case: str) -> None:
    if case == "first":
        pod.desire("2", None)
    elif case == "local":
        pod.desire("2", "1", source="local")
    elif case == "from local":
        pod.desire("2", "1", previous=pod.bundle("1", "local"))
    elif case == "same":
        pod.desire("2", "2")
    else:
        pod.desire("2", "1", previous="bundles/gone")
    agent = pod.agent()
    agent.look()
    pod.count("2", failed=100)
    look(agent)
    assert pod.backs == []


def test_an_agent_that_starts_anew_goes_on(pod: Pod) -> None:
    pod.count("2", ok=10, failed=10)  # as a challenger
    pod.agent().look()
    pod.count("2", ok=40, failed=5)
    agent = pod.agent()
    agent.look()
    assert pod.backs == []
    pod.count("2", failed=5)
    look(agent)
    assert "10 of its 50 rows" in pod.backs[0].why
    pod.agent().look()
    assert len(pod.backs) == 1  # nor does it begin again


def test_a_service_that_starts_anew_goes_on_with_what_it_counts_then(pod: Pod) -> None:
    pod.count("2", ok=500)  # as a challenger
    pod.agent().look()
    pod.begin("tomorrow")
    agent = pod.agent()
    agent.look()
    pod.count("2", ok=60, seconds=0.02)
    look(agent)
    assert pod.reasons == [LATENCY]  # how fast the version before was is not forgotten


def test_what_came_back_is_not_sent_back(pod: Pod) -> None:
    agent = pod.agent()
    agent.look()
    pod.count("2", failed=100)
    look(agent)
    pod.desire("1", "2")
    look(agent)
    pod.count("1", failed=1000)
    look(agent)
    pod.desire("2", "1")  # somebody insists
    look(agent)
    pod.count("2", failed=1000)
    look(agent)
    assert len(pod.backs) == 1


def test_somebody_was_faster(pod: Pod) -> None:
    pod.came = REFUSED
    agent = pod.agent()
    agent.look()
    pod.count("2", failed=100)
    look(agent)
    look(agent)
    assert (len(pod.backs), pod.reasons) == (1, [])
    assert notes.read(pod.state.rolled_back) is None


def test_what_cannot_be_moved_is_tried_again(pod: Pod) -> None:
    pod.came = BROKEN
    agent = pod.agent()
    agent.look()
    pod.count("2", failed=100)
    look(agent)
    agent.look()  # not at once
    assert pod.reasons == [FAILED]
    pod.came = DONE
    look(agent)
    assert pod.reasons == [FAILED, ERROR_RATIO]


def test_a_full_disk_ends_nothing(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the looks raise, the thread looks on until it is told to stop."""
    monkeypatch.setattr(probation, "LOOK_S", 0.01)
    pod.state.probation.mkdir(parents=True)  # nothing can be renamed to it
    stop, agent = threading.Event(), pod.agent()
    thread = threading.Thread(target=agent.watch, args=(stop,))
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    pod.state.probation.rmdir()
    deadline = time.monotonic() + 10
    while not pod.state.probation.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_every_reason_is_a_series_from_the_start() -> None:
    assert set(all_metrics.ROLLBACKS) == {ERROR_RATIO, LATENCY, FAILED}


# --- the child -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with three versions of ``iris``, the second of them champion."""
    from mlflow import MlflowClient

    home = tmp_path_factory.mktemp("registry")
    uri = empty_registry(home / "mlflow.db")
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("iris")
    for number in ("1", "2", "3"):
        client.create_model_version("iris", str(home / number))
    client.set_registered_model_alias("iris", "champion", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(home / "metrics"))  # where the child must not count
        yield uri


def test_two_pods_at_once_end_well(uri: str) -> None:
    back, came = Back("iris", "champion", "1", "2", "-it failed"), []
    pods = [
        threading.Thread(target=lambda: came.append(roll_back_in_child(uri, back, threading.Event()))) for _ in "ab"
    ]
    for pod in pods:
        pod.start()
    for pod in pods:
        pod.join()
    aliases = Aliases.at(uri)
    assert aliases.holder("iris", "champion") == "1"
    assert {one.code for one in came} <= {0, 3}, came
    assert 0 in {one.code for one in came}
    moves = aliases.moves("iris")
    assert {(move.before, move.to, move.by, move.why) for move in moves} == {("2", "1", "service", "-it failed")}
    assert roll_back_in_child(uri, back, threading.Event()).code == probation.REFUSED


def test_a_registry_that_is_away_is_a_failure(uri: str, tmp_path: Path) -> None:
    came = roll_back_in_child(
        f"sqlite:///{tmp_path}/none.db", Back("iris", "champion", "1", "2", "x"), threading.Event()
    )
    assert (came.code, came.said) == (1, "registry: there is no SQLite file none.db")
    with pytest.raises(RegistryUnreachable):
        Aliases.at("nonsense:///x").holder("iris", "champion")


def test_an_agent_that_ends_takes_its_child_along(uri: str) -> None:
    stop = threading.Event()
    stop.set()
    before = Aliases.at(uri).holder("iris", "champion")
    assert before is not None
    started = time.monotonic()
    assert roll_back_in_child(uri, Back("iris", "champion", "3", before, "x"), stop).code < 0
    assert time.monotonic() - started < 5
    assert Aliases.at(uri).holder("iris", "champion") == before


def test_the_agent_needs_no_mlflow_for_it() -> None:
    code = "import sys, serving.agent; print('mlflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
    assert ran.stdout.strip() == "False"

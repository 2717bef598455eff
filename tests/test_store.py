"""What a worker serves: it follows the desired note, swaps in one step, and says what it serves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from samples import column_signature, write_sklearn

from serving import drift, notes
from serving.digest import folder_digest
from serving.errors import ModelNotReady, UnknownModel
from serving.live import Loader
from serving.metrics import Metrics
from serving.prepare import Job, prepare
from serving.registry import Auth, Version
from serving.roster import Roster
from serving.state import ModelState
from serving.store import Store
from serving.transforms import tabular


class Times:
    """A model that multiplies."""

    n_features_in_ = 1

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def predict(self, rows: object) -> object:
        return rows[:, 0] * self.factor  # type: ignore[index]


class Pod:
    """A state folder with bundles that can be desired, and stores that follow it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = ModelState(home / "state", "m")
        self.registry = CollectorRegistry()
        self.stores: list[Store] = []
        self.generation = 0

    def prepare(self, version: str, factor: float) -> None:
        import cloudpickle

        files = write_sklearn(
            self.home / f"files-{version}",
            Times(factor),
            dump=cloudpickle.dumps,
            signature=column_signature(x="double"),
        )
        (self.home / f"work-{version}").mkdir()
        plain = Version("m", version, "champion", "registry", str(files), digest=folder_digest(files))
        prepare(Job(plain, "", str(self.home / f"work-{version}"), str(self.state.bundles / version)), Auth())

    def desire(self, version: str) -> None:
        self.generation += 1
        note = {"generation": self.generation, "bundle": f"bundles/{version}", "version": version}
        notes.write(self.state.desired, {**note, "alias": "champion", "source": "registry"})

    def challenge(self, version: str | None, part: str) -> None:
        self.generation += 1
        note = {"generation": self.generation, "bundle": version and f"../bundles/{version}", "version": version}
        state = ModelState(self.home / "state", "m", ModelState.CHALLENGER)
        notes.write(state.desired, {**note, "part": part, "alias": "challenger", "source": "registry"})

    def start(self, ready: str = "all") -> Store:
        metrics = Metrics(CollectorRegistry())
        roster = Roster(["m"], self.home / "state")
        store = Store(roster, self.home / "state", metrics, Loader(metrics), ready=ready)
        self.stores.append(store)
        store.start()
        return store


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(tmp_path)
    yield pod
    for store in pod.stores:
        store.close()


def answer(store: Store, value: float = 2.0) -> float:
    live = store.live()
    batch, _ = tabular.parse(live.bundle.signature, [value])
    return float(live.predictor(batch).values[0])


def wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_without_a_desired_note_there_is_no_model(pod: Pod) -> None:
    store = pod.start()
    assert not store.ready()
    with pytest.raises(ModelNotReady, match="no version of 'm' is live yet"):
        store.live()


def test_what_is_desired_at_the_start_is_served_from_the_start(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.desire("1")
    store = pod.start()
    assert store.ready()
    assert answer(store) == 20


def test_it_follows_and_a_request_keeps_the_version_it_began_with(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.prepare("2", 100)
    pod.desire("1")
    store = pod.start()
    began_with = store.live()
    pod.desire("2")
    wait(lambda: store.live().bundle.version == "2")
    assert answer(store) == 200
    assert began_with.bundle.version == "1"


def test_only_what_is_live_can_be_named(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.desire("1")
    store = pod.start()
    assert store.live("m", "1").bundle.version == "1"
    with pytest.raises(UnknownModel, match="version '2' of 'm' is not live; version 1 is"):
        store.live("m", "2")
    with pytest.raises(UnknownModel, match="no model 'n' here; there is m"):
        store.live("n")


def test_every_living_worker_is_counted_and_closed_ones_are_not(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.desire("1")
    first, second = pod.start(), pod.start()
    assert (first.acknowledged("m").acknowledged, first.acknowledged("m").total) == (2, 2)
    assert first.acknowledged("m", generation=2).acknowledged == 0
    pod.stores.remove(second)
    second.close()
    assert (first.acknowledged("m").acknowledged, first.acknowledged("m").total) == (1, 1)


def test_a_bundle_that_cannot_be_loaded_leaves_the_old_one_and_is_said(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.prepare("2", 100)
    pod.desire("1")
    store = pod.start()
    (pod.state.bundles / "2" / "model.pickle").write_bytes(b"half")
    pod.desire("2")
    wait(lambda: store.acknowledged("m").failed == 1)
    count = store.acknowledged("m")
    assert (count.acknowledged, count.total, count.settled) == (0, 1, True)
    assert answer(store) == 20
    pod.desire("1")
    wait(lambda: store.acknowledged("m").acknowledged == 1)
    assert store.acknowledged("m").failed == 0


def test_a_bundle_of_another_model_is_not_served(pod: Pod) -> None:
    pod.prepare("1", 10)
    note = pod.state.bundles / "1" / "bundle.json"
    note.write_text(note.read_text().replace('"name": "m"', '"name": "other"'))
    pod.desire("1")
    store = pod.start()
    assert not store.ready()
    assert store.acknowledged("m").failed == 1


# --- the profile -----------------------------------------------------------------------------------------------------


def with_profile(pod: Pod, content: str) -> Store:
    """A store on a version whose profile says ``content``."""
    pod.prepare("1", 2.0)
    (pod.state.bundles / "1" / drift.FILE_NAME).write_text(content)
    pod.desire("1")
    return pod.start()


def test_a_version_with_a_profile_is_watched(pod: Pod) -> None:
    bins = drift.Bins("x", "numeric", ("<= 1", "> 1"), (0.5, 0.5), edges=(1.0,), threshold=0.2)
    profile = drift.Profile(2, (bins,), (), {}, {})
    assert with_profile(pod, json.dumps(profile.as_json())).live().drift is not None


@pytest.mark.parametrize("content", ['{"format": 99}', '{"format": 1, "rows": 3}'])
def test_a_profile_that_cannot_be_used_costs_the_watching_only(
    pod: Pod, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    live = with_profile(pod, content).live()
    assert live.drift is None
    assert live.bundle.version == "1"
    assert "is not watched for drift" in caplog.text


# --- challengers -----------------------------------------------------------------------------------------------------


def test_a_challenger_answers_its_share(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.prepare("2", 100)
    pod.desire("1")
    pod.challenge("2", "40%")
    store = pod.start()
    wait(lambda: "m" in store.splits)
    live = store.live()
    routes = [store.routed(live, f"caller {number}").route for number in range(1000)]
    assert 330 < routes.count("challenger") < 470
    assert routes == [store.routed(live, f"caller {number}").route for number in range(1000)]
    assert store.live("m", "2") is store.splits["m"].challenger
    assert store.routed(store.live("m", "2"), "anybody").bundle.version == "2"


def test_another_share_loads_nothing_anew(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.prepare("2", 100)
    pod.desire("1")
    pod.challenge("2", "10%")
    store = pod.start()
    wait(lambda: "m" in store.splits)
    challenger = store.splits["m"].challenger
    pod.challenge("2", "20%")
    wait(lambda: store.splits["m"].share == 0.2)
    assert store.splits["m"].challenger is challenger
    pod.challenge(None, "")
    wait(lambda: "m" not in store.splits)
    with pytest.raises(UnknownModel, match="version '2' of 'm' is not live"):
        store.live("m", "2")


def test_a_shadow_is_not_loaded_by_workers(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.desire("1")
    pod.challenge("2", "shadow")
    store = pod.start()
    wait(lambda: store.shadow("m") == "2")
    assert store.splits == {}
    pod.challenge(None, "")
    wait(lambda: store.shadow("m") is None)


def test_a_challenger_that_cannot_be_loaded_leaves_the_champion_alone(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.desire("1")
    pod.challenge("nowhere", "50%")
    store = pod.start()
    wait(store.ready)
    assert {store.routed(store.live(), f"caller {number}").bundle.version for number in range(50)} == {"1"}
    assert store.acknowledged("m").acknowledged == 1


# --- models that are added -------------------------------------------------------------------------------------------


def test_a_model_is_added_and_taken_back(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.desire("1")
    store = pod.start()
    wait(store.ready)
    assert store.add("other")
    assert store.names == ("m", "other")
    assert not store.ready()
    store.remove("other")
    assert store.names == ("m",)
    assert store.ready()


def test_any_of_its_models_may_be_enough(pod: Pod) -> None:
    pod.prepare("1", 10)
    pod.desire("1")
    store = pod.start(ready="any")
    wait(store.ready)
    store.add("other")
    assert store.ready()

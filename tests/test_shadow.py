"""A shadow answers copies, counts how far it agrees, and is replaced when it dies or hangs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledgers import new_id
from prometheus_client import CollectorRegistry
from samples import column_signature, write_sklearn

from serving import copies, notes
from serving.copies import Copier
from serving.digest import folder_digest
from serving.ledger import Spool
from serving.ledger.twins import twin
from serving.live import Live, Loader
from serving.metrics import SHADOWED, Metrics
from serving.observer import Recorder, Seen
from serving.prepare import Job, prepare
from serving.registry import Auth, Version
from serving.shadow import Shadow, Task
from serving.shadows import ShadowKeeper
from serving.state import LedgerState, ModelState
from serving.tensors import Batch, Prediction


class Scales:
    """A model that multiplies by two, and does what a row of its own tells it to."""

    n_features_in_ = 1

    def predict(self, rows: Any) -> Any:
        import os
        import time

        if rows[0, 0] == -1:
            raise RuntimeError("not this row")
        if rows[0, 0] == -2:
            time.sleep(600)
        if rows[0, 0] == -3:
            os._exit(9)
        return rows[:, 0] * 2.0


class Bench:
    """A model's state with a challenger that sees copies."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state_dir = home / "state"
        self.state = ModelState(self.state_dir, "m", ModelState.CHALLENGER)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.live = self._prepared()

    def _prepared(self) -> Live:
        import cloudpickle

        signature = column_signature(x="double")
        files = write_sklearn(self.home / "files", Scales(), dump=cloudpickle.dumps, signature=signature)
        (self.home / "work").mkdir()
        version = Version("m", "2", "challenger", "registry", str(files), digest=folder_digest(files))
        prepare(Job(version, "", str(self.home / "work"), str(self.state.bundles / "2")), Auth())
        note = {"generation": 1, "bundle": "bundles/2", "version": "2", "part": "shadow"}
        self.note = {**note, "alias": "challenger", "source": "registry", "since": "2026-01-01T00:00:00+00:00"}
        return Loader(self.metrics).load("m", self.state.home, self.note)

    def leave(self, *rows: float, answered: list[float] | None = None) -> str:
        """A copy as a worker leaves it; the id of the prediction."""
        prediction = Prediction(np.array(answered if answered is not None else [2 * row for row in rows]))
        seen = Seen(self.live, Batch(("x",), block=np.array(rows)[:, None]), prediction, new_id(), "r", time.time())
        Copier(lambda _: "2", self.state_dir, self.metrics)(self.live, [seen])
        return seen.prediction_id

    def rows(self, outcome: str) -> float:
        of = {"model": "m", "version": "2", "outcome": outcome}
        return self.registry.get_sample_value("ml_shadow_rows_total", of) or 0.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_it_counts_where_it_agrees(bench: Bench) -> None:
    bench.leave(1.0, 2.0)
    bench.leave(3.0, answered=[7.0])
    shadow = Shadow(bench.live, bench.state, bench.metrics, None)
    assert [shadow.work(), shadow.work(), shadow.work()] == [True, True, False]
    assert (bench.rows("agreed"), bench.rows("disagreed")) == (2, 1)
    apart = bench.registry.get_sample_value("ml_shadow_difference_total", {"model": "m", "version": "2"})
    assert apart == pytest.approx(1 / 7)
    assert list(bench.state.shadow.iterdir()) == []


def test_what_it_answers_goes_to_the_ledger_beside_the_champions(bench: Bench) -> None:
    prediction_id = bench.leave(1.0, 2.0)
    spool = Spool(LedgerState(bench.state_dir).spool, 1 << 20)
    record = Recorder(spool, bench.metrics.ledger, sample=1.0, omit=())
    shadow = Shadow(bench.live, bench.state, bench.metrics, record)
    assert shadow.work()
    (page,) = LedgerState(bench.state_dir).spool.iterdir()
    line = json.loads(page.read_bytes())
    assert line["ids"] == [twin(prediction_id)]
    assert (line["version"], line["rows"], line["values"]) == ("2", [2], [2.0, 4.0])


def test_what_it_counts_is_there_before_it_happens(bench: Bench) -> None:
    Shadow(bench.live, bench.state, bench.metrics, None)
    for outcome in SHADOWED:
        of = {"model": "m", "version": "2", "outcome": outcome}
        assert bench.registry.get_sample_value("ml_shadow_rows_total", of) == 0


def test_what_it_fails_at_is_counted_and_gone(bench: Bench) -> None:
    bench.leave(-1.0)
    (bench.state.shadow / "0.page").write_bytes(b"nonsense")
    shadow = Shadow(bench.live, bench.state, bench.metrics, None)
    assert [shadow.work(), shadow.work(), shadow.work()] == [True, True, False]
    assert bench.rows("failed") == 1


def test_too_many_copies_are_dropped(bench: Bench) -> None:
    for number in range(copies.MAX_PAGES + 3):
        bench.leave(float(number))
    assert len(copies.waiting(bench.state.shadow)) == copies.MAX_PAGES
    assert bench.rows("dropped") == 3
    bench.leave(*np.zeros(copies.MAX_PAGE_ROWS + 1))
    assert bench.rows("dropped") == 3 + copies.MAX_PAGE_ROWS + 1


def test_nobody_wants_copies(bench: Bench) -> None:
    seen = Seen(bench.live, Batch(("x",), block=np.ones((1, 1))), Prediction(np.ones(1)), new_id(), "r", 0.0)
    Copier(lambda _: None, bench.state_dir, bench.metrics)(bench.live, [seen])
    assert not bench.state.shadow.exists()


# --- the process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The bench with a keeper at work, which finds a page too long after two seconds."""
    monkeypatch.setattr("serving.shadows.PAUSE_S", (0.1, 0.2))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the shadow finds `Scales`
    notes.write(bench.state.desired, bench.note)
    task = Task("m", "", str(bench.state_dir), "info", "text", 1.0, (), 1 << 20)
    stop = threading.Event()
    thread = threading.Thread(target=ShadowKeeper(task, bench.metrics, hung_s=2.0).keep, args=(stop,))
    thread.start()
    yield bench
    stop.set()
    thread.join()


def wait(true: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def answered(bench: Bench) -> int:
    return len(list(LedgerState(bench.state_dir).spool.glob("*")))


@pytest.mark.parametrize("bad", [-2.0, -3.0], ids=["hangs", "dies"])
def test_a_page_that_it_hangs_at_or_dies_of_is_thrown_away(kept: Bench, bad: float) -> None:
    time.sleep(0.5)  # the keeper has begun anew with an empty folder
    kept.leave(1.0)
    wait(lambda: answered(kept) == 1)
    kept.leave(bad)
    kept.leave(5.0)
    wait(lambda: answered(kept) == 2)
    wait(lambda: kept.rows("failed") == 1)


def test_what_is_left_before_the_keeper_looks_is_answered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    bench.leave(1.0)  # for the version before
    time.sleep(0.02)
    notes.write(bench.state.desired, bench.note)
    time.sleep(0.02)
    bench.leave(2.0)
    stop = threading.Event()
    task = Task("m", "", str(bench.state_dir), "info", "text", 1.0, (), 1 << 20)
    thread = threading.Thread(target=ShadowKeeper(task, bench.metrics).keep, args=(stop,))
    thread.start()
    try:
        wait(lambda: answered(bench) == 1)
        time.sleep(0.3)
        (page,) = LedgerState(bench.state_dir).spool.iterdir()
        assert json.loads(page.read_bytes())["values"] == [4.0]
    finally:
        stop.set()
        thread.join()


def test_it_ends_when_nobody_challenges(kept: Bench) -> None:
    time.sleep(0.5)
    kept.leave(1.0)
    wait(lambda: answered(kept) == 1)
    notes.write(kept.state.desired, {"generation": 2, "bundle": None, "version": None})
    wait(lambda: not kept.state.shadow.exists())
    kept.leave(2.0)
    time.sleep(1.0)
    assert answered(kept) == 1

"""Champion and challenger by what turned out to be true: a label of one answer counts for its shadow too."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledgers import KINDS, NAMES, Ledger, new_url, sheet, taken

from serving import notes
from serving.ledger import Feedback, Taken, validated
from serving.ledger.contests import Contest
from serving.ledger.database import reading
from serving.ledger.twins import original, twin

SINCE = datetime.fromtimestamp(time.time() - 60, UTC).isoformat()
CONTEST = Contest("iris", "1", "2", SINCE)


@pytest.fixture(params=KINDS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return Ledger(new_url(request.param, tmp_path), tmp_path / "state")


def put(ledger: Ledger, predictions: list[Taken], **of: Any) -> None:
    assert ledger.spool.write(sheet(**of).encode(predictions)) is not None


def shadowed(predictions: list[Taken], random: np.random.Generator) -> list[Taken]:
    """What a shadow answers to the same rows."""
    others = [taken(random, one.batch.rows, one.at) for one in predictions]
    return [
        one._replace(prediction_id=twin(one.prediction_id), prediction=other.prediction)
        for one, other in zip(predictions, others, strict=True)
    ]


def label(ledger: Ledger, predictions: list[Taken]) -> list[str]:
    """Say what turned out to be true of the first row of each."""
    truths = [NAMES[position % 3] for position in range(len(predictions))]
    told = [{"prediction_id": one.prediction_id, "label": name} for one, name in zip(predictions, truths, strict=True)]
    Feedback(ledger.state, wait_s=0.0).send(validated(told))
    return truths


def standing(ledger: Ledger) -> dict[str, Any]:
    from serving.ledger.contests import standing as asked

    connection = ledger._database.connect()
    try:
        with reading(connection):
            return asked(connection, CONTEST)
    finally:
        connection.close()


@pytest.mark.parametrize("first", ["labels", "shadow"])
def test_labels_count_for_both_whichever_came_first(ledger: Ledger, first: str) -> None:
    random = np.random.default_rng(1)
    ours = [taken(random) for _ in range(30)]
    theirs = shadowed(ours, random)
    put(ledger, ours)
    if first == "shadow":
        put(ledger, theirs, version="2", route="shadow")
    assert ledger.drain()
    truths = label(ledger, ours)
    assert ledger.drain()
    if first == "labels":
        put(ledger, theirs, version="2", route="shadow")
        assert ledger.drain()
    found = standing(ledger)
    right = {
        role: [NAMES[one.prediction.values[0]] == truth for one, truth in zip(side, truths, strict=True)]
        for role, side in (("champion", ours), ("challenger", theirs))
    }
    for role, hits in right.items():
        assert found["sides"][role]["labelled_rows"] == 30
        assert found["sides"][role]["accuracy"]["mean"] == pytest.approx(np.mean(hits))
        assert found["sides"][role]["accuracy"]["variance"] == pytest.approx(np.var(hits))
    difference = np.array(right["challenger"], float) - np.array(right["champion"], float)
    assert found["pairs"]["labelled_rows"] == 30
    assert found["pairs"]["accuracy"]["mean"] == pytest.approx(difference.mean())
    assert found["pairs"]["accuracy"]["variance"] == pytest.approx(difference.var())
    assert found["pairs"]["brier"]["variance"] > 0
    assert found["pairs"]["mean_absolute_error"] is None


def test_a_corrected_label_corrects_both(ledger: Ledger) -> None:
    random = np.random.default_rng(2)
    ours = [taken(random)]
    theirs = shadowed(ours, random)
    put(ledger, ours)
    put(ledger, theirs, version="2", route="shadow")
    assert ledger.drain()
    for name in (NAMES[0], NAMES[theirs[0].prediction.values[0]]):
        told = [{"prediction_id": ours[0].prediction_id, "label": name, "observed_at": time.time()}]
        Feedback(ledger.state, wait_s=0.0).send(validated(told))
        assert ledger.drain()
    assert standing(ledger)["sides"]["challenger"]["accuracy"]["mean"] == 1.0


def test_what_came_before_the_contest_does_not_count(ledger: Ledger) -> None:
    random = np.random.default_rng(3)
    ours = [taken(random, at=time.time() - 3600)]
    put(ledger, ours)
    assert ledger.drain()
    label(ledger, ours)
    assert ledger.drain()
    assert standing(ledger)["sides"]["champion"]["labelled_rows"] == 0
    assert standing(ledger)["pairs"]["labelled_rows"] == 0


def test_the_writer_says_how_contests_stand(tmp_path: Path) -> None:
    ledger = Ledger(new_url("sqlite", tmp_path), tmp_path / "state", contests=lambda: [CONTEST])
    random = np.random.default_rng(4)
    put(ledger, [taken(random)])
    assert ledger.drain()
    import threading

    stop = threading.Event()
    thread = threading.Thread(target=ledger.writer().run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 15
    while not (notes.read(ledger.state.status) or {}).get("contests"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop.set()
    thread.join()
    (found,) = (notes.read(ledger.state.status) or {})["contests"]
    assert (found["model"], found["champion"], found["challenger"]) == ("iris", "1", "2")


def test_a_twin_differs_in_one_digit() -> None:
    name = "019aa6f0-5b5e-7c1e-9d3c-0f4f6f2f9a51"
    assert twin(name) == "019aa6f0-5b5e-8c1e-9d3c-0f4f6f2f9a51"
    assert original(twin(name)) == name

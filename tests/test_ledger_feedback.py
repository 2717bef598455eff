"""Feedback on the worker's side: what is a label, and the way to the writer and back."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ledgers import new_id

from serving.errors import InvalidInput
from serving.ledger import Feedback, Label, LedgerFull, validated
from serving.ledger.feedback import MAX_ITEMS, LabelsRefused
from serving.ledger.spool import waiting
from serving.state import LedgerState

ID = new_id(1_800_000_000)
NOW = 1_800_000_100.0


def item(**changed: Any) -> dict[str, Any]:
    return {"prediction_id": ID, "label": 1, **changed}


@pytest.mark.parametrize(
    ("body", "labels"),
    [
        (item(), [Label(ID, 0, 1, None)]),
        ([item(), item(label="setosa", row=4)], [Label(ID, 0, 1, None), Label(ID, 4, "setosa", None)]),
        (item(prediction_id=ID.upper()), [Label(ID, 0, 1, None)]),
        (item(label=5.0), [Label(ID, 0, 5, None)]),
        (item(label=5.5), [Label(ID, 0, 5.5, None)]),
        (item(label=True), [Label(ID, 0, True, None)]),
        (item(label=0), [Label(ID, 0, 0, None)]),
        (item(label=1 << 80), [Label(ID, 0, float(1 << 80), None)]),
        (item(label=""), [Label(ID, 0, "", None)]),
        (item(label="a\0b"), [Label(ID, 0, "a\ufffdb", None)]),
        (item(label=[0, "b", True]), [Label(ID, 0, 0, None), Label(ID, 1, "b", None), Label(ID, 2, True, None)]),
        (item(observed_at=NOW), [Label(ID, 0, 1, NOW)]),
        (item(observed_at=17), [Label(ID, 0, 1, 17.0)]),
        (item(observed_at="2027-01-15T08:00:00Z"), [Label(ID, 0, 1, 1_800_000_000.0)]),
        (item(observed_at="2027-01-15T09:00:00.5+01:00"), [Label(ID, 0, 1, 1_800_000_000.5)]),
        (item(observed_at=None), [Label(ID, 0, 1, None)]),
    ],
)
def test_labels(body: Any, labels: list[Label]) -> None:
    found = validated(body, now=NOW)
    assert found == labels
    assert [type(one.label) for one in found] == [type(one.label) for one in labels]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "at least one item"),
        ("text", "item 0: expected an object"),
        ([item(), 7], "item 1: expected an object"),
        (None, "item 0: expected an object"),
        ({"label": 1}, "item 0: 'prediction_id' is missing"),
        ([item()] * 3 + [{"prediction_id": ID}], "item 3: 'label' is missing"),
        (item(label=None), "item 0: 'label' is missing"),
        (item(extra=1), "item 0: unknown field 'extra'"),
        (item(prediction_id="7"), "item 0: 'prediction_id' must be a UUID"),
        (item(prediction_id=7), "item 0: 'prediction_id' must be a UUID"),
        (item(prediction_id=ID + "0"), "item 0: 'prediction_id' must be a UUID"),
        (item(prediction_id=ID + "\n"), "item 0: 'prediction_id' must be a UUID"),
        (item(label={}), "item 0: 'label' must be"),
        (item(label=float("nan")), "item 0: 'label' must be"),
        (item(label=float("inf")), "item 0: 'label' must be"),
        (item(label=10**400), "item 0: 'label' must be"),
        (item(label=[]), "item 0: 'label' is an empty list"),
        (item(label=[1, None]), "item 0: 'label' must be"),
        (item(label=[1, [2]]), "item 0: 'label' must be"),
        (item(label="x" * 1001), "item 0: 'label' is a text of more than 1000"),
        (item(label=[1], row=0), "item 0: 'row' selects one row"),
        (item(row=-1), "item 0: 'row' must be a whole number"),
        (item(row=True), "item 0: 'row' must be a whole number"),
        (item(row=1.5), "item 0: 'row' must be a whole number"),
        (item(row=10**9), "item 0: 'row' must be a whole number"),
        (item(observed_at="yesterday"), "item 0: 'observed_at' must be ISO 8601"),
        (item(observed_at="2027-01-15T08:00:00"), "item 0: 'observed_at' must be ISO 8601 with a zone"),
        (item(observed_at="0001-01-01T00:00:00+23:00"), "item 0: 'observed_at' must"),
        (item(observed_at=True), "item 0: 'observed_at' must be ISO 8601"),
        (item(observed_at=-1), "item 0: 'observed_at' must lie"),
        (item(observed_at=float("nan")), "item 0: 'observed_at' must lie"),
        (item(observed_at=10**400), "item 0: 'observed_at' must lie"),
        (item(observed_at=NOW + 86_401), "item 0: 'observed_at' must lie"),
        ([item()] * (MAX_ITEMS + 1), "10001 items"),
        ([item(label=[1] * 12_000)] * 2, "more than 20000 labels"),
    ],
)
def test_what_is_no_label_is_named(body: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        validated(body, now=NOW)
    assert said in str(caught.value)


def test_a_day_in_the_future_is_none(tmp_path: Path) -> None:
    assert validated(item(observed_at=time.time() + 80_000))
    with pytest.raises(InvalidInput):
        validated(item(observed_at=time.time() + 90_000))


def answer(state: LedgerState, content: dict[str, Any]) -> None:
    """What a writer does, as soon as there is an ask."""
    while not waiting(state.asks):
        time.sleep(0.001)
    (ask,) = waiting(state.asks)
    state.answers.mkdir(parents=True)
    half = state.answers / ".half"
    half.write_text(json.dumps(content))
    half.rename(state.answers / ask.name)


def test_the_answer_comes_back_and_leaves_nothing(tmp_path: Path) -> None:
    state = LedgerState(tmp_path)
    thread = threading.Thread(target=answer, args=(state, {"accepted": 1}))
    feedback = Feedback(state)
    thread.start()
    assert feedback.send([Label(ID, 0, 1, None)]) == {"accepted": 1}
    thread.join()
    assert not waiting(state.answers)


def test_labels_that_the_database_refuses_are_an_error(tmp_path: Path) -> None:
    state = LedgerState(tmp_path)
    feedback = Feedback(state)
    threading.Thread(target=answer, args=(state, {"refused": "no"}), daemon=True).start()
    with pytest.raises(LabelsRefused, match="no"):
        feedback.send([Label(ID, 0, 1, None)])


def test_labels_without_an_answer_wait_on_disk(tmp_path: Path) -> None:
    state = LedgerState(tmp_path)
    began = time.monotonic()
    assert Feedback(state, wait_s=0.1).send([Label(ID, 0, 1, None), Label(ID, 1, 1, None)]) == {"pending": 2}
    assert time.monotonic() - began < 1.0
    assert len(waiting(state.asks)) == 1


def test_labels_for_which_there_is_no_room_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerFull) as caught:
        Feedback(LedgerState(tmp_path), limit_bytes=10).send([Label(ID, 0, 1, None)])
    assert (caught.value.status, caught.value.retry_after_s) == (503, 30)


def test_a_disk_that_takes_no_labels_is_said(tmp_path: Path) -> None:
    state = LedgerState(tmp_path)
    feedback = Feedback(state)
    state.asks.rmdir()
    with pytest.raises(LedgerFull, match="cannot be kept"):
        feedback.send([Label(ID, 0, 1, None)])

"""Pages and labels reach the database, each exactly once, whatever happens to the database or to the writer."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from ledgers import KINDS, NAMES, Ledger, new_id, new_url, sheet, taken, until
from postgres import Postgres
from sklearn.metrics import accuracy_score, log_loss

from serving import notes
from serving.errors import SettingError
from serving.ledger import Feedback, Label, Taken, validated
from serving.ledger import mover as moving
from serving.ledger import session as sessions
from serving.ledger import writer as writing
from serving.ledger.database import Database
from serving.ledger.mover import refused
from serving.ledger.schema import VERSION_TABLE
from serving.ledger.spool import waiting
from serving.settings import ROOT
from serving.state import Lock


@pytest.fixture(params=KINDS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return Ledger(new_url(request.param, tmp_path), tmp_path / "state")


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def server(own_server: Postgres) -> Iterator[Postgres]:
    """A PostgreSQL of these tests alone, to be stopped and frozen."""
    yield own_server.start()
    own_server.stop()


@pytest.fixture
def away(server: Postgres, tmp_path: Path) -> Ledger:
    """A ledger in ``server``."""
    return Ledger(server.new_database(f"ledger_{time.time_ns()}"), tmp_path)


@contextmanager
def running(ledger: Ledger) -> Iterator[threading.Event]:
    """The writer in a thread, as in the agent; it must end soon after it was told to."""
    stop = threading.Event()
    thread = threading.Thread(target=ledger.writer().run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive(), "the writer does not end"


def note(ledger: Ledger) -> dict[str, Any]:
    return notes.read(ledger.state.status) or {}


def faster(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    for name, value in seconds.items():
        monkeypatch.setattr(writing, name, value)


# --- predictions -----------------------------------------------------------------------------------------------------


def test_predictions_reach_the_database_exactly_once(ledger: Ledger) -> None:
    """In pages of different sizes, written while the writer runs; some pages come twice."""
    rng = np.random.default_rng(0)
    predictions = [taken(rng) for _ in range(6000)]
    with running(ledger):
        for start in range(0, len(predictions), 400):
            ledger.put(predictions[start : start + 400])
            if start % 2000 == 0:
                ledger.put(predictions[start : start + 400])
        until(lambda: not ledger.spool.pages())
    assert ledger.ids() == sorted(one.prediction_id for one in predictions)
    assert ledger.total("written") == 7200
    assert not ledger.state.bad.exists()


def test_a_prediction_is_stored_as_it_was_answered(ledger: Ledger) -> None:
    one = taken(np.random.default_rng(1), rows=2, at=1_800_000_000.125)
    ledger.put([one])
    assert ledger.drain()
    columns = "prediction_id, row, model, version, digest, route, request_id, features, output"
    first, second = ledger.rows(f"SELECT {columns} FROM ledger_predictions ORDER BY row")
    assert tuple(map(str, first[:7])) == (one.prediction_id, "0", "iris", "1", "sha256:1", "champion", one.request_id)
    assert second[1] == 1
    features, output = (json.loads(text) for text in second[7:])
    assert list(features.values()) == one.batch.block[1].tolist()
    chances = one.prediction.probabilities[1].tolist()
    predicted = int(one.prediction.values[1])
    assert output == {
        "class_id": predicted,
        "class_name": NAMES[predicted],
        "confidence": max(chances),
        "probabilities": dict(zip(NAMES, chances, strict=True)),
    }
    assert "2027-01-15 08:00:00.125000" in str(ledger.rows("SELECT at FROM ledger_predictions")[0][0])


def test_ten_thousand_rows_of_one_prediction_are_cut_and_whole_again(ledger: Ledger) -> None:
    ledger.put([taken(np.random.default_rng(2), rows=11_000)])
    assert ledger.drain()
    assert ledger.rows("SELECT count(*), min(row), max(row) FROM ledger_predictions") == [(11_000, 0, 10_999)]


def test_what_cannot_be_read_is_counted_and_set_aside_and_holds_up_nothing(ledger: Ledger) -> None:
    good = taken(np.random.default_rng(3))
    whole = sheet().encode([good])
    ledger.spool.write(b"\0\0\0\n" + whole[:50] + b"\n" + b'{"model": 1}\n' + whole)
    ledger.spool.write(b"")
    assert ledger.drain()
    assert ledger.ids() == [good.prediction_id]
    assert ("lost", 3, "unreadable") in ledger.counted
    assert whole[:50] in next(ledger.state.bad.iterdir()).read_bytes()


def test_a_row_that_the_database_refuses_holds_up_nothing(tmp_path: Path) -> None:
    """PostgreSQL has no numbers of rows beyond 32 bits."""
    ledger = Ledger(new_url("postgresql", tmp_path), tmp_path / "state")
    good, bad, other = (taken(np.random.default_rng(seed)) for seed in range(3))
    ledger.put([good])
    ledger.spool.write(sheet().encode([bad]).replace(b'"first":0', b'"first":99999999999') + sheet().encode([other]))
    assert ledger.drain()
    assert ledger.ids() == sorted([good.prediction_id, other.prediction_id])
    assert ("lost", 1, "unreadable") in ledger.counted
    assert bad.prediction_id.encode() in next(ledger.state.bad.iterdir()).read_bytes()


def test_a_large_page_is_put_in_part_by_part(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not small takes long, and an end in the middle must not undo all of it."""
    monkeypatch.setattr(moving, "LARGE_BYTES", 1000)
    monkeypatch.setattr(moving, "TRANSACTION_ROWS", 30)
    small, large = (taken(np.random.default_rng(seed), rows=rows) for seed, rows in enumerate((1, 100)))
    for one in (small, large, small):
        ledger.put([one])
    ledger.spool.write(b"nonsense" * 1000)
    assert ledger.drain()
    assert [entry[1] for entry in ledger.counted if entry[0] == "written"] == [1, 30, 30, 30, 10, 1]
    assert ("lost", 1, "unreadable") in ledger.counted
    assert len(ledger.ids()) == 101


def test_texts_that_postgresql_refuses_are_kept_without_what_it_refuses(ledger: Ledger) -> None:
    one = taken(np.random.default_rng(4))._replace(request_id="a\0b\\u0000\ud800c")
    ledger.put([one])
    assert ledger.drain()
    assert ledger.rows("SELECT request_id FROM ledger_predictions") == [("a\ufffdb\\u0000?c",)]


def test_what_is_set_aside_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "MAX_BAD", 2)
    monkeypatch.setattr(moving, "TRANSACTION_PAGES", 1)
    ledger = Ledger(new_url("sqlite", tmp_path), tmp_path / "state")
    for _ in range(4):
        ledger.spool.write(b"nonsense")
    assert ledger.drain()
    assert len(list(ledger.state.bad.iterdir())) == 2
    assert sum(entry[1] for entry in ledger.counted if entry[0] == "lost") == 4


def test_a_page_that_can_be_neither_read_nor_removed_holds_up_nothing(ledger: Ledger) -> None:
    (ledger.state.spool / "00000000000000000000-1-0").mkdir()
    one = taken(np.random.default_rng(23))
    with running(ledger):
        ledger.put([one])
        until(lambda: len(ledger.spool.pages()) == 1)
        ledger.put([one])
        until(lambda: len(ledger.spool.pages()) == 1)
    assert ledger.ids() == [one.prediction_id]
    assert [entry for entry in ledger.counted if entry[0] == "lost"] == [("lost", 1, "unreadable")]


def test_a_status_that_cannot_be_written_holds_up_nothing(ledger: Ledger) -> None:
    (ledger.state.status / "a folder").mkdir(parents=True)
    with running(ledger):
        ledger.put([taken(np.random.default_rng(24))])
        until(lambda: not ledger.spool.pages())


def test_a_lock_that_cannot_be_taken_is_said_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(new_url("sqlite", tmp_path), tmp_path / "state")
    ledger.state.lock.mkdir()
    with running(ledger):
        time.sleep(0.05)
    assert not ledger.drain(0.05)
    assert "lock cannot be taken" in caplog.text


# --- a database that is away -----------------------------------------------------------------------------------------


def test_a_database_that_was_away_gets_every_prediction_once(
    server: Postgres, away: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faster(monkeypatch, FIRST_PAUSE_S=0.1)
    caplog.set_level(logging.INFO, "serving.ledger")
    ledger = away
    rng = np.random.default_rng(5)
    predictions: list[Taken] = []

    def answer(seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            some = [taken(rng) for _ in range(20)]
            predictions.extend(some)
            ledger.put(some)
            time.sleep(0.01)

    with running(ledger):
        until(lambda: note(ledger).get("reachable"))
        answer(0.3)
        server.stop()
        answer(1.5)
        assert ledger.spool.pages()
        assert note(ledger)["reachable"] is False
        assert server.PASSWORD not in note(ledger)["error"]
        assert server.URL_PASSWORD not in note(ledger)["error"]
        server.start()
        answer(0.3)
        until(lambda: not ledger.spool.pages())
        until(lambda: note(ledger)["reachable"])
    assert ledger.ids() == sorted(one.prediction_id for one in predictions)
    assert [entry[1] for entry in ledger.counted if entry[0] == "reachable"] == [True, False, True]
    said = [record.getMessage() for record in caplog.records if record.name == "serving.ledger"]
    assert len(said) == 2, said
    assert "is back" in said[1]


def test_a_database_that_hangs_holds_up_no_end_and_loses_nothing(server: Postgres, away: Ledger) -> None:
    ledger = away
    rng = np.random.default_rng(6)
    predictions = [taken(rng) for _ in range(5000)]
    with running(ledger):
        until(lambda: note(ledger).get("reachable"))
        server.freeze()
        for start in range(0, len(predictions), 100):
            ledger.put(predictions[start : start + 100])
        time.sleep(0.5)  # by now the writer waits for an answer that does not come
        began = time.monotonic()
    assert time.monotonic() - began < writing.GRACE_S + 1.5
    assert len(ledger.spool.pages()) == 50
    began = time.monotonic()
    assert not ledger.drain(1.0)
    assert time.monotonic() - began < 5.0
    server.thaw()
    assert ledger.drain()
    assert ledger.ids() == sorted(one.prediction_id for one in predictions)


def test_a_call_that_hangs_is_cut_and_tried_again(
    server: Postgres, away: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster(monkeypatch, FIRST_PAUSE_S=0.1)
    monkeypatch.setattr(sessions, "CALL_S", 0.5)
    ledger = away
    one = taken(np.random.default_rng(7))
    with running(ledger):
        until(lambda: note(ledger).get("reachable"))
        server.freeze()
        ledger.put([one])
        until(lambda: note(ledger)["reachable"] is False)
        server.thaw()
        until(lambda: note(ledger)["reachable"])
        until(lambda: not ledger.spool.pages())
    assert ledger.ids() == [one.prediction_id]


KILLED = """
import sys, threading
from pathlib import Path
from serving.ledger.writer import Writer
from serving.state import LedgerState
Writer(sys.argv[1], LedgerState(Path(sys.argv[2]))).run(threading.Event())
"""


def test_a_writer_that_is_killed_again_and_again_leaves_each_prediction_once(ledger: Ledger) -> None:
    rng = np.random.default_rng(8)
    predictions = [taken(rng) for _ in range(10_000)]
    labels = [Label(one.prediction_id, 0, int(rng.integers(3)), None) for one in predictions[:2000]]
    chance = random.Random(8)
    for start in range(0, len(predictions), 20):
        ledger.put(predictions[start : start + 20])
    feedback = Feedback(ledger.state, wait_s=0.0)
    for start in range(0, len(labels), 1000):
        assert feedback.send(labels[start : start + 1000]) == {"pending": 1000}
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, ledger.url, str(ledger.state.path.parent)]
        before = len(ledger.spool.pages())
        process = subprocess.Popen(command, cwd=ROOT)
        until(lambda before=before: len(ledger.spool.pages()) < before or not before)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ledger.drain()
    assert ledger.ids() == sorted(one.prediction_id for one in predictions)
    assert ledger.rows("SELECT count(*) FROM ledger_labels") == [(2000,)]


# --- one writer ------------------------------------------------------------------------------------------------------


def test_there_is_one_writer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faster(monkeypatch, FIRST_PAUSE_S=0.05)
    ledger = Ledger(new_url("sqlite", tmp_path), tmp_path / "state")
    other = Lock(ledger.state.lock)
    assert other.acquire()
    ledger.put([taken(np.random.default_rng(9))])
    assert not ledger.drain(0.1)
    with running(ledger):
        time.sleep(0.2)
        assert ledger.spool.pages()
        other.release()
        until(lambda: not ledger.spool.pages())


def test_several_pods_start_on_one_empty_database(tmp_path: Path) -> None:
    url = new_url("postgresql", tmp_path)
    pods = [Ledger(url, tmp_path / str(number)) for number in range(4)]
    rng = np.random.default_rng(10)
    predictions = [taken(rng) for _ in range(400)]
    for number, pod in enumerate(pods):
        pod.put(predictions[100 * number : 100 * (number + 1)])
        pod.put(predictions[:100])  # the same ids from all at once
    drained: list[bool] = []
    threads = [threading.Thread(target=lambda pod=pod: drained.append(pod.drain())) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drained == [True] * 4
    assert pods[0].ids() == sorted(one.prediction_id for one in predictions)


def test_a_database_of_a_later_release_is_not_written(ledger: Ledger) -> None:
    assert ledger.drain()
    ledger.rows("SELECT 1")  # makes the tables
    with sa.create_engine(Database(ledger.url).engine.url).begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    ledger.put([taken(np.random.default_rng(11))])
    with running(ledger):
        until(lambda: note(ledger).get("reachable") is False)
    assert "9999, a later release's" in note(ledger)["error"]
    assert len(ledger.spool.pages()) == 1


def test_a_database_that_was_made_anew_gets_its_tables_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    faster(monkeypatch, FIRST_PAUSE_S=0.05)
    first, second = (taken(np.random.default_rng(seed)) for seed in (12, 13))
    with running(ledger):
        ledger.put([first])
        until(lambda: not ledger.spool.pages())
        with sa.create_engine(Database(ledger.url).engine.url).begin() as connection:
            for table in ("ledger_predictions", "ledger_labels", "ledger_versions", VERSION_TABLE):
                connection.execute(sa.text(f"DROP TABLE {table}"))
        ledger.put([second])
        until(lambda: not ledger.spool.pages())
    assert ledger.ids() == [second.prediction_id]


def test_a_url_that_cannot_be_one_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="DATABASE_URL"):
        Ledger("mysql://x", tmp_path)


# --- feedback --------------------------------------------------------------------------------------------------------


def test_quality_equals_what_is_computed_by_hand(ledger: Ledger) -> None:
    """Many predictions and their labels: late, repeated, shuffled, some corrected, some before their prediction."""
    rng = np.random.default_rng(14)
    now = time.time()
    count = 10_000 if ledger.url.startswith("postgresql") else 4000
    predictions = [taken(rng, at=now - 1000 + 0.05 * number) for number in range(count)]
    truth = rng.integers(3, size=len(predictions))
    observed = [one.at + 30 for one in predictions]
    right = [
        {"prediction_id": one.prediction_id, "label": [int(k), float(k), NAMES[k]][number % 3], "observed_at": at}
        for number, (one, k, at) in enumerate(zip(predictions, truth, observed, strict=True))
    ]
    wrong = [{**item, "label": NAMES[rng.integers(3)], "observed_at": item["observed_at"] - 5} for item in right[::4]]
    items = right + wrong + right[::3]
    random.Random(14).shuffle(items)
    feedback = Feedback(ledger.state, wait_s=20.0)
    answers = []
    with running(ledger):
        answers.append(feedback.send(validated(items[:3000])))
        for start in range(0, len(predictions), 500):
            ledger.put(predictions[start : start + 500])
        until(lambda: not ledger.spool.pages())
        answers.extend(feedback.send(validated(items[at : at + 2500])) for at in range(3000, len(items), 2500))
    faster_again(ledger)
    (quality,) = note(ledger)["quality"]
    chances = np.vstack([one.prediction.probabilities for one in predictions])
    onehot = np.eye(3)[truth]
    assert quality["predicted_rows"] == quality["labelled_rows"] == count
    assert quality["coverage"] == 1.0
    assert quality["accuracy"] == pytest.approx(accuracy_score(truth, chances.argmax(axis=1)), abs=1e-12)
    assert quality["log_loss"] == pytest.approx(log_loss(truth, chances, labels=[0, 1, 2]), rel=1e-9)
    assert quality["brier"] == pytest.approx(((chances - onehot) ** 2).sum(axis=1).mean(), rel=1e-9)
    assert quality["label_delay_s"] == pytest.approx(30.0, abs=1e-3)
    assert quality["mean_absolute_error"] is None
    assert len(answers[0]["unknown"]) == len({item["prediction_id"] for item in items[:3000]})
    said = {
        word: sum(answer[word] for answer in answers[1:]) for word in ("accepted", "corrected", "repeated", "stale")
    }
    assert sum(said.values()) == len(items) - 3000


def faster_again(ledger: Ledger) -> None:
    """Have quality computed by a new run: it is the first thing that one does."""
    ledger.state.status.unlink(missing_ok=True)
    with running(ledger):
        until(lambda: note(ledger).get("quality"))


def test_labels_in_any_order_leave_the_same(ledger: Ledger) -> None:
    rng = np.random.default_rng(15)
    predictions = [taken(rng) for _ in range(20)]
    ledger.put(predictions)
    assert ledger.drain()
    labels = [
        Label(one.prediction_id, 0, int(rng.integers(3)), one.at + seconds)
        for one in predictions
        for seconds in range(5)
    ]
    last = {label.prediction_id: label.label for label in labels}
    feedback = Feedback(ledger.state, wait_s=0.0)
    for seed in range(2):
        random.Random(seed).shuffle(labels)
        for start in range(0, len(labels), 11):
            feedback.send(labels[start : start + 11])
        assert ledger.drain()
        kept = {str(id): json.loads(text) for id, text in ledger.rows("SELECT prediction_id, label FROM ledger_labels")}
        assert kept == last


def test_what_came_of_labels_is_said(ledger: Ledger) -> None:
    rng = np.random.default_rng(16)
    one, many = taken(rng, at=time.time() - 100), taken(rng, rows=3, at=time.time() - 100)
    ledger.put([one, many])
    nobody = new_id(time.time() - 3600)
    feedback = Feedback(ledger.state, wait_s=10.0)

    def send(*items: dict[str, Any]) -> dict[str, Any]:
        return feedback.send(validated(list(items)))

    first = {"prediction_id": one.prediction_id, "label": 1, "observed_at": one.at + 10}
    with running(ledger):
        until(lambda: not ledger.spool.pages())
        assert send(first) == {"accepted": 1, "corrected": 0, "repeated": 0, "stale": 0, "unknown": []}
        assert send(first, {**first, "label": 1.0})["repeated"] == 2
        assert send({**first, "label": 2, "observed_at": one.at + 9})["stale"] == 1
        assert send({**first, "label": 2, "observed_at": one.at + 11})["corrected"] == 1
        assert send({**first, "label": 0, "observed_at": one.at + 11})["corrected"] == 1  # what came last holds
        assert send({"prediction_id": nobody, "label": 1})["unknown"] == [nobody]
        rows = send({"prediction_id": many.prediction_id, "label": [0, 1, 2, 0]})
        assert rows == {"accepted": 3, "corrected": 0, "repeated": 0, "stale": 0, "unknown": [many.prediction_id]}
        assert send({"prediction_id": many.prediction_id, "label": 2, "row": 1})["corrected"] == 1
    counted = [entry[1:] for entry in ledger.counted if entry[0] == "label"]
    assert counted[:4] == [
        ("iris", "accepted", 1),
        ("iris", "repeated", 2),
        ("iris", "stale", 1),
        ("iris", "corrected", 1),
    ]
    assert ("", "unknown", 1) in counted
    assert [round(entry[2]) for entry in ledger.counted if entry[0] == "delay"][:2] == [10, 11]


def test_a_label_that_comes_at_once_waits_for_its_prediction(ledger: Ledger) -> None:
    """The page is written a moment after the label came."""
    one = taken(np.random.default_rng(17))
    feedback = Feedback(ledger.state, wait_s=5.0)
    with running(ledger):
        until(lambda: note(ledger).get("reachable"))
        threading.Timer(0.3, ledger.put, [[one]]).start()
        answer = feedback.send([Label(one.prediction_id, 0, 1, None)])
    assert answer["accepted"] == 1


def test_an_unknown_young_id_is_answered_after_a_second(ledger: Ledger) -> None:
    young = new_id()
    feedback = Feedback(ledger.state, wait_s=5.0)
    with running(ledger):
        until(lambda: note(ledger).get("reachable"))
        began = time.monotonic()
        assert feedback.send([Label(young, 0, 1, None)])["unknown"] == [young]
        assert 0.9 < time.monotonic() - began < 2.0


def test_an_answer_comes_quickly(ledger: Ledger) -> None:
    one = taken(np.random.default_rng(18), at=time.time() - 100)
    ledger.put([one])
    assert ledger.drain()
    feedback = Feedback(ledger.state)
    took = []
    with running(ledger):
        until(lambda: note(ledger).get("reachable"))
        for _ in range(20):
            began = time.monotonic()
            assert "pending" not in feedback.send([Label(one.prediction_id, 0, 1, None)])
            took.append(time.monotonic() - began)
    assert sorted(took)[10] < 0.1


def test_labels_wait_for_a_database_that_is_away(
    server: Postgres, away: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster(monkeypatch, FIRST_PAUSE_S=0.1)
    ledger = away
    one = taken(np.random.default_rng(19), at=time.time() - 100)
    ledger.put([one])
    assert ledger.drain()
    server.stop()
    with running(ledger):
        sent = Feedback(ledger.state, wait_s=0.3).send([Label(one.prediction_id, 0, 2, None)])
        assert sent == {"pending": 1}
        server.start()
        until(lambda: not list(ledger.state.asks.iterdir()))
    assert ledger.rows("SELECT label, model FROM ledger_labels") == [("2", "iris")]


def test_an_ask_that_is_half_a_file_holds_up_nothing(ledger: Ledger) -> None:
    one = taken(np.random.default_rng(20), at=time.time() - 100)
    ledger.put([one])
    feedback = Feedback(ledger.state, wait_s=0.0)
    (ledger.state.asks / "00000000000000000000-1-0").write_bytes(b'{"received_at": 17')
    feedback.send([Label(one.prediction_id, 0, 2, None)])
    assert ledger.drain()
    assert ledger.rows("SELECT count(*) FROM ledger_labels") == [(1,)]
    assert [path.name for path in ledger.state.bad.iterdir()] == ["00000000000000000000-1-0"]


def test_labels_that_the_database_refuses_hold_up_no_others(tmp_path: Path) -> None:
    """PostgreSQL has no numbers of rows beyond 32 bits; `validated` lets none through."""
    ledger = Ledger(new_url("postgresql", tmp_path), tmp_path / "state")
    one = taken(np.random.default_rng(25), at=time.time() - 100)
    ledger.put([one])
    feedback = Feedback(ledger.state, wait_s=0.0)
    for label in (Label(new_id(0), 1 << 40, 1, None), Label(one.prediction_id, 0, 1, None)):
        feedback.send([label])
    first, _ = waiting(ledger.state.asks)
    assert ledger.drain()
    assert ledger.rows("SELECT label FROM ledger_labels") == [("1",)]
    assert json.loads((ledger.state.answers / first.name).read_text()) == {
        "refused": "the database does not take these labels"
    }
    assert [path.name for path in ledger.state.bad.iterdir()] == [first.name]


def test_answers_for_which_nobody_waits_are_removed(tmp_path: Path) -> None:
    ledger = Ledger(new_url("sqlite", tmp_path), tmp_path / "state")
    Feedback(ledger.state, wait_s=0.0).send([Label(new_id(0), 0, 1, None)])
    assert ledger.drain()
    (answer,) = ledger.state.answers.iterdir()
    os.utime(answer, (0, 0))
    with running(ledger):
        until(lambda: not answer.exists())


# --- quality and retention -------------------------------------------------------------------------------------------


def test_what_is_old_or_too_much_is_removed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.ledger.quality.SLICE", 30)
    rng = np.random.default_rng(21)
    now = time.time()
    old = [taken(rng, at=now - 40 * 86_400) for _ in range(100)]
    new = [taken(rng, at=now - 1000 + number) for number in range(100)]
    ledger.put(old + new)
    feedback = Feedback(ledger.state, wait_s=0.0)
    feedback.send([Label(one.prediction_id, 0, 1, None) for one in old + new])
    assert ledger.drain()
    ledger._options["max_rows"] = 60
    with running(ledger):
        until(lambda: len(ledger.ids()) == 60)
    assert ledger.ids() == sorted(one.prediction_id for one in new[40:])
    assert ledger.rows("SELECT count(*) FROM ledger_labels") == [(60,)]


def test_labels_of_nobody_are_removed_when_they_are_old(ledger: Ledger) -> None:
    feedback = Feedback(ledger.state, wait_s=0.0)
    feedback.send([Label(new_id(), 0, 1, None)])
    assert ledger.drain()
    ledger._options["keep_days"] = 1e-7
    with running(ledger):
        until(lambda: ledger.rows("SELECT count(*) FROM ledger_labels") == [(0,)])


def test_the_error_of_a_regressor(ledger: Ledger) -> None:
    rng = np.random.default_rng(22)
    predictions = [taken(rng, at=time.time() - 100) for _ in range(50)]
    values = rng.normal(100, 10, 50)
    regressor = sheet(model="prices", classes=None)
    answered = [
        one._replace(prediction=type(one.prediction)(np.array([value])))
        for one, value in zip(predictions, values, strict=True)
    ]
    ledger.spool.write(regressor.encode(answered))
    Feedback(ledger.state, wait_s=0.0).send(
        [
            Label(one.prediction_id, 0, float(value) + 2.5, None)
            for one, value in zip(answered[:40], values, strict=False)
        ]
    )
    assert ledger.drain()
    faster_again(ledger)
    (quality,) = note(ledger)["quality"]
    assert quality["mean_absolute_error"] == pytest.approx(2.5)
    assert quality["coverage"] == 0.8
    assert quality["accuracy"] is None


def test_what_is_refused_is_told_from_what_is_away() -> None:
    assert refused(ValueError("A string literal cannot contain NUL (0x00) characters."))
    assert refused(sa.exc.DataError("", {}, Exception()))
    assert not refused(sa.exc.OperationalError("", {}, Exception("server closed the connection")))
    assert not refused(KeyError("a bug"))
    too_large = type("ProgramLimitExceeded", (Exception,), {"pgcode": "54000"})
    assert refused(sa.exc.OperationalError("", {}, too_large()))

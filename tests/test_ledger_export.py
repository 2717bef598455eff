"""The export is a training set: typed columns, one row for each predicted row with its label."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ledgers import KINDS, NAMES, Ledger, new_id, new_url, sheet, taken

from serving.ledger import Feedback, Label, Taken
from serving.ledger import export as exporting
from serving.ledger.database import Database
from serving.ledger.export import Selection, export
from serving.tensors import Batch, Prediction


@pytest.fixture(params=KINDS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return Ledger(new_url(request.param, tmp_path), tmp_path / "state")


def label(ledger: Ledger, *labels: Label) -> None:
    Feedback(ledger.state, wait_s=0.0).send(list(labels))
    assert ledger.drain()


def exported(ledger: Ledger, out: Path, **selected: Any) -> list[dict[str, Any]]:
    database = Database(ledger.url)
    rows = export(database, Selection(**selected), out)
    database.engine.dispose()
    found = pq.read_table(out).to_pylist() if rows else []
    assert len(found) == rows
    return found


def test_labelled_rows_are_exported_in_order(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "PIECE_ROWS", 7)
    rng = np.random.default_rng(0)
    predictions = [taken(rng, rows=3, at=1_800_000_000 + number) for number in range(20)]
    ledger.put(predictions)
    observed = 1_800_001_000.5
    label(ledger, *(Label(one.prediction_id, row, 2, observed) for one in predictions[:15] for row in (0, 2)))
    rows = exported(ledger, tmp_path / "out.parquet")
    assert [(row["prediction_id"], row["row"]) for row in rows] == [
        (one.prediction_id, row) for one in predictions[:15] for row in (0, 2)
    ]
    one, row = predictions[0], rows[1]
    chances = one.prediction.probabilities[2]
    assert row == {
        "prediction_id": one.prediction_id,
        "row": 2,
        "at": datetime.fromtimestamp(one.at, UTC),
        "model": "iris",
        "version": "1",
        "observed_at": datetime.fromtimestamp(observed, UTC),
        "predicted": NAMES[int(chances.argmax())],
        "label": "virginica",
        **dict(zip(one.batch.names, one.batch.block[2].tolist(), strict=True)),
        **{f"probability_{name}": chance for name, chance in zip(NAMES, chances.tolist(), strict=True)},
    }
    assert len(exported(ledger, tmp_path / "all.parquet", unlabelled=True)) == 60
    assert not list(tmp_path.glob(".*"))


def test_rows_are_chosen_by_model_version_and_time(ledger: Ledger, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    predictions = [taken(rng, at=1_800_000_000 + number) for number in range(4)]
    ledger.put(predictions[:2])
    ledger.spool.write(sheet(version="2").encode(predictions[2:3]) + sheet(model="other").encode(predictions[3:]))
    label(ledger, *(Label(one.prediction_id, 0, 0, None) for one in predictions))

    def chosen(**selected: Any) -> list[int]:
        rows = exported(ledger, tmp_path / "out.parquet", **selected)
        return [[one.prediction_id for one in predictions].index(row["prediction_id"]) for row in rows]

    def moment(number: float) -> datetime:
        return datetime.fromtimestamp(1_800_000_000 + number, UTC)

    assert chosen(model="iris") == [0, 1, 2]
    assert chosen(model="iris", version="2") == [2]
    assert chosen(since=moment(1), until=moment(3)) == [1, 2]
    assert chosen(model="nobody") == []


def of_values(ledger: Ledger, names: list[str], columns: list[Any], values: list[Any], **changed: Any) -> list[Taken]:
    """One prediction for each row of ``columns``, of a model without classes."""
    predictions = []
    for row, value in enumerate(values):
        batch = Batch(names, [np.array([column[row]], dtype=object) for column in columns])
        at = time.time() + row
        predictions.append(Taken(new_id(at), at, "r", batch, Prediction(np.array([value]))))
    ledger.spool.write(sheet(features=names, classes=None, **changed).encode(predictions))
    return predictions


def test_types_are_those_of_the_values(ledger: Ledger, tmp_path: Path) -> None:
    names = ["whole", "number", "flag", "text", "mixed", "list", "empty", "huge", "label", "probability_x"]
    columns = [
        [1, 2, None],
        [1, 2.5, None],
        [True, None, False],
        ["a", "b", None],
        ["a", 1, [2]],
        [[1], [2, 3], None],
        [None, None, None],
        [1, 1 << 64, None],
        ["x", "y", "z"],
        [1, 2, 3],
    ]
    predictions = of_values(ledger, names, columns, [1.5, 2.5, 3.5])
    label(ledger, *(Label(one.prediction_id, 0, 3, None) for one in predictions))
    rows = exported(ledger, tmp_path / "out.parquet")
    types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "out.parquet")}
    assert {name: types[name] for name in types if name not in exporting.FIXED} == {
        "predicted": "double",
        "label": "int64",
        "whole": "int64",
        "number": "double",
        "flag": "bool",
        "text": "string",
        "mixed": "string",
        "list": "string",
        "empty": "string",
        "huge": "string",
        "feature_label": "string",
        "feature_probability_x": "int64",
    }
    assert [row["mixed"] for row in rows] == ["a", "1", "[2]"]
    assert [row["list"] for row in rows] == ["[1]", "[2,3]", None]
    assert [row["whole"] for row in rows] == [1, 2, None]
    assert [row["feature_label"] for row in rows] == ["x", "y", "z"]


def test_versions_with_other_features_share_a_table(ledger: Ledger, tmp_path: Path) -> None:
    first = of_values(ledger, ["a"], [[1.0]], [1.0])
    second = of_values(ledger, ["a", "b"], [[2.0], ["x"]], [2.0], version="2")
    label(ledger, *(Label(one.prediction_id, 0, 3, None) for one in first + second))
    rows = sorted(exported(ledger, tmp_path / "out.parquet"), key=lambda row: row["version"])
    assert [(row["a"], row["b"]) for row in rows] == [(1.0, None), (2.0, "x")]


def test_a_row_that_came_meanwhile_does_not_break_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are learned by a first look; what comes before the second may be of another."""
    ledger = Ledger(new_url("sqlite", tmp_path), tmp_path / "state")
    (one,) = of_values(ledger, ["a"], [[1]], [1.0])
    label(ledger, Label(one.prediction_id, 0, 3, None))
    looked = exporting._learn

    def learn(piece: Any, kinds: Any) -> None:
        looked(piece, kinds)
        late = of_values(ledger, ["a", "b"], [["text"], [1]], [1.0])
        label(ledger, Label(late[0].prediction_id, 0, 3, None))

    monkeypatch.setattr(exporting, "_learn", learn)
    monkeypatch.setattr(exporting, "PIECE_ROWS", 1)
    calls = iter([learn, looked, looked, looked])
    monkeypatch.setattr(exporting, "_learn", lambda *given: next(calls)(*given))
    rows = exported(ledger, tmp_path / "out.parquet")
    assert len(rows) == 2


def test_a_file_that_was_there_stays_when_the_export_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(new_url("sqlite", tmp_path), tmp_path / "state")
    (one,) = of_values(ledger, ["a"], [[1]], [1.0])
    label(ledger, Label(one.prediction_id, 0, 3, None))
    out = tmp_path / "out.parquet"
    out.write_text("before")

    def broken(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(exporting, "_table", broken)
    with pytest.raises(RuntimeError):
        export(Database(ledger.url), Selection(), out)
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

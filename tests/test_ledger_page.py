"""Pages: whatever a model is given and answers can be written by a worker and read by the writer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pytest
from ledgers import CLASSES, FEATURES, new_id, sheet, taken

from serving.ledger import Sheet, Taken, sampled
from serving.ledger.page import LINE_ROWS, MAX_JSON_BYTES, read
from serving.ledger.schema import predictions
from serving.protocols.simple import Labels
from serving.tensors import Batch, Classes, Prediction

COLUMNS = [column.name for column in predictions.columns]


def rows(content: bytes) -> list[dict[str, Any]]:
    """A page as dictionaries by column, with features and output parsed."""
    found = []
    for line in read(content):
        assert line.unreadable is None, line.unreadable
        for row in line.predictions:
            plain = dict(zip(COLUMNS, row, strict=True))
            for name in ("features", "output"):
                plain[name] = orjson.loads(plain[name]) if plain[name] is not None else None
            found.append(plain)
    return found


def one(batch: Batch, values: Any, probabilities: Any = None, **changed: Any) -> Taken:
    prediction = Prediction(np.asarray(values), None if probabilities is None else np.asarray(probabilities))
    return Taken(new_id(), 1_800_000_000.5, "r", batch, prediction)._replace(**changed)


def of_columns(*columns: Any) -> tuple[Sheet, Batch]:
    names = [f"c{position}" for position in range(len(columns))]
    return sheet(features=names, classes=None), Batch(names, columns)


def objects(*values: Any) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def features_of(*columns: Any) -> list[list[Any]]:
    """What is kept of a batch of ``columns``, row by row."""
    writes, batch = of_columns(*columns)
    return [list(row["features"].values()) for row in rows(writes.encode([one(batch, np.zeros(batch.rows))]))]


def test_many_single_rows_are_one_line_and_each_a_row() -> None:
    rng = np.random.default_rng(0)
    answered = [taken(rng) for _ in range(300)]
    content = sheet().encode(answered)
    assert content.count(b"\n") == 1
    read_again = rows(content)
    assert [row["prediction_id"] for row in read_again] == [one.prediction_id for one in answered]
    for row, given in zip(read_again, answered, strict=True):
        assert row["features"] == dict(zip(FEATURES, given.batch.block[0].tolist(), strict=True))
        assert row["at"] == datetime.fromtimestamp(given.at, UTC)
        assert (row["model"], row["version"], row["row"], row["request_id"]) == ("iris", "1", 0, given.request_id)


def test_the_output_is_worded_as_in_the_answer() -> None:
    given = taken(np.random.default_rng(1), rows=7)
    assert [row["output"] for row in rows(sheet().encode([given]))] == list(Labels(CLASSES).rows(given.prediction))


@pytest.mark.parametrize("labels", [[3, 5, 8], ["a", "b", "c"], [0.5, 1.5, 2.5], [False, True]])
def test_classes_of_any_kind(labels: list[Any]) -> None:
    classes = Classes.of(labels)
    prediction = Prediction(np.array(labels)[[1, 0]], None)
    given = one(Batch(("x",), block=np.zeros((2, 1))), [])._replace(prediction=prediction)
    written = sheet(features=["x"], classes=classes).encode([given])
    assert [row["output"] for row in rows(written)] == list(Labels(classes).rows(prediction))


def test_requests_of_different_sizes_share_a_line() -> None:
    rng = np.random.default_rng(2)
    answered = [taken(rng, rows=count) for count in (1, 3, 2)]
    found = rows(sheet().encode(answered))
    assert [row["row"] for row in found] == [0, 0, 1, 2, 0, 1]
    assert [row["features"]["petal_width"] for row in found] == np.vstack([g.batch.block for g in answered])[
        :, 3
    ].tolist()


def test_a_long_prediction_is_cut_into_lines() -> None:
    given = taken(np.random.default_rng(3), rows=2 * LINE_ROWS + 1)
    content = sheet().encode([taken(np.random.default_rng(4)), given])
    assert content.count(b"\n") == 4
    found = rows(content)[1:]
    assert [row["row"] for row in found] == list(range(given.batch.rows))
    assert [list(row["features"].values()) for row in found] == given.batch.block.tolist()


def test_columns_that_are_never_kept() -> None:
    given = taken(np.random.default_rng(5))
    (row,) = rows(sheet(never={"sepal_width"}).encode([given]))
    assert row["features"] == {
        name: v for name, v in zip(FEATURES, given.batch.block[0], strict=True) if name != FEATURES[1]
    }
    assert rows(sheet(never=FEATURES).encode([given]))[0]["features"] is None
    writes = sheet(features=["a", "b"], classes=None, never={"a"})
    mixed = one(Batch(("a", "b"), [objects("secret"), np.array([1])]), [0.0])
    assert b"secret" not in writes.encode([mixed])


def test_values_that_json_does_not_have() -> None:
    day = np.array(["2026-01-31T12:30:00", "NaT"], dtype="datetime64[ns]")
    numbers = np.array([np.nan, -np.inf], dtype=np.float32)
    assert features_of(day, numbers, objects(b"\xff\0", None), np.array([True, False])) == [
        ["2026-01-31T12:30:00", None, "/wA=", True],
        [None, None, None, False],
    ]
    odd = objects(
        "\ud800half", 1 << 70, {"b": {1: np.float64(2)}}, datetime(2026, 1, 31, tzinfo=UTC), 1 + 2j, np.array([1])
    )
    assert [row[0] for row in features_of(odd)] == [
        "?half",
        str(1 << 70),
        {"b": {"1": 2.0}},
        "2026-01-31T00:00:00+00:00",
        "(1+2j)",
        [1],
    ]


def test_a_nesting_without_end_becomes_text() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    ((value,),) = features_of(objects(deep))
    assert "[[[[" in str(value)


def test_arrays_that_are_views() -> None:
    table = np.arange(12.0).reshape(3, 4)
    assert features_of(table[:, 1], table[::-1, 2]) == [[1.0, 10.0], [5.0, 6.0], [9.0, 2.0]]
    given = one(
        Batch(FEATURES, block=np.asfortranarray(table)[::2]), [0, 1], np.eye(3)[:2].T[:2].T[:, ::-1].repeat(2, 1)[:, :3]
    )
    assert [list(row["features"].values()) for row in rows(sheet().encode([given]))] == table[::2].tolist()


def test_numbers_of_32_bits_are_short() -> None:
    assert features_of(np.array([5.1], dtype=np.float32)) == [[5.1]]


def test_tensors_are_kept_as_lists() -> None:
    picture = np.arange(8.0).reshape(2, 2, 2)
    assert features_of(picture) == [[picture[0].tolist()], [picture[1].tolist()]]


def test_what_is_too_large_is_not_kept() -> None:
    wide = one(Batch(("x",), [np.zeros((1, 1001))]), [1.0])
    assert rows(sheet(features=["x"], classes=None).encode([wide]))[0]["features"] is None
    names = [f"c{k}" for k in range(1001)]
    block = one(Batch(names, block=np.zeros((1, 1001))), np.zeros((1, 1001)))
    (row,) = rows(sheet(features=names, classes=None).encode([block]))
    assert (row["features"], row["output"]) == (None, None)
    many = Classes.of(list(range(1001)))
    (row,) = rows(sheet(classes=many).encode([one(Batch(FEATURES, block=np.zeros((1, 4))), [7], np.zeros((1, 1001)))]))
    assert row["output"] == {"class_id": 7, "class_name": "7"}
    assert len(row["features"]) == 4
    writes, batch = of_columns(objects("x" * MAX_JSON_BYTES))
    assert rows(writes.encode([one(batch, [1.0])]))[0]["features"] is None
    assert rows(writes.encode([one(Batch(("c0",), [np.zeros(1)]), objects("y" * MAX_JSON_BYTES))]))[0]["output"] is None


def test_several_outputs_and_outputs_of_several_values() -> None:
    batch = Batch(("x",), block=np.zeros((2, 1)))
    writes = sheet(features=["x"], classes=None)
    named = Prediction(np.zeros(2), named={"low": np.array([1.0, 2.0]), "high": np.array([3.0, 4.0])})
    found = rows(writes.encode([one(batch, [])._replace(prediction=named)]))
    assert [row["output"] for row in found] == [
        {"value": {"low": 1.0, "high": 3.0}},
        {"value": {"low": 2.0, "high": 4.0}},
    ]
    assert rows(writes.encode([one(batch, [[1, 2], [3, 4]])]))[1]["output"] == {"value": [3, 4]}
    # a classifier of several labels has classes, but its values are none of them
    assert rows(sheet(features=["x"]).encode([one(batch, [[0, 1], [1, 1]])]))[0]["output"] == {"value": [0, 1]}
    assert rows(sheet(features=["x"]).encode([one(batch, [0, 99])]))[1]["output"] == {"value": 99}


def test_a_batch_without_content_keeps_what_was_answered() -> None:
    empty = Batch((), ())
    empty.rows = 2
    found = rows(sheet(features=(), classes=None).encode([one(empty, [1.0, 2.0])]))
    assert [(row["features"], row["output"]) for row in found] == [(None, {"value": 1.0}), (None, {"value": 2.0})]


def test_batches_that_cannot_be_joined_are_written_one_by_one() -> None:
    writes = sheet(features=["x"], classes=None)
    ragged = [one(Batch(("x",), [np.zeros((1, length))]), [1.0]) for length in (2, 3)]
    assert [row["features"]["x"] for row in rows(writes.encode(ragged))] == [[0.0, 0.0], [0.0, 0.0, 0.0]]


def test_what_cannot_be_written_at_all_leaves_the_prediction() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    writes = sheet(features=["x"], classes=None)
    odd, good = (one(Batch(("x",), [objects(value)]), [1.0]) for value in (Odd(), 1))
    found = rows(writes.encode([odd, good]))
    assert [(row["features"], row["output"]) for row in found] == [(None, None), ({"x": 1}, {"value": 1.0})]


def test_nothing_is_an_empty_page() -> None:
    assert sheet().encode([]) == b""
    assert list(read(b"")) == []


def broken() -> Iterable[bytes]:
    whole = sheet().encode([taken(np.random.default_rng(6), rows=2)])
    plain = orjson.loads(whole)
    yield from (b"\0\0\0", whole[:-20], b"[]", b"1", b'"text"', b"{}")
    for change in (
        {"ids": ["no-uuid"]},
        {"ids": None},
        {"ids": [7]},
        {"at": ["soon"]},
        {"at": [1e300]},
        {"rows": [3]},
        {"rows": ["x"]},
        {"first": None},
        {"model": 5},
        {"digest": ["x"]},
        {"columns": [[1.0]]},
        {"columns": [[1.0]] * 4},
        {"values": [0]},
        {"probabilities": [[1.0], [1.0]]},
        {"classes": {"labels": [[]], "names": ["x"]}},
        {"classes": 5},
    ):
        yield orjson.dumps({**plain, **change})


@pytest.mark.parametrize("line", broken())
def test_a_line_that_is_none_is_set_aside(line: bytes) -> None:
    good = sheet().encode([taken(np.random.default_rng(7))])
    first, second = read(line + b"\n" + good)
    assert first.unreadable == line
    assert not first.predictions
    assert len(second.predictions) == 1


def test_a_character_that_postgresql_does_not_have_is_replaced_and_nothing_else() -> None:
    text = "\0a\\u0000b\\\0\0c"
    assert features_of(objects(text)) == [["\ufffda\\u0000b\\\ufffd\ufffdc"]]


def test_a_share_of_the_predictions_is_kept() -> None:
    ids = [new_id() for _ in range(20_000)]
    kept = {one for one in ids if sampled(one, 0.25)}
    assert 0.23 < len(kept) / len(ids) < 0.27
    assert kept == {one for one in ids if sampled(one, 0.25)}
    assert kept <= {one for one in ids if sampled(one, 0.5)}
    assert all(sampled(one, 1.0) for one in ids)
    assert not any(sampled(one, 0.0) for one in ids)


def test_writing_costs_a_worker_little() -> None:
    """2 µs for one row when 300 are written together; 20 here, for machines that do other things too."""
    rng = np.random.default_rng(8)
    answered, writes = [taken(rng) for _ in range(300)], sheet()
    took = []
    for _ in range(20):
        began = time.perf_counter()
        writes.encode(answered)
        took.append(time.perf_counter() - began)
    assert min(took) / 300 < 20e-6

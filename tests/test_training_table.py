"""A table of the user's own: what is read of it, and in one line what is wrong with it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training import table
from training.options import Unusable

LABELS = [0, 1] * 10
ROWS = len(LABELS)


def written(folder: Path, form: str = "csv", **columns: Any) -> Path:
    frame = pd.DataFrame({"amount": np.arange(ROWS) / 2, "fraud": LABELS, **columns})
    path = folder / f"mine.{form}"
    if form == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_and_texts_with_their_gaps(kind: str, tmp_path: Path) -> None:
    own = {
        "count": range(ROWS),
        "shop": ["a", "b", None, "c"] * 5,
        "age": [1.5, None] * 10,
        "chip": [True, False] * 10,
        "visits": pd.array([3, None] * 10, dtype="Int64"),
        "kind": pd.Categorical(["x", "y"] * 10),
    }
    rows = table.read(written(tmp_path, kind, **own), "fraud")
    assert rows.labels.tolist() == LABELS
    assert rows.labels.dtype == np.int64
    kinds = {name: str(rows.inputs[name].dtype) for name in rows.inputs}
    whole, fraction = {"count", "chip"}, {"amount", "age", "visits"}
    assert kinds == {n: "int64" if n in whole else "float64" if n in fraction else "str" for n in ["amount", *own]}
    assert rows.batch().column("shop").tolist()[:4] == ["a", "b", None, "c"]
    assert rows.inputs["chip"].tolist()[:2] == [1, 0]


def test_labels_may_be_true_and_false(tmp_path: Path) -> None:
    path = written(tmp_path, fraud=[value == 1 for value in LABELS])
    assert table.read(path, "fraud").labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"fraud": ["no", "yes"] * 10}, "must be 0 or 1, not 'no'"),
        ({"fraud": [0, 2] * 10}, "must be 0 or 1, not 2"),
        ({"fraud": [0, None] * 10}, "10 rows have no 'fraud'"),
        ({"fraud": [0] * ROWS}, "all rows have 'fraud' 0"),
        ({"fraud": [1] + [0] * (ROWS - 1)}, "'fraud' is 1 in 1 rows only; at least 10"),
        ({"empty": [None] * ROWS}, "column 'empty' has no value in any row"),
        ({"card": [f"card {k}" for k in range(ROWS)]}, "column 'card' has another text in almost every row"),
        ({"ratio": [np.inf, 1.0] * 10}, "column 'ratio' has infinite values"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_learned_from_is_named(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=why) as caught:
        table.read(written(tmp_path, **changed), "fraud")
    assert str(tmp_path / "mine.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_neither_numbers_nor_texts(tmp_path: Path) -> None:
    path = written(tmp_path, "parquet", when=[datetime(2026, 1, 1)] * ROWS)
    with pytest.raises(Unusable, match="column 'when' has neither numbers nor texts but datetime64"):
        table.read(path, "fraud")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("mine.txt", b"a,fraud\n1,0\n", "must end in .csv or .parquet"),
        ("mine.csv", b"", "cannot be read"),
        ("mine.csv", b"\xff\xfe\x00", "cannot be read"),
        ("mine.csv", b"a,b\n1,2,3\n4,5,6,7\n", "cannot be read"),
        ("mine.parquet", b"a,fraud\n1,0\n", "cannot be read"),
        ("mine.csv", b"amount,shop\n1,a\n", "has no column 'fraud', which says what was fraud; it has: amount, shop"),
        ("mine.csv", b"amount,fraud\n", "has no rows"),
        ("mine.csv", b"fraud\n1\n0\n", "has no other column than 'fraud'"),
    ],
)
def test_a_file_that_is_no_such_table(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unusable, match=why) as caught:
        table.read(tmp_path / name, "fraud")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nothing\.csv"):
        table.read(tmp_path / "nothing.csv", "fraud")

from __future__ import annotations

import numpy as np
import pandas as pd

from training import iris
from training.data import Data, Rows


def frame(rows: int = 30) -> Rows:
    inputs = pd.DataFrame({"x": np.arange(rows, dtype=float), "word": [f"w{row}" for row in range(rows)]})
    return Rows(inputs, np.arange(rows) % 3)


def test_holdout_is_the_same_at_every_call_and_apart_from_training() -> None:
    one, two = (Data.split(frame(), ("a", "b", "c"), holdout=1 / 3) for _ in range(2))
    np.testing.assert_array_equal(one.keep, two.keep)
    assert len(one.holdout) == 10
    assert not set(one.learn) & set(one.keep)
    assert len(one.learn) + len(one.keep) == 30


def test_split_keeps_the_shares_of_the_classes() -> None:
    assert np.bincount(iris.FAMILY.data().holdout.labels).tolist() == [16, 17, 17]


def test_digest_changes_with_a_value_a_label_and_a_name() -> None:
    def digest(rows: Rows) -> str:
        return Data(rows, np.arange(2), np.arange(2)).digest

    rows = frame()
    assert digest(rows) == digest(frame())
    changed = [
        Rows(rows.inputs.assign(x=rows.inputs.x + 1e-9), rows.labels),
        Rows(rows.inputs.replace({"word": {"w3": "other"}}), rows.labels),
        Rows(rows.inputs.rename(columns={"x": "y"}), rows.labels),
        Rows(rows.inputs, (rows.labels + 1) % 3),
    ]
    assert len({digest(rows), *map(digest, changed)}) == 5


def test_digest_fits_into_mlflow() -> None:
    assert len(iris.FAMILY.data().digest) <= 36


def test_sample_is_spread_over_all_rows() -> None:
    rows = frame(1000).sample(10)
    assert len(rows) == 10
    assert rows.inputs.x.iloc[0] == 0
    assert rows.inputs.x.iloc[-1] == 999
    assert len(frame(5).sample(10)) == 5


def test_array_inputs_are_rows_of_one_column() -> None:
    pictures = Rows(np.zeros((6, 2, 2), np.uint8), np.arange(6) % 2)
    assert pictures.take(np.array([0, 3])).inputs.shape == (2, 2, 2)
    assert pictures.batch().names == ("input",)
    assert pictures.batch().rows == 6

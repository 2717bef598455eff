"""Pages of copies: what comes out is what went in, and what is too much is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import copies
from serving.copies import Copy, decode, encode
from serving.tensors import Batch, Prediction


def objects(*values: Any) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


BATCHES = {
    "a block": Batch(("a", "b"), block=np.arange(6, dtype=np.float32).reshape(3, 2)),
    "columns": Batch(("n", "t"), (np.array([1, 2, 3]), objects("x", None, "ü"))),
    "bytes": Batch(("image",), (objects(b"\x00\n", b"", b"\xff" * 5),)),
    "times and tensors": Batch(
        ("at", "pixels"), (np.array(["2026-01-01"] * 3, "datetime64[ns]"), np.zeros((3, 2, 2), np.uint8))
    ),
    "texts of numpy": Batch(("t",), (np.array(["a", "bc", ""]),)),
}


@pytest.mark.parametrize("what", BATCHES)
def test_a_page_is_read_as_it_was_written(what: str) -> None:
    batch = BATCHES[what]
    answered = Prediction(np.array([1, 0, 1]), np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]]))
    copy = decode(encode(Copy(["p", "q"], [1.5, 2.5], ["r", "s"], [1, 2], batch, answered)))
    assert (copy.ids, copy.at, copy.requests, copy.rows) == (["p", "q"], [1.5, 2.5], ["r", "s"], [1, 2])
    assert tuple(copy.batch.names) == tuple(batch.names)
    for column, written in zip(copy.batch.columns, batch.columns, strict=True):
        assert column.dtype == written.dtype
        assert np.array_equal(column, written)
    assert np.array_equal(copy.answered.values, answered.values)
    assert np.array_equal(copy.answered.probabilities, answered.probabilities)


def test_without_probabilities() -> None:
    copy = decode(encode(Copy(["p"], [1.0], ["r"], [3], BATCHES["a block"], Prediction(np.arange(3.0)))))
    assert copy.answered.probabilities is None


@pytest.mark.parametrize("content", [b"", b"{}\n", b"nonsense", b'{"ids": []}\n'])
def test_what_is_no_page(content: bytes) -> None:
    with pytest.raises((ValueError, KeyError)):
        decode(content)


def test_pages_wait_in_order(tmp_path: Path) -> None:
    for name in ("2.page", "1.page", "3.part"):
        (tmp_path / name).touch()
    assert [path.name for path in copies.waiting(tmp_path)] == ["1.page", "2.page"]
    assert copies.waiting(tmp_path / "nowhere") == []

from __future__ import annotations

import shutil

import pytest
import sqlalchemy
from mlflow import MlflowException

from training.failure import LONGEST, brief


def database_error() -> sqlalchemy.exc.OperationalError:
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("disk is full\nand more"))


def wrapped() -> MlflowException:
    err = MlflowException("(raised as a result of Query-invoked autoflush)")
    err.__cause__ = database_error()
    return err


@pytest.mark.parametrize(
    ("err", "said"),
    [
        (OSError(28, "No space left on device", "/models"), "No space left on device: /models"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("something of the network"), "something of the network"),
        (
            shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
            "[Errno 28] No space left on device: 'b'",
        ),
        (database_error(), "disk is full"),
        (wrapped(), "disk is full"),
        (ValueError("first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (ValueError("no way to postgresql://me:secret@db/runs"), "no way to postgresql://…@db/runs"),
    ],
)
def test_brief_is_one_line_with_the_cause(err: Exception, said: str) -> None:
    assert brief(err) == said


def test_brief_is_short() -> None:
    assert len(brief(ValueError("x" * 10_000))) == LONGEST

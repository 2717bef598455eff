"""Failures that are the surroundings' and not ours, and how to say any failure in one line."""

from __future__ import annotations

import re
import shutil

from alembic.util.exc import CommandError
from mlflow import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from serving.errors import ServingError


class NotPromoted(Exception):
    """The version is registered and passed the gate, but putting it live failed on the way."""


# A store that is away, full or not ours to write, a disk likewise. Anything else is a bug and shows its traceback.
SURROUNDINGS = (ServingError, MlflowException, SQLAlchemyError, CommandError, OSError, NotPromoted)

LONGEST = 300


def brief(err: BaseException) -> str:
    """What went wrong in one line."""
    text = _system(err) if isinstance(err, OSError) else str(_driver(err) or err)
    lines = text.strip().splitlines() or [type(err).__name__]
    return without_password(lines[0])[:LONGEST]


def without_password(text: str) -> str:
    """``text`` without what an address in it has before its @."""
    return re.sub(r"://[^/@\s]*@", "://…@", text)


def _driver(err: BaseException) -> BaseException | None:
    """What the database's driver said, under SQLAlchemy's and MLflow's words about it."""
    inner = err.__cause__ if isinstance(err, MlflowException) else err
    return getattr(inner, "orig", None)


def _system(err: OSError) -> str:
    if isinstance(err, shutil.Error) and isinstance(err.args[0], list):
        return str(err.args[0][0][-1])  # one entry for each file that could not be copied: source, target, why
    if err.strerror is None:
        return str(err)
    return f"{err.strerror}: {err.filename}" if err.filename else err.strerror

"""Twins: a shadow's prediction is called like the champion's beside it, but for the version digit of the UUID.

So what turned out to be true of the one is true of the other, and no caller needs to know of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a worker that writes pages needs no SQLAlchemy
    import sqlalchemy as sa

DIGIT = 14  # where a UUID, as text, says its version
ORIGINAL, TWIN = "7", "8"  # by the time; and the one whose meaning is free


def twin(prediction_id: str) -> str:
    """What the shadow's prediction is called beside the champion's ``prediction_id``."""
    return f"{prediction_id[:DIGIT]}{TWIN}{prediction_id[DIGIT + 1 :]}"


def original(prediction_id: str) -> str:
    """The reverse of `twin`."""
    return f"{prediction_id[:DIGIT]}{ORIGINAL}{prediction_id[DIGIT + 1 :]}"


def original_of(column: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
    """`original` in SQL."""
    import sqlalchemy as sa

    from serving.ledger.schema import identifier

    text = sa.cast(column, sa.Text)
    parts = sa.func.substr(text, 1, DIGIT) + ORIGINAL + sa.func.substr(text, DIGIT + 2)
    return sa.cast(parts, identifier())


def is_twin(column: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Whether a prediction is a shadow's, in SQL."""
    import sqlalchemy as sa

    return sa.func.substr(sa.cast(column, sa.Text), DIGIT + 1, 1) == TWIN

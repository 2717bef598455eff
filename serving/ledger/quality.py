"""Live quality per model and version, and how long the ledger keeps what it has."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from serving.ledger.schema import labels, predictions

SLICE = 5000


def quality(connection: sa.Connection, since: datetime) -> list[dict[str, Any]]:
    """One entry for each version that predicted since ``since``; a measure that does not apply is None.

    ``labelled_rows`` of ``predicted_rows`` are compared with their labels, ``coverage`` is their share and
    ``label_delay_s`` the mean time from prediction to label. ``accuracy``, ``brier``, ``log_loss`` and
    ``mean_absolute_error`` are means over those rows, as `scores.Scores` defines them.
    """
    counted = sa.select(predictions.c.model, predictions.c.version, sa.func.count().label("predicted_rows"))
    counted = counted.where(predictions.c.at >= since).group_by(predictions.c.model, predictions.c.version)
    scored = sa.select(
        labels.c.model,
        labels.c.version,
        sa.func.count().label("labelled_rows"),
        sa.func.avg(labels.c.delay_s).label("label_delay_s"),
        sa.func.avg(labels.c.correct).label("accuracy"),
        sa.func.avg(labels.c.brier).label("brier"),
        sa.func.avg(labels.c.log_loss).label("log_loss"),
        sa.func.avg(labels.c.absolute_error).label("mean_absolute_error"),
    )
    scored = scored.where(labels.c.model.is_not(None), labels.c.predicted_at >= since)
    scored = scored.group_by(labels.c.model, labels.c.version)
    of_labels = {(row.model, row.version): row._asdict() for row in connection.execute(scored)}
    nothing = {**dict.fromkeys(scored.selected_columns.keys()), "labelled_rows": 0}
    found = []
    for row in connection.execute(counted.order_by(predictions.c.model, predictions.c.version)):
        of_version = {**nothing, **of_labels.get((row.model, row.version), {}), **row._asdict()}
        found.append({**of_version, "coverage": of_version["labelled_rows"] / row.predicted_rows})
    return found


class Retention:
    """Removes what is older than ``keep_days``, and the oldest rows beyond ``max_rows`` (0: none is too many)."""

    def __init__(self, keep_days: float, max_rows: int) -> None:
        self._keep = timedelta(days=keep_days)
        self._max_rows = max_rows
        self._bound: str | None = None  # the id below which all goes; None when that is to be found out

    def slice(self, connection: sa.Connection, now: datetime) -> bool:
        """Remove about `SLICE` rows with their labels; whether there are more."""
        if self._bound is None:
            self._bound = max(_id_of(now - self._keep), self._first_kept(connection))
            orphans = labels.c.model.is_(None) & (labels.c.received_at < now - self._keep)
            connection.execute(sa.delete(labels).where(orphans))
        more = self._remove(connection, self._bound)
        if not more:
            self._bound = None
        return more

    def _first_kept(self, connection: sa.Connection) -> str:
        """The id below which there are rows too many. Counted from the old end, which is nearer."""
        if not self._max_rows:
            return ""
        too_many = (connection.scalar(sa.select(sa.func.count()).select_from(predictions)) or 0) - self._max_rows
        if too_many <= 0:
            return ""
        ids = sa.select(predictions.c.prediction_id).order_by(predictions.c.prediction_id)
        return connection.scalar(ids.offset(too_many).limit(1)) or ""

    def _remove(self, connection: sa.Connection, bound: str) -> bool:
        ids = sa.select(predictions.c.prediction_id).order_by(predictions.c.prediction_id)
        last = connection.scalar(ids.where(predictions.c.prediction_id < bound).offset(SLICE).limit(1))
        upto = last or bound
        connection.execute(sa.delete(labels).where(labels.c.prediction_id < upto, labels.c.model.is_not(None)))
        connection.execute(sa.delete(predictions).where(predictions.c.prediction_id < upto))
        return last is not None


def _id_of(moment: datetime) -> str:
    """The least id (UUIDv7) of a prediction made at ``moment``."""
    return str(UUID(int=int(moment.timestamp() * 1000) << 80))

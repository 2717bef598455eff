"""Contests: how right a champion and its challenger were in the same time, by what turned out to be true."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from serving.ledger.schema import labels
from serving.ledger.twins import is_twin, original_of

# What is averaged of a row's scores, and how the average is called.
MEASURES = {"correct": "accuracy", "brier": "brier", "log_loss": "log_loss", "absolute_error": "mean_absolute_error"}


@dataclass(frozen=True)
class Contest:
    """Two versions of a model, from ``since`` (ISO 8601) on."""

    model: str
    champion: str
    challenger: str
    since: str


def standing(connection: sa.Connection, contest: Contest) -> dict[str, Any]:
    """The contest with ``sides``, each version by itself, and ``pairs``, rows that both answered.

    A side has ``labelled_rows``, and for each of the measures ``mean`` and ``variance``, or None where it has none; the
    pairs have those of what the challenger's is more than the champion's.
    """
    since = datetime.fromisoformat(contest.since)
    sides = {
        role: _side(connection, contest.model, version, since)
        for role, version in (("champion", contest.champion), ("challenger", contest.challenger))
    }
    return {**asdict(contest), "sides": sides, "pairs": _pairs(connection, contest, since)}


def _side(connection: sa.Connection, model: str, version: str, since: datetime) -> dict[str, Any]:
    columns = {name: labels.c[name] for name in MEASURES}
    query = _averages(columns).where(
        labels.c.model == model, labels.c.version == version, labels.c.predicted_at >= since
    )
    return _spread(connection.execute(query).one()._asdict())


def _pairs(connection: sa.Connection, contest: Contest, since: datetime) -> dict[str, Any]:
    ours, theirs = labels.alias("champion"), labels.alias("challenger")
    beside = (ours.c.prediction_id == original_of(theirs.c.prediction_id)) & (ours.c.row == theirs.c.row)
    query = (
        _averages({name: theirs.c[name] - ours.c[name] for name in MEASURES})
        .select_from(theirs.join(ours, beside))
        .where(theirs.c.model == contest.model, theirs.c.version == contest.challenger)
        .where(theirs.c.predicted_at >= since, is_twin(theirs.c.prediction_id), ours.c.version == contest.champion)
    )
    return _spread(connection.execute(query).one()._asdict())


def _averages(columns: dict[str, Any]) -> sa.Select[Any]:
    means = [sa.func.avg(column).label(name) for name, column in columns.items()]
    squares = [sa.func.avg(column * column).label(f"{name}_square") for name, column in columns.items()]
    return sa.select(sa.func.count().label("labelled_rows"), *means, *squares)


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"labelled_rows": row["labelled_rows"]}
    for name, called in MEASURES.items():
        mean, square = row[name], row[f"{name}_square"]
        spread = None if mean is None else {"mean": float(mean), "variance": max(0.0, float(square) - float(mean) ** 2)}
        found[called] = spread
    return found

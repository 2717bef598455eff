"""Labels in the database: put in by the order in which they were observed, and compared with their predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import orjson
import sqlalchemy as sa

from serving.ledger.database import Database
from serving.ledger.feedback import Label
from serving.ledger.schema import labels, predictions, versions
from serving.ledger.scores import scores
from serving.ledger.twins import original, twin
from serving.tensors import Classes

SLICE = 2000
OUTCOMES = ("accepted", "corrected", "repeated", "stale")

# A label replaces the one that is there if it was observed later; at the same time, if it was received later.
IF_LATER = """(prediction_id, "row") DO UPDATE SET {} WHERE ledger_labels.observed_at < excluded.observed_at
    OR ledger_labels.observed_at = excluded.observed_at AND ledger_labels.received_at <= excluded.received_at""".format(
    ", ".join(f"{name} = excluded.{name}" for name in labels.columns.keys()[2:])
)

Key = tuple[str, int]


@dataclass(frozen=True)
class Ask:
    """Labels that came in one request, at ``received_at`` (seconds since 1970)."""

    labels: Sequence[Label]
    received_at: float

    @classmethod
    def parsed(cls, content: bytes) -> Ask:
        """Raises ValueError, KeyError or TypeError when it is none."""
        plain = orjson.loads(content)
        return cls([Label(*label) for label in plain["labels"]], float(plain["received_at"]))


@dataclass
class Settled:
    """What came of some asks: an answer for each, and what to count once it is committed."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by model and outcome
    delays: list[tuple[str, float]] = field(default_factory=list)  # model, seconds


def known(connection: sa.Connection, database: Database, ids: Collection[str]) -> set[str]:
    """Those of ``ids`` that a prediction has."""
    column = predictions.c.prediction_id
    return set(connection.scalars(sa.select(column).where(database.among(column, ids)).distinct()))


def settle(connection: sa.Connection, database: Database, asks: Sequence[Ask]) -> Settled:
    """Put the labels of ``asks`` in. The label observed last holds; of two observed at once, the one received last.

    So the order in which they come does not matter, and settling an ask again changes nothing.
    """
    keys = {(label.prediction_id, label.row) for ask in asks for label in ask.labels}
    held = _held(connection, database, keys)
    before = dict(held)
    predicted = _predicted(connection, database, keys)
    settled = Settled()
    for ask in asks:
        answer: dict[str, Any] = {**dict.fromkeys(OUTCOMES, 0), "unknown": {}}
        for label in ask.labels:
            key = label.prediction_id, label.row
            new = _Held(orjson.dumps(label.label).decode(), label.observed_at or ask.received_at, ask.received_at)
            outcome = _outcome(held.get(key), new)
            if outcome == "accepted" or (held[key].order < new.order):
                held[key] = new
            if key in predicted:
                answer[outcome] += 1
                settled.counts[predicted[key].model, outcome] += 1
                if outcome in ("accepted", "corrected"):
                    settled.delays.append((predicted[key].model, new.observed_at - predicted[key].at.timestamp()))
            else:
                answer["unknown"][label.prediction_id] = None
                settled.counts["", "unknown"] += 1
        settled.answers.append({**answer, "unknown": list(answer["unknown"])})
    changed = {key: one for key, one in held.items() if before.get(key) != one}
    _store(connection, database, changed, predicted)
    share(connection, database, [(twin(key[0]), key[1]) for key in changed])
    return settled


def share(connection: sa.Connection, database: Database, twins: Collection[Key]) -> None:
    """Let the labels of champions' predictions count for the shadows' beside them, as far as both are here."""
    predicted = _predicted(connection, database, set(twins))
    if not predicted:
        return
    held = _held(connection, database, {(original(key[0]), key[1]) for key in predicted})
    theirs = {(twin(key[0]), key[1]): label for key, label in held.items()}
    _store(connection, database, theirs, predicted)


def join(connection: sa.Connection, database: Database) -> Settled:
    """Compare labels that came before their predictions with those that are here by now, `SLICE` at most.

    They were counted as unknown when they came, and are counted as accepted now.
    """
    columns = [predictions.c[name] for name in ("prediction_id", "row", "model", "version", "digest", "at", "output")]
    query = (
        sa.select(*columns, labels.c.label, labels.c.observed_at, labels.c.received_at)
        .join(labels, (predictions.c.prediction_id == labels.c.prediction_id) & (predictions.c.row == labels.c.row))
        .where(labels.c.model.is_(None))
        .limit(SLICE)
    )
    rows = connection.execute(query).all()
    held = {
        (row.prediction_id, row.row): _Held(row.label, row.observed_at.timestamp(), row.received_at.timestamp())
        for row in rows
    }
    _store(connection, database, held, {(row.prediction_id, row.row): row for row in rows})
    settled = Settled()
    for row in rows:
        settled.counts[row.model, "accepted"] += 1
        settled.delays.append((row.model, (row.observed_at - row.at).total_seconds()))
    return settled


# --- one label -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """A label as the database has it: JSON, and times in seconds since 1970."""

    label: str
    observed_at: float
    received_at: float

    @property
    def order(self) -> tuple[float, float]:
        """To the microsecond, which is what the database keeps."""
        return round(self.observed_at, 6), round(self.received_at, 6)


def _outcome(held: _Held | None, new: _Held) -> str:
    if held is None:
        return "accepted"
    if held.label == new.label:
        return "repeated"
    return "corrected" if held.order < new.order else "stale"


def _held(connection: sa.Connection, database: Database, keys: Collection[Key]) -> dict[Key, _Held]:
    columns = [labels.c[name] for name in ("prediction_id", "row", "label", "observed_at", "received_at")]
    query = sa.select(*columns).where(database.among(labels.c.prediction_id, {key[0] for key in keys}))
    found = {}
    for prediction_id, row, label, observed_at, received_at in connection.execute(query):
        if (prediction_id, row) in keys:
            found[prediction_id, row] = _Held(label, observed_at.timestamp(), received_at.timestamp())
    return found


def _predicted(connection: sa.Connection, database: Database, keys: Collection[Key]) -> dict[Key, Any]:
    columns = [predictions.c[name] for name in ("prediction_id", "row", "model", "version", "digest", "at", "output")]
    query = sa.select(*columns).where(database.among(predictions.c.prediction_id, {key[0] for key in keys}))
    return {key: row for row in connection.execute(query) if (key := tuple(row[:2])) in keys}


def _store(connection: sa.Connection, database: Database, held: dict[Key, _Held], predicted: dict[Key, Any]) -> None:
    """Put labels in, with their scores where the prediction is here, unless a later one is there by now."""
    if not held:
        return
    classes = _classes(connection)
    rows = [_row(key, held[key], predicted.get(key), classes) for key in sorted(held)]  # in one order: no deadlocks
    for chunk in _chunks(rows, SLICE):
        database.put(connection, labels, chunk, IF_LATER)


def _row(key: Key, held: _Held, prediction: Any, classes: dict[Any, Classes | None]) -> tuple[Any, ...]:
    """A row of the table. Of a label without its prediction all but the first five columns are empty."""
    observed, received = (datetime.fromtimestamp(at, UTC) for at in (held.observed_at, held.received_at))
    row = (*key, held.label, observed, received)
    if prediction is None:
        return row + (None,) * (len(labels.columns) - len(row))
    output = orjson.loads(prediction.output) if prediction.output is not None else None
    known_as = classes.get((prediction.model, prediction.version, prediction.digest))
    of_version = prediction.model, prediction.version, prediction.at
    delay_s = held.observed_at - prediction.at.timestamp()
    return (*row, *of_version, delay_s, *scores(output, orjson.loads(held.label), known_as))


def _classes(connection: sa.Connection) -> dict[tuple[str, str, str], Classes | None]:
    """The classes of every version that ever came. They are few."""
    found = {}
    for row in connection.execute(sa.select(versions)):
        plain = orjson.loads(row.classes) if row.classes is not None else None
        classes = Classes(tuple(plain["labels"]), tuple(plain["names"])) if plain else None
        found[row.model, row.version, row.digest] = classes
    return found


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk

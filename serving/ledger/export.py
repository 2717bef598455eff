"""Export: joined rows as Parquet, to train from. Streamed, so a million rows need no more memory than some thousand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from serving.ledger.database import Database, reading
from serving.ledger.schema import labels, predictions

PIECE_ROWS = 20_000
FIXED = ("prediction_id", "row", "at", "model", "version", "observed_at")  # always there, and of one type each
GIVEN = ("predicted", "label")  # always there, of the type that their values have
CHANCE = "probability_"


@dataclass(frozen=True)
class Selection:
    """Which rows: of a model, a version, a time; ``unlabelled`` too if wanted."""

    model: str | None = None
    version: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    unlabelled: bool = False


def export(database: Database, selection: Selection, out: Path) -> int:
    """Write the rows that are ``selection`` to ``out``, and say how many. Without any, nothing is written.

    Columns: `FIXED`, ``predicted`` and ``label`` (a classifier's by the name of the class), a column for each feature
    and for each class's probability. Types are those of the values; a column of mixed types becomes text. A feature
    that is called like another column gets ``feature_`` in front. Raises ImportError without pyarrow.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    connection = database.connect()
    try:
        kinds: dict[str, set[str]] = {name: set() for name in GIVEN}
        rows = 0
        for piece in _pieces(connection, selection):
            rows += len(piece)
            _learn(piece, kinds)
        if not rows:
            return 0
        schema = pa.schema([*_fixed(pa), *((name, _type(pa, found)) for name, found in kinds.items())])
        written, rows = out.with_name(f".{out.name}.part"), 0
        try:
            with pq.ParquetWriter(written, schema) as writer:
                for piece in _pieces(connection, selection):
                    rows += len(piece)
                    writer.write_table(_table(pa, schema, piece))
            written.replace(out)
        finally:
            written.unlink(missing_ok=True)
        return rows
    finally:
        connection.close()


def _pieces(connection: sa.Connection, selection: Selection) -> Iterator[list[dict[str, Any]]]:
    """The rows in order, each piece by a transaction of its own: a long one would hold up others."""
    p, known = predictions.c, labels.c
    matching = (p.prediction_id == known.prediction_id) & (p.row == known.row) & known.model.is_not(None)
    query = sa.select(
        *(p[name] for name in ("prediction_id", "row", "at", "model", "version", "features", "output")),
        *(known[name] for name in ("label", "class_name", "observed_at")),
    )
    query = query.select_from(predictions.join(labels, matching, isouter=selection.unlabelled))
    for condition in _conditions(selection):
        query = query.where(condition)
    query = query.order_by(p.prediction_id, p.row).limit(PIECE_ROWS)
    after = None
    while True:
        page = query if after is None else query.where(_beyond(*after))
        with reading(connection):
            found = connection.execute(page).all()
        if not found:
            return
        yield [_flat(row) for row in found]
        after = found[-1].prediction_id, found[-1].row


def _conditions(selection: Selection) -> Iterator[sa.ColumnElement[bool]]:
    p = predictions.c
    if selection.model is not None:
        yield p.model == selection.model
    if selection.version is not None:
        yield p.version == selection.version
    if selection.since is not None:
        yield p.at >= selection.since
    if selection.until is not None:
        yield p.at < selection.until


def _beyond(prediction_id: str, row: int) -> sa.ColumnElement[bool]:
    p = predictions.c
    same = (p.prediction_id == prediction_id) & (p.row > row)
    return (p.prediction_id >= prediction_id) & (same | (p.prediction_id > prediction_id))  # the first finds the index


def _flat(row: Any) -> dict[str, Any]:
    """One row of the table as columns."""
    output = orjson.loads(row.output) if row.output is not None else {}
    label = orjson.loads(row.label) if row.label is not None else None
    features = orjson.loads(row.features) if row.features is not None else {}
    chances = output.get("probabilities") or {}
    return {
        **{name: getattr(row, name) for name in FIXED},
        "predicted": output.get("class_name", output.get("value")),
        "label": row.class_name if row.class_name is not None else label,
        **{_column(name): value for name, value in features.items()},
        **{f"{CHANCE}{name}": value for name, value in chances.items()},
    }


def _column(feature: str) -> str:
    taken = feature in FIXED or feature in GIVEN or feature.startswith((CHANCE, "feature_"))
    return f"feature_{feature}" if taken else feature


# --- types -----------------------------------------------------------------------------------------------------------


def _learn(piece: list[dict[str, Any]], kinds: dict[str, set[str]]) -> None:
    for row in piece:
        for name, value in row.items():
            if name not in FIXED and (kind := _kind(value)):
                kinds.setdefault(name, set()).add(kind)
            elif name not in FIXED:
                kinds.setdefault(name, set())


def _kind(value: Any) -> str:
    """What a value is: "" when it is missing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) < 1 << 63 else "float"
    return {float: "float", str: "text"}.get(type(value), "json")


def _type(pa: Any, kinds: set[str]) -> Any:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.string()


def _fixed(pa: Any) -> list[tuple[str, Any]]:
    text, moment = pa.string(), pa.timestamp("us", tz="UTC")
    return list(zip(FIXED, (text, pa.int32(), moment, text, text, moment), strict=True))


def _table(pa: Any, schema: Any, piece: list[dict[str, Any]]) -> Any:
    return pa.table([_array(pa, field, piece) for field in schema], schema=schema)


def _array(pa: Any, field: Any, piece: list[dict[str, Any]]) -> Any:
    values = [row.get(field.name) for row in piece]
    if field.name in FIXED:
        return pa.array(values, field.type)
    if pa.types.is_string(field.type):
        return pa.array([value if value is None else _text(value) for value in values], field.type)
    # A row that came since the types were learned may not fit: its value is left out.
    fitting = {"bool": ("bool",), "int64": ("int",), "double": ("int", "float")}[str(field.type)]
    return pa.array([value if _kind(value) in fitting else None for value in values], field.type)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()

"""Pages: predictions on their way to the database, as a worker writes them and the writer reads them.

A page is lines of JSON. A line holds many predictions of one version, column by column, because a worker writes them
while it answers others: NumPy joins the columns and orjson writes them, with hardly any Python for a single prediction.

{"model", "version", "digest", "route", "classes": {"labels", "names"} | null,
 "ids", "at", "requests": one value for each prediction, "rows": rows of each, or null where each has one,
 "first": the number of the first row here, which is not 0 where a long prediction goes on from the line before,
 "features": [names], "columns": [one list for each feature, a value for each row] | null,
 "values": [a value for each row] | {name: [...]} | null, "probabilities": [a list for each row] | null}
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import orjson

from serving.tensors import Batch, Classes, Prediction

MAX_VALUES = 1000  # of one row's features, and of its output; what has more is not kept
MAX_VECTOR = 100  # of one row's output that is a vector: with what turned out to be true no longer one is ever compared
MAX_JSON_BYTES = 64 * 1024  # the same, where values are texts or lists
MAX_DEPTH = 100
LINE_ROWS = 5000  # so that neither side ever holds much more at once
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

log = logging.getLogger("serving.ledger")


class Taken(NamedTuple):
    """A prediction as a worker takes it down behind the answer. ``at`` is in seconds since 1970."""

    prediction_id: str
    at: float
    request_id: str
    batch: Batch
    prediction: Prediction


def sampled(prediction_id: str, ratio: float) -> bool:
    """Whether this prediction is one of the ``ratio`` (0 to 1) to be kept; always the same for the same id."""
    return int(prediction_id[-8:], 16) < ratio * 0x1_0000_0000


# --- a worker writes -------------------------------------------------------------------------------------------------


class Sheet:
    """Writes predictions of one version that came by one route."""

    def __init__(
        self,
        *,
        model: str,
        version: str,
        digest: str | None,
        route: str,
        features: Sequence[str],
        classes: Classes | None,
        never: Collection[str] = (),
    ) -> None:
        """``features`` are the names of the batch's columns; those in ``never`` are not kept."""
        self._kept = [position for position, name in enumerate(features) if name not in never]
        self._whole = len(self._kept) == len(features)
        named = {"labels": classes.labels, "names": classes.names} if classes else None
        self._head = {"model": model, "version": version, "digest": digest, "route": route, "classes": named}
        self._features = [features[position] for position in self._kept]

    def encode(self, taken: Sequence[Taken]) -> bytes:
        """Lines of a page. Never fails: what cannot be written as JSON is written as text, or left out."""
        if sum(one.batch.rows for one in taken) <= LINE_ROWS:
            return self._lines(taken)
        return b"".join(self._long(one) if one.batch.rows > LINE_ROWS else self._lines([one]) for one in taken)

    def _lines(self, taken: Sequence[Taken]) -> bytes:
        if not taken:
            return b""
        try:
            return self._line(taken)
        except Exception:  # one cannot be joined with the others, or not be written
            return b"".join(self._alone(one) for one in taken)

    def _long(self, one: Taken) -> bytes:
        """A prediction of many rows, cut into lines."""
        starts = range(0, one.batch.rows, LINE_ROWS)
        return b"".join(self._alone(_cut(one, slice(start, start + LINE_ROWS)), start) for start in starts)

    def _alone(self, one: Taken, first: int = 0) -> bytes:
        try:
            return self._line([one], first)
        except Exception:
            log.warning("prediction %s is kept without its features and output", one.prediction_id, exc_info=True)
            return _dumps(_tame(self._content([one], first, None, None, None)))

    def _line(self, taken: Sequence[Taken], first: int = 0) -> bytes:
        values, chances = _output([one.prediction for one in taken])
        content = self._content(taken, first, self._columns([one.batch for one in taken]), values, chances)
        try:
            return _dumps(content)
        except (TypeError, ValueError):  # half a surrogate pair, a number of more than 64 bits, a deep nesting
            return _dumps(_tame(content))

    def _content(self, taken: Sequence[Taken], first: int, columns: Any, values: Any, chances: Any) -> dict[str, Any]:
        ids, at, requests, batches, _ = zip(*taken, strict=True)
        rows = [batch.rows for batch in batches]
        return {
            **self._head,
            "ids": ids,
            "at": at,
            "requests": requests,
            "rows": None if rows.count(1) == len(rows) else rows,
            "first": first,
            "features": self._features,
            "columns": columns,
            "values": values,
            "probabilities": chances,
        }

    def _columns(self, batches: list[Batch]) -> list[Any] | None:
        """A list or an array for each kept feature, over the rows of all batches; None when there are too many."""
        blocks = [batch.block for batch in batches if batch.block is not None]
        if len(blocks) == len(batches):
            if len(self._kept) > MAX_VALUES:
                return None
            block = _joined(blocks)
            chosen = block if self._whole else block[:, self._kept]
            return [_plain(column) for column in np.ascontiguousarray(chosen.T)]
        first = batches[0].columns
        if sum(int(np.prod(first[position].shape[1:])) for position in self._kept) > MAX_VALUES:
            return None
        return [_plain(_joined([batch.columns[position] for batch in batches])) for position in self._kept]


def _cut(one: Taken, rows: slice) -> Taken:
    """Some rows of a prediction."""
    batch, prediction = one.batch, one.prediction
    block = batch.block[rows] if batch.block is not None else None
    columns = [column[rows] for column in batch.columns] if block is None else None
    chances = prediction.probabilities[rows] if prediction.probabilities is not None else None
    named = {name: values[rows] for name, values in prediction.named.items()} if prediction.named else None
    cut = Prediction(prediction.values[rows], chances, named)
    return one._replace(batch=Batch(batch.names, columns, block=block), prediction=cut)


def _output(predictions: list[Prediction]) -> tuple[Any, Any]:
    """Values and probabilities over the rows of all predictions; None for what has too many."""
    first = predictions[0]
    if first.named is not None:
        size = sum(int(np.prod(values.shape[1:])) for values in first.named.values())
        if size > MAX_VALUES:
            return None, None
        named = [one.named for one in predictions if one.named is not None]
        return {name: _plain(_joined([one[name] for one in named])) for name in first.named}, None
    if int(np.prod(first.values.shape[1:])) > MAX_VECTOR:
        return None, None
    values = _plain(_joined([one.values for one in predictions]))
    chances = [one.probabilities for one in predictions if one.probabilities is not None]
    if len(chances) < len(predictions) or chances[0].shape[-1] > MAX_VALUES:
        return values, None
    return values, _plain(_joined(chances))


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _plain(values: np.ndarray) -> Any:
    """What orjson can write: times as ISO 8601, other arrays of numbers as they are, everything else as a list."""
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]").tolist()
    return np.ascontiguousarray(values) if values.dtype.kind in "biuf" else values.tolist()


def _dumps(content: Any) -> bytes:
    return orjson.dumps(content, default=_other, option=OPTIONS) + b"\n"


def _other(value: Any) -> Any:
    """What JSON has no form for."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value)


def _tame(value: Any, depth: int = 0) -> Any:
    """``value`` again, with texts and numbers that orjson refuses as texts that it takes."""
    if isinstance(value, np.ndarray):
        return _tame(value.tolist(), depth)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    if depth > MAX_DEPTH:
        return _tame(repr(value))
    if isinstance(value, dict):
        return {_tame(str(key)): _tame(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tame(item, depth + 1) for item in value]
    return value


# --- the writer reads ------------------------------------------------------------------------------------------------


Row = tuple[Any, ...]


@dataclass(frozen=True)
class Line:
    """What a line holds, as rows of `schema.predictions` and `schema.versions`; or the line, where it is none."""

    predictions: Sequence[Row] = ()
    version: Row | None = None
    unreadable: bytes | None = None


def read(content: bytes) -> Iterator[Line]:
    """The lines of a page, one after the other."""
    for line in content.splitlines():
        try:
            yield _read(line)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, OSError, StopIteration):
            yield Line(unreadable=line)


def _read(line: bytes) -> Line:
    """Raises what a malformed line raises."""
    if b"\\u0000" in line:  # PostgreSQL has no such character
        line = NUL.sub(rb"\1\\ufffd", line)
    plain = orjson.loads(line)
    classes = orjson.dumps(plain["classes"]).decode() if plain["classes"] else None
    return Line(_rows(plain), (plain["model"], plain["version"], plain["digest"] or "", classes))


NUL = re.compile(rb"((?<!\\)(?:\\\\)*)\\u0000")


def _rows(line: dict[str, Any]) -> list[Row]:
    """One row of the table for each predicted row of a line."""
    version = line["model"], line["version"], line["digest"] or "", line["route"]
    if not all(isinstance(text, str) for text in version):
        raise TypeError("model, version, digest and route are texts")
    ids, first = line["ids"], line["first"]
    counts = line["rows"] or [1] * len(ids)
    features, outputs = _features(line), _outputs(line)
    rows = []
    for prediction_id, at, request_id, count in zip(ids, line["at"], line["requests"], counts, strict=True):
        if not UUID.fullmatch(prediction_id):
            raise ValueError(f"{prediction_id!r} is no UUID")
        moment = datetime.fromtimestamp(at, UTC)
        for row in range(first, first + count):
            rows.append((prediction_id, row, moment, *version, request_id, next(features), next(outputs)))
    return rows


def _features(line: dict[str, Any]) -> Iterator[str | None]:
    """Each row's features as JSON."""
    if not line["columns"]:
        return repeat(None)
    names = line["features"]
    return (_bounded(dict(zip(names, row, strict=True))) for row in zip(*line["columns"], strict=True))


def _outputs(line: dict[str, Any]) -> Iterator[str | None]:
    """Each row's output as JSON, worded as in the answer."""
    values, chances, classes = line["values"], line["probabilities"], line["classes"]
    if values is None:
        return repeat(None)
    if isinstance(values, dict):
        names = list(values)
        return (_bounded({"value": dict(zip(names, row, strict=True))}) for row in zip(*values.values(), strict=True))
    if classes is None or any(isinstance(value, list) for value in values[:1]):
        return (_bounded({"value": value}) for value in values)
    describe = _described(Classes(tuple(classes["labels"]), tuple(classes["names"])))
    return (_bounded(describe(value, row)) for value, row in zip(values, chances or repeat(None), strict=False))


def _described(classes: Classes) -> Callable[[Any, list[float] | None], dict[str, Any]]:
    position_of = {label: position for position, label in enumerate(classes.labels)}
    described = [{"class_id": classes.class_id(k), "class_name": name} for k, name in enumerate(classes.names)]

    def describe(label: Any, chances: list[float] | None) -> dict[str, Any]:
        position = position_of.get(label)
        if position is None:
            return {"value": label}
        if chances is None:
            return described[position]
        probabilities = dict(zip(classes.names, chances, strict=True))
        return {**described[position], "confidence": chances[position], "probabilities": probabilities}

    return describe


def _bounded(content: dict[str, Any]) -> str | None:
    text = orjson.dumps(content)
    return text.decode() if len(text) <= MAX_JSON_BYTES else None

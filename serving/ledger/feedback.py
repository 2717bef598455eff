"""Feedback: what turned out to be true, on its way from a caller to the writer and back.

A worker checks the labels, leaves them as a file (an *ask*) and waits a moment for what the writer says. An ask that is
not answered in time is handled all the same, when the database is back.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from serving.errors import InvalidInput, ServingError
from serving.ledger.page import UUID
from serving.ledger.spool import Spool
from serving.state import LedgerState

FEEDBACK_WAIT_S = 2.0
A_LABEL_S = 0.001  # more for each label: many take a while even in a healthy database
LOOK_S = 0.005
MAX_ITEMS = 10_000
MAX_LABELS = 20_000  # more would take a transaction too long
MAX_LABEL_CHARACTERS = 1000
MAX_NUMBER = 1e300
MAX_ROW = 1_000_000
MAX_AHEAD_S = 86_400.0
ASKS_LIMIT_BYTES = 64 * 1024 * 1024
FIELDS = ("prediction_id", "label", "observed_at", "row")


class LedgerFull(ServingError):
    """No more labels can be kept until the database is back, or the disk has room."""

    status = 503
    code = "ledger_full"
    retry_after_s = 30


class LabelsRefused(ServingError):
    """The database does not take these labels; they are set aside."""

    status = 500
    code = "labels_refused"


class Label(NamedTuple):
    """What turned out to be true of one predicted row. ``observed_at`` is in seconds since 1970; None is now."""

    prediction_id: str
    row: int
    label: bool | int | float | str
    observed_at: float | None


class Feedback:
    """The workers' way to the writer."""

    def __init__(
        self, state: LedgerState, *, wait_s: float = FEEDBACK_WAIT_S, limit_bytes: int = ASKS_LIMIT_BYTES
    ) -> None:
        self._asks = Spool(state.asks, limit_bytes)
        self._answers = state.answers
        self._wait_s = wait_s

    def send(self, labels: list[Label]) -> dict[str, Any]:
        """Hand in what `validated` gave, and say what came of it.

        ``{"accepted", "corrected", "repeated", "stale", "unknown"}``: how many labels are new, replace an earlier one,
        say the same again, or are older than what is known; and the ids that no prediction has (yet). Without an answer
        in time ``{"pending": how many labels}``: they are on disk, and will be handled. Raises `LedgerFull`.
        """
        content = orjson.dumps({"received_at": time.time(), "labels": list(map(tuple, labels))})
        try:
            path = self._asks.write(content, durable=True)
        except OSError as err:
            raise LedgerFull(f"the labels cannot be kept: {err.strerror}") from err
        if path is None:
            raise LedgerFull("too many labels wait for the database")
        answer = self._await(path.name, self._wait_s + A_LABEL_S * len(labels))
        if answer is None:
            return {"pending": len(labels)}
        if "refused" in answer:
            raise LabelsRefused(answer["refused"])
        return answer

    def _await(self, name: str, seconds: float) -> dict[str, Any] | None:
        path, deadline = self._answers / name, time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                answer = orjson.loads(path.read_bytes())
                path.unlink(missing_ok=True)
                return answer
            time.sleep(LOOK_S)
        return None


def validated(body: Any, *, now: float | None = None) -> list[Label]:
    """The labels of a request's JSON: one item or a list of them, at most `MAX_ITEMS`.

    ``prediction_id`` is a UUID. ``label`` is a bool, a number or a text; for an answer of many rows it may be a list
    with one label for each. ``row`` (default 0) selects one row instead. ``observed_at`` (default now) is ISO 8601 with
    a zone, or seconds since 1970. Raises `InvalidInput` that names the item, counted from 0, and the field.
    """
    items = body if isinstance(body, list) else [body]
    if not items:
        raise InvalidInput("expected at least one item")
    if len(items) > MAX_ITEMS:
        raise InvalidInput(f"{len(items)} items; at most {MAX_ITEMS} in one request")
    latest = (time.time() if now is None else now) + MAX_AHEAD_S
    labels: list[Label] = []
    for number, item in enumerate(items):
        try:
            labels.extend(_labels(item, latest))
        except ValueError as err:
            raise InvalidInput(f"item {number}: {err}") from None
        if len(labels) > MAX_LABELS:
            raise InvalidInput(f"more than {MAX_LABELS} labels in one request")
    return labels


def _labels(item: Any, latest: float) -> Iterator[Label]:
    """Raises ValueError that names the field."""
    if not isinstance(item, dict):
        raise ValueError("expected an object with 'prediction_id' and 'label'")
    if unknown := sorted(map(str, item.keys() - set(FIELDS))):
        raise ValueError(f"unknown field {unknown[0][:80]!r}; expected {', '.join(FIELDS)}")
    for name in ("prediction_id", "label"):
        if item.get(name) is None:
            raise ValueError(f"{name!r} is missing")
    prediction_id = item["prediction_id"]
    if not isinstance(prediction_id, str) or not UUID.fullmatch(prediction_id.lower()):
        raise ValueError("'prediction_id' must be a UUID, as in the answer")
    label, row = item["label"], item.get("row")
    observed_at = _time(item.get("observed_at"), latest)
    if isinstance(label, list):
        if row is not None:
            raise ValueError("'row' selects one row, and 'label' is a list for all of them; give one")
        if not label:
            raise ValueError("'label' is an empty list")
        chosen = list(enumerate(label))
    else:
        chosen = [(_row(row), label)]
    for position, one in chosen:
        yield Label(prediction_id.lower(), position, _label(one), observed_at)


def _row(row: Any) -> int:
    if row is None:
        return 0
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row <= MAX_ROW:
        raise ValueError(f"'row' must be a whole number from 0 to {MAX_ROW}")
    return row


def _label(label: Any) -> bool | int | float | str:
    """A label as plain JSON has it: a whole number is one whether it is written 5 or 5.0."""
    if isinstance(label, bool):
        return label
    if isinstance(label, str):
        if len(label) > MAX_LABEL_CHARACTERS:
            raise ValueError(f"'label' is a text of more than {MAX_LABEL_CHARACTERS} characters")
        return label.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(label, (int, float)) and abs(label) < MAX_NUMBER:  # NaN is not less
        whole = isinstance(label, int) or label.is_integer()
        return int(label) if whole and abs(label) < 1 << 63 else float(label)
    raise ValueError("'label' must be true, false, a finite number or a text")


def _time(given: Any, latest: float) -> float | None:
    if given is None:
        return None
    seconds = _seconds(given)
    if seconds is None:
        raise ValueError("'observed_at' must be ISO 8601 with a zone (2026-01-31T12:00:00Z) or seconds since 1970")
    if not 0 <= seconds <= latest:
        raise ValueError("'observed_at' must lie between 1970 and tomorrow")
    return seconds


def _seconds(given: Any) -> float | None:
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given) if abs(given) < 1e15 else math.inf  # NaN is not less, and then not between either
    if not isinstance(given, str):
        return None
    try:
        moment = datetime.fromisoformat(given)
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None

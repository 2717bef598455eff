"""Copies: what callers asked and were answered, on its way to a shadow.

A page is what one worker answered within a tenth of a second: a line of JSON, then the arrays that it tells of, as they
lie in memory. Few pages wait; what comes beyond is dropped, so a shadow that is slow, hung or gone costs nobody more.

{"ids", "at", "requests", "rows": one value for each prediction, "inputs", "outputs": [arrays]}, where an array is
{"name", "dtype", "shape"}, {"name", "lengths"} for texts of bytes, or {"name", "values"} for other objects.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serving.batching import join, kind, whole
from serving.live import Live
from serving.metrics import Metrics
from serving.routing import CHAMPION
from serving.state import ModelState
from serving.tensors import Batch, Prediction

MAX_PAGES = 20  # that wait
MAX_PAGE_ROWS = 2000
MAX_PAGE_BYTES = 8 * 1024 * 1024
BLOCK = ""  # what a batch's only array is called, where all its columns are one


@dataclass(frozen=True, eq=False)
class Copy:
    """Predictions of one kind together: ``rows`` of each, all rows in ``batch``, and the champion's answers."""

    ids: Sequence[str]
    at: Sequence[float]
    requests: Sequence[str]
    rows: Sequence[int]
    batch: Batch
    answered: Prediction


class Copier:
    """Leaves copies of what champions answer where a shadow wants them. In a worker, behind the answer."""

    def __init__(self, shadow: Callable[[str], str | None], state_dir: Path, metrics: Metrics) -> None:
        """``shadow`` gives the version that is to see what a model is asked, None where there is none."""
        self._shadow = shadow
        self._state_dir = state_dir
        self._metrics = metrics

    def __call__(self, live: Live, together: Sequence[Any]) -> None:
        """Leave pages of what is ``together``: `serving.observer.Seen` of one version."""
        name = live.bundle.name
        version = self._shadow(name) if live.route == CHAMPION else None
        if version is None:
            return
        folder = ModelState(self._state_dir, name, ModelState.CHALLENGER).shadow
        dropped = 0
        for alike in _alike(together):
            rows = sum(one.batch.rows for one in alike)
            if not _write(folder, alike, rows):
                dropped += rows
        if dropped:
            self._metrics.shadow_rows.labels(name, version, "dropped").inc(dropped)


def _alike(together: Sequence[Any]) -> list[list[Any]]:
    kinds: dict[Any, list[Any]] = {}
    for seen in together:
        kinds.setdefault(kind(seen.batch), []).append(seen)
    return list(kinds.values())


def _write(folder: Path, alike: Sequence[Any], rows: int) -> bool:
    """Whether there was room, and something to copy."""
    first = alike[0].batch
    if not first.names or first.params is not None or rows > MAX_PAGE_ROWS or len(waiting(folder)) >= MAX_PAGES:
        return False
    content = encode(
        Copy(
            ids=[seen.prediction_id for seen in alike],
            at=[seen.at for seen in alike],
            requests=[seen.request_id for seen in alike],
            rows=[seen.batch.rows for seen in alike],
            batch=join([seen.batch for seen in alike]),
            answered=whole([seen.prediction for seen in alike]),
        )
    )
    if len(content) > MAX_PAGE_BYTES:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{alike[0].prediction_id}-{os.getpid()}-{uuid.uuid4().hex[:8]}"  # in the order of time
    path.with_suffix(".part").write_bytes(content)
    path.with_suffix(".part").rename(path.with_suffix(".page"))
    return True


def waiting(folder: Path) -> list[Path]:
    """The pages that wait, the oldest first."""
    return sorted(folder.glob("*.page"))


def encode(copy: Copy) -> bytes:
    """A page."""
    batch, answered = copy.batch, copy.answered
    inputs = {BLOCK: batch.block} if batch.block is not None else dict(zip(batch.names, batch.columns, strict=True))
    outputs = {"values": np.asarray(answered.values)}
    if answered.probabilities is not None:
        outputs["probabilities"] = np.asarray(answered.probabilities)
    raw: list[bytes] = []
    head = {
        "ids": copy.ids,
        "at": copy.at,
        "requests": copy.requests,
        "rows": copy.rows,
        "names": batch.names,
        "inputs": [_told(name, array, raw) for name, array in inputs.items()],
        "outputs": [_told(name, array, raw) for name, array in outputs.items()],
    }
    return b"".join((orjson.dumps(head, default=str), b"\n", *raw))


def _told(name: str, array: np.ndarray, raw: list[bytes]) -> dict[str, Any]:
    """What the head says of an array; its content goes to ``raw`` where it is not said there."""
    if array.dtype != object:
        raw.append(np.ascontiguousarray(array).tobytes())
        return {"name": name, "dtype": array.dtype.str, "shape": array.shape}
    values = array.tolist()
    if all(isinstance(value, bytes) for value in values):
        raw.extend(values)
        return {"name": name, "lengths": list(map(len, values))}
    return {"name": name, "values": values}


def decode(content: bytes) -> Copy:
    """What `encode` wrote. Raises ValueError or KeyError for anything else."""
    head, _, raw = content.partition(b"\n")
    told = orjson.loads(head)
    inputs, at = _arrays(told["inputs"], raw, 0)
    outputs, _ = _arrays(told["outputs"], raw, at)
    names = told["names"]
    block = inputs.get(BLOCK)
    columns = None if block is not None else [inputs[name] for name in names]
    answered = Prediction(outputs["values"], outputs.get("probabilities"))
    plain = told["ids"], told["at"], told["requests"], told["rows"]
    return Copy(*plain, Batch(names, columns, block=block), answered)


def _arrays(told: Sequence[Mapping[str, Any]], raw: bytes, at: int) -> tuple[dict[str, np.ndarray], int]:
    """The arrays that lie in ``raw`` from ``at`` on, and where they end."""
    found = {}
    for one in told:
        if "dtype" in one:
            dtype, count = np.dtype(one["dtype"]), int(np.prod(one["shape"], dtype=np.int64))
            found[one["name"]] = np.frombuffer(raw, dtype, count, at).reshape(one["shape"])
            at += count * dtype.itemsize
            continue
        values = one.get("values")
        if values is None:
            ends = list(accumulate(one["lengths"], initial=at))
            values, at = [raw[a:b] for a, b in pairwise(ends)], ends[-1]
        found[one["name"]] = _objects(values)
    return found, at


def _objects(values: Sequence[Any]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column

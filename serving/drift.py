"""Drift: how far what a version is asked, and what it answers, lies from what it learned from.

Training leaves a *profile* beside the model (`profile.json`, made by `training.profile`): for each column, and for the
answers, bins and which share of the training rows fell into each. The service only counts rows into these bins, and
counts add up: over threads, workers, pods and time. The score is the population stability index (PSI), computed here
for people and in ``ml_rules.yml`` for Prometheus, by the same formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import log
from typing import Any, Protocol

import numpy as np

from serving.tensors import Batch, Classes, Prediction

FILE_NAME = "profile.json"
FORMAT = 1
MAX_FEATURES, MAX_BINS = 50, 12
OTHER = "other"  # the bin of values that were no category in training
LEAST_SHARE = 0.001
MIN_ROWS = 500  # with fewer the score is mostly chance

NUMERIC, CATEGORY = "numeric", "category"
DRIFT, OK, TOO_FEW, UNJUDGED = "drift", "ok", "too few rows", "not judged"


def smoothed(counts: Sequence[float]) -> list[float]:
    """Each count's share, with `LEAST_SHARE` added to each: no bin is empty, so that the score is finite.

    It depends on the shares alone and not on how many rows there are, of which Prometheus has an estimate only.
    """
    total, whole = sum(counts), 1 + LEAST_SHARE * len(counts)
    return [(count / total + LEAST_SHARE) / whole for count in counts] if total else [1 / len(counts)] * len(counts)


def psi(counts: Sequence[float], ratios: Sequence[float]) -> float:
    """The population stability index, Σ (q - p) ln(q / p), of rows counted into bins whose `smoothed` shares were
    ``ratios`` in training; 0 for equal shares, without an upper bound.
    """
    shares = zip(smoothed(counts), ratios, strict=True)
    return sum((share - ratio) * log(share / ratio) for share, ratio in shares)


@dataclass(frozen=True)
class Bins:
    """Of one column, or of one output: its bins, and how training rows fell into them.

    Numeric bins end at ``edges``, which belong to the bin below; the first and the last are open. Categories are
    ``values``; all others fall into the last bin, called `OTHER`, unless ``bins`` has no such bin.
    """

    name: str
    kind: str
    bins: tuple[str, ...]  # as people read them, and as the metrics' label has them
    ratios: tuple[float, ...]  # `smoothed`, one for each bin
    edges: tuple[float, ...] = ()
    values: tuple[Any, ...] = ()
    missing: float = 0.0  # share of training rows without a value
    threshold: float | None = None  # a score above it is drift; None: not judged

    def count(self, column: np.ndarray) -> tuple[np.ndarray, int]:
        """How many values of ``column`` (one for each row) fall into each bin, and how many are missing."""
        if self.kind == NUMERIC or self._sorted is not None:
            return self._count_numbers(column)
        return self._count_objects(column.tolist())

    def _count_numbers(self, column: np.ndarray) -> tuple[np.ndarray, int]:
        numbers = column.astype(np.float64)  # of an object column too: None becomes NaN
        known = numbers[~np.isnan(numbers)]
        if self.kind == NUMERIC:
            positions = np.searchsorted(self._edges, known, side="left")
        else:
            assert self._sorted is not None
            order, values = self._sorted
            found = np.minimum(np.searchsorted(values, known), len(values) - 1)
            positions = np.where(values[found] == known, order[found], len(self.bins) - 1)
        return np.bincount(positions, minlength=len(self.bins)), len(numbers) - len(known)

    def _count_objects(self, values: list[Any]) -> tuple[np.ndarray, int]:
        counts, missing, other = np.zeros(len(self.bins), np.int64), 0, len(self.bins) - 1
        for value in values:
            if value is None or value != value:
                missing += 1
            else:
                counts[self._position.get(value, other)] += 1
        return counts, missing

    @cached_property
    def _edges(self) -> np.ndarray:
        return np.asarray(self.edges, np.float64)

    @cached_property
    def _position(self) -> dict[Any, int]:
        return {value: position for position, value in enumerate(self.values)}

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Numeric categories in ascending order, with the bin of each; None where values are no numbers."""
        if not self.values or not all(isinstance(value, (bool, int, float)) for value in self.values):
            return None
        values = np.asarray(self.values, np.float64)
        order = np.argsort(values)
        return order, values[order]


@dataclass(frozen=True)
class Profile:
    """What training knew of its rows: of each column, and of the model's answers."""

    rows: int
    features: tuple[Bins, ...]
    outputs: tuple[Bins, ...]  # `class` and `confidence` of a classifier, `value` of a regressor
    gate: Mapping[str, float]  # what the gate asked for: metric -> limit
    unwatched: Mapping[str, str]  # columns that have no bins, and why

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Profile:
        """What `as_json` wrote. Raises ValueError that says what is wrong."""
        if plain.get("format") != FORMAT:
            raise ValueError(f"it is of format {plain.get('format')!r}, expected {FORMAT}")
        try:
            features = tuple(_bins(one) for one in plain["features"])
            outputs = tuple(_bins(one) for one in plain["outputs"])
            profile = cls(int(plain["rows"]), features, outputs, dict(plain["gate"]), dict(plain["unwatched"]))
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"it is not as it was written: {type(err).__name__} {err}") from err
        if len(features) > MAX_FEATURES:
            raise ValueError(f"it has {len(features)} features, at most {MAX_FEATURES} are watched")
        return profile


def _bins(plain: Mapping[str, Any]) -> Bins:
    bins = Bins(
        name=str(plain["name"]),
        kind=plain["kind"],
        bins=tuple(map(str, plain["bins"])),
        ratios=tuple(map(float, plain["ratios"])),
        edges=tuple(map(float, plain["edges"])),
        values=tuple(plain["values"]),
        missing=float(plain["missing"]),
        threshold=None if plain["threshold"] is None else float(plain["threshold"]),
    )
    _check(bins)
    return bins


def _check(bins: Bins) -> None:
    def require(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{bins.name!r}: {what}")

    require(bins.kind in (NUMERIC, CATEGORY), f"unknown kind {bins.kind!r}")
    require(bins.kind == CATEGORY or len(bins.edges) == len(bins.bins) - 1, "numeric bins are one more than edges")
    require(bins.kind == NUMERIC or len(bins.bins) - len(bins.values) in (0, 1), "each category has one bin")
    require(bool(bins.bins) and len(set(bins.bins)) == len(bins.bins), "bins must differ in name")
    require(len(bins.ratios) == len(bins.bins), "each bin has one ratio")
    require(all(0 < ratio <= 1 for ratio in bins.ratios), "ratios are above 0 and at most 1")
    require(list(bins.edges) == sorted(set(bins.edges)), "edges ascend")
    require(len(bins.bins) <= MAX_BINS, f"at most {MAX_BINS} bins")


def outputs_of(prediction: Prediction, classes: Classes | None) -> dict[str, np.ndarray]:
    """What is watched of a prediction, one value a row: `class` (by name) and `confidence`, or `value`.

    Nothing of answers that are no single class or number a row, such as several outputs or embeddings.
    """
    values, chances = np.asarray(prediction.values), prediction.probabilities
    if values.ndim != 1 or prediction.named is not None:
        return {}
    if classes is None:
        return {"value": values} if values.dtype.kind in "iuf" else {}
    names = dict(zip(classes.labels, classes.names, strict=True))
    named = {"class": np.array([names.get(label) for label in values.tolist()], dtype=object)}
    return named if chances is None or chances.ndim != 2 else {**named, "confidence": chances.max(axis=1)}


class Counter:
    """Counts the rows of one version into its profile's bins, by series of metrics. For one thread at a time."""

    def __init__(self, profile: Profile, classes: Classes | None, series: Any) -> None:
        """``series`` gives the counters' ``inc`` by what they count: see `serving.metrics.DriftSeries`."""
        self._profile = profile
        self._classes = classes
        self._missing = {bins.name: series.missing(bins.name) for bins in profile.features}
        self._features = {
            bins.name: [series.feature(bins.name, label) for label in bins.bins] for bins in profile.features
        }
        self._outputs = {
            bins.name: [series.output(bins.name, label) for label in bins.bins] for bins in profile.outputs
        }

    def count(self, batch: Batch, prediction: Prediction) -> None:
        """Count the rows of ``batch`` and what was answered to them."""
        positions = {name: position for position, name in enumerate(batch.names)}
        for bins in self._profile.features:
            if (position := positions.get(bins.name)) is not None:
                counts, missing = bins.count(np.asarray(batch.columns[position]))
                _add(self._features[bins.name], counts)
                if missing:
                    self._missing[bins.name](missing)
        answered = outputs_of(prediction, self._classes)
        for bins in self._profile.outputs:
            if bins.name in answered:
                _add(self._outputs[bins.name], bins.count(answered[bins.name])[0])


def _add(series: list[Any], counts: np.ndarray) -> None:
    for add, count in zip(series, counts.tolist(), strict=True):
        if count:
            add(count)


class Counted(Protocol):
    """Rows by what they were counted as, since the service began; 0 for what was never counted."""

    def features(self, name: str, label: str) -> int:
        """Rows whose value of the feature fell into a bin."""

    def missing(self, name: str) -> int:
        """Rows without a value of the feature."""

    def outputs(self, name: str, label: str) -> int:
        """Rows whose answer fell into a bin."""


def report(profile: Profile, counted: Counted) -> dict[str, Any]:
    """How far live rows lie from training, for people: by feature and by output, the farthest first."""
    features = []
    for bins in profile.features:
        line = _line(bins, [counted.features(bins.name, label) for label in bins.bins])
        missing = counted.missing(bins.name)
        everything = line["rows"] + missing
        share = missing / everything if everything else None
        features.append({**line, "missing": {"rows": missing, "share": share, "reference": bins.missing}})
    outputs = [_line(bins, [counted.outputs(bins.name, label) for label in bins.bins]) for bins in profile.outputs]
    lines = [*features, *outputs]
    return {
        "verdict": next((word for word in (DRIFT, TOO_FEW) if any(line["verdict"] == word for line in lines)), OK),
        "drifted": [line["name"] for line in features if line["verdict"] == DRIFT],
        "shifted": [line["name"] for line in outputs if line["verdict"] == DRIFT],
        "minimum_rows": MIN_ROWS,
        "features": sorted(features, key=_distance, reverse=True),
        "outputs": outputs,
        "unwatched": dict(profile.unwatched),
    }


def _line(bins: Bins, counts: list[int]) -> dict[str, Any]:
    rows = sum(counts)
    score = psi(counts, bins.ratios)
    shares = zip(bins.bins, counts, bins.ratios, strict=True)
    return {
        "name": bins.name,
        "score": score if rows else None,
        "threshold": bins.threshold,
        "rows": rows,
        "verdict": _verdict(score, bins.threshold, rows),
        "bins": [
            {"bin": label, "rows": count, "share": count / rows if rows else None, "reference": ratio}
            for label, count, ratio in shares
        ],
    }


def _verdict(score: float, threshold: float | None, rows: int) -> str:
    if threshold is None:
        return UNJUDGED
    if rows < MIN_ROWS:
        return TOO_FEW
    return DRIFT if score > threshold else OK


def _distance(line: dict[str, Any]) -> float:
    return (line["score"] or 0.0) / line["threshold"] if line["threshold"] else 0.0

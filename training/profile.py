"""The profile of a model: what `serving.drift` compares live rows with.

A threshold says how far the training data lies from itself. It is drawn in two halves again and again, and the PSI
between the halves has a mean and a spread. What chance adds to a PSI goes with 1/n + 1/m for samples of n and m rows,
so between two samples as large as the whole it is half as much: live rows farther off than half of mean and three
spreads have moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from serving.drift import CATEGORY, MAX_BINS, MAX_FEATURES, NUMERIC, OTHER, Bins, Profile, outputs_of, psi, smoothed
from serving.tensors import Batch, Classes, Prediction

ROWS_A_BIN = 20  # at least, in training: with fewer a bin's share is mostly chance
QUANTILES = 10
FEW_VALUES = 10  # a number with no more different values is a category: a flag, a grade, a constant
HALVINGS = 20
SPREADS = 3.0
LEAST_THRESHOLD = 0.1  # what everyone calls a small shift, however much training data there was
CONFIDENCE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
LABEL_CHARACTERS = 40


def profile(
    learned: Batch,
    answered: Prediction,
    classes: Classes | None,
    *,
    unseen: Prediction | None = None,
    gate: Mapping[str, float] | None = None,
) -> Profile:
    """The profile of rows that were learned from, and of what the model answers to typical rows.

    ``unseen`` is what it answers to rows that it has not learned from, whose confidence is that of live rows; without
    it the confidence of ``answered`` stands in.
    """
    features: list[Bins] = []
    unwatched: dict[str, str] = {}
    for name, column in zip(learned.names, learned.columns, strict=True):
        if why := _unwatchable(np.asarray(column)):
            unwatched[name] = why
        elif len(features) == MAX_FEATURES:
            unwatched[name] = f"only the first {MAX_FEATURES} are watched"
        else:
            features.append(_feature(name, np.asarray(column)))
    return Profile(learned.rows, tuple(features), tuple(_outputs(answered, unseen, classes)), gate or {}, unwatched)


def _unwatchable(column: np.ndarray) -> str | None:
    if column.ndim > 1:
        return "it has more than one value a row"
    if column.dtype.kind == "M":
        return "times always move on"
    known = [value for value in column.tolist() if value is not None and value == value]
    if not known:
        return "training had no value of it"
    if column.dtype.kind == "O" and not all(isinstance(value, (str, bool, int, float)) for value in known):
        return "its values are neither numbers nor texts"
    if isinstance(known[0], str) and len(set(known)) > max(FEW_VALUES, len(known) // 2):
        return "it is free text"
    return None


def _feature(name: str, column: np.ndarray) -> Bins:
    known = np.array([value for value in column.tolist() if value is not None and value == value])
    missing = 1.0 - len(known) / len(column)
    different = set(known.tolist())
    if known.dtype.kind in "US" or len(different) <= FEW_VALUES:
        return _judged(_categories(name, known.tolist(), missing), known)
    return _judged(_quantiles(name, known.astype(np.float64), missing), known)


def _quantiles(name: str, known: np.ndarray, missing: float) -> Bins:
    bins = int(np.clip(len(known) // ROWS_A_BIN, 2, QUANTILES))
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))
    return _numeric(name, edges.tolist(), known, missing)


def _numeric(name: str, edges: list[float], known: np.ndarray, missing: float = 0.0) -> Bins:
    counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    return Bins(name, NUMERIC, _spans(edges), tuple(smoothed(counts.tolist())), tuple(edges), missing=missing)


def _spans(edges: list[float]) -> tuple[str, ...]:
    """The bins between ``edges`` as people read them, with as many digits as it takes to tell them apart."""
    for digits in range(4, 18):
        shown = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(shown)) == len(edges):
            break
    inner = [f"({low}, {high}]" for low, high in pairwise(shown)]
    return (f"<= {shown[0]}", *inner, f"> {shown[-1]}")


def _categories(name: str, known: list[Any], missing: float) -> Bins:
    """The most frequent values, and one bin for all others."""
    counted = Counter(known)
    values = sorted(counted, key=lambda value: (-counted[value], str(value)))[: MAX_BINS - 1]
    counts = [counted[value] for value in values]
    ratios = smoothed([*counts, len(known) - sum(counts)])
    labels = _labels([*map(str, values), OTHER])
    return Bins(name, CATEGORY, labels, tuple(ratios), values=tuple(values), missing=missing)


def _labels(texts: list[str]) -> tuple[str, ...]:
    """Short names that differ."""
    labels: list[str] = []
    for position, text in enumerate(texts):
        short = text if len(text) <= LABEL_CHARACTERS else f"{text[:LABEL_CHARACTERS]}…"
        labels.append(short if short not in labels else f"{short} #{position}")
    return tuple(labels)


def _outputs(answered: Prediction, unseen: Prediction | None, classes: Classes | None) -> list[Bins]:
    outputs = outputs_of(answered, classes)
    made = []
    if classes is not None and "class" in outputs:
        made.append(_judged(_classes(classes.names, outputs["class"].tolist()), outputs["class"]))
    confidence = outputs_of(unseen or answered, classes).get("confidence")
    if confidence is not None:
        made.append(_numeric("confidence", list(CONFIDENCE), confidence))
    if "value" in outputs:
        made.append(_feature("value", outputs["value"]))
    return made


def _classes(names: tuple[str, ...], answered: list[str]) -> Bins:
    """A bin for each class, also for one that was never answered; of many classes, for the most frequent."""
    if len(set(names)) > MAX_BINS:
        return _categories("class", answered, 0.0)
    counted, values = Counter(answered), tuple(dict.fromkeys(names))
    ratios = smoothed([counted[name] for name in values])
    return Bins("class", CATEGORY, _labels(list(values)), tuple(ratios), values=values)


def _judged(bins: Bins, known: np.ndarray) -> Bins:
    """``bins`` with the threshold that ``known``, the rows that they were made from, set by themselves."""
    draw = np.random.default_rng(0)
    scores = []
    for _ in range(HALVINGS):
        order = draw.permutation(len(known))
        half, other = (bins.count(known[part])[0].tolist() for part in np.array_split(order, 2))
        scores.append(psi(half, smoothed(other)))
    threshold = float(np.mean(scores) + SPREADS * np.std(scores)) / 2
    return replace(bins, threshold=max(LEAST_THRESHOLD, threshold))

"""The proof: compiled and native answer the same rows, singly and in batches, before the compiled form may serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from serving.bundle import Compilation
from serving.compile import NotCompiled
from serving.compile.rows import Maker, critical_values, fields_of, ways_to_leaves
from serving.difference import largest_difference
from serving.kernels import Kernel, walk
from serving.kernels.vectors import VectorClassifier, VectorRegressor
from serving.tensors import Batch, Prediction, Signature

ROWS = 10_000
CUTS = ((1, 300), (2, 50), (17, 20))  # how many rows a request, how often at most
LEAST_OFTEN = 10
PROBED = 200  # rows, to see what a model takes
CUT_S = 1.0  # after which no more of a kind are tried than `LEAST_OFTEN`
TOLERANCE = 1e-9  # for kernels whose operations are not scikit-learn's own, bit by bit

Predictor = Callable[[Batch], Prediction]


def compare(
    native: Predictor,
    compiled: Predictor,
    root: Kernel,
    signature: Signature,
    known: list[Batch],
    tolerance: float = TOLERANCE,
    others: tuple[Predictor, ...] = (),
) -> Compilation:
    """``others`` are further ways of the compiled form, which must give the same answers.

    Raises `NotCompiled` where any of them differs by more than ``tolerance``, or the compiled form is not faster.
    """
    maker = Maker(signature, critical_values(root, len(fields_of(signature))), known)
    missing, unknown = _accepted(native, maker)
    columns = maker.rows(ROWS, missing=missing, unknown=unknown)
    whole = [maker.batch(columns)]
    if ways := ways_to_leaves(root):
        whole.append(maker.batch(maker.leading(ways, missing=missing, unknown=unknown)))
    largest, rows = 0.0, 0
    for batch in (*known, *_cut(maker, columns), *whole):
        largest = max(largest, _differ(native, compiled, batch, tolerance))
        rows += batch.rows
    for other in others:
        for batch in whole:
            largest = max(largest, _differ(native, other, batch, tolerance))
    for batch in maker.specials(columns):
        largest = max(largest, _same_outcome(native, compiled, batch, tolerance))
        rows += 1
    native_s, compiled_s = _timed(native, compiled, maker, columns)
    if compiled_s["1"] > native_s["1"]:
        raise NotCompiled(
            f"compiled it answers a row in {compiled_s['1'] * 1e6:.0f} µs, scikit-learn in {native_s['1'] * 1e6:.0f} µs"
        )
    if largest == 0.0 and not any(isinstance(kernel, (VectorClassifier, VectorRegressor)) for kernel in walk(root)):
        tolerance = 0.0  # labels alone do not show that what they come from has the same bits
    return Compilation(rows, largest, tolerance, native_s, compiled_s)


def _accepted(native: Predictor, maker: Maker) -> tuple[frozenset[int], frozenset[int]]:
    """The columns where the model takes gaps, and those where it takes categories that it does not know."""
    every, none = frozenset(range(maker.width)), frozenset[int]()
    if _takes(native, maker, maker.optional(), every) is None:
        return maker.optional(), every
    unknown = frozenset(k for k in every if _takes(native, maker, none, frozenset({k})) is None)
    missing = frozenset(k for k in maker.optional() if _takes(native, maker, frozenset({k}), none) is None)
    problem = _takes(native, maker, missing, unknown)
    if problem is not None:
        raise NotCompiled(f"it takes none of the rows that were tried: {type(problem).__name__}: {problem}")
    return missing, unknown


def _takes(native: Predictor, maker: Maker, missing: frozenset[int], unknown: frozenset[int]) -> Exception | None:
    """What the model raises for some rows with such gaps and categories, if anything."""
    try:
        native(maker.batch(maker.rows(PROBED, missing=missing, unknown=unknown)))
    except Exception as err:  # whatever a model raises for rows that it does not take
        return err
    return None


def _cut(maker: Maker, columns: list[np.ndarray]) -> Iterator[Batch]:
    for size, times in CUTS:
        enough = time.monotonic() + CUT_S
        for number in range(times):
            if number >= LEAST_OFTEN and time.monotonic() > enough:
                break
            start = number * size
            yield maker.batch([column[start : start + size] for column in columns])


def _differ(native: Predictor, compiled: Predictor, batch: Batch, tolerance: float) -> float:
    expected = native(batch)
    try:
        got = compiled(batch)
    except Exception as err:
        raise NotCompiled(f"compiled it does not answer: {type(err).__name__}: {err}") from err
    difference = largest_difference(expected, got)
    if difference > tolerance:
        raise NotCompiled(
            f"compiled it answers otherwise in a batch of {batch.rows}: by {difference:.3g}, allowed is {tolerance:g}"
        )
    return difference


def _same_outcome(native: Predictor, compiled: Predictor, batch: Batch, tolerance: float) -> float:
    """Both refuse the row, or both answer it alike."""
    try:
        native(batch)
    except Exception:
        try:
            compiled(batch)
        except Exception:
            return 0.0
        raise NotCompiled(f"compiled it answers what scikit-learn refuses: {_shown(batch)}") from None
    return _differ(native, compiled, batch, tolerance)


def _shown(batch: Batch) -> str:
    return repr([column.tolist()[0] for column in batch.columns])[:200]


def _timed(
    native: Predictor, compiled: Predictor, maker: Maker, columns: list[np.ndarray]
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians by turns: seconds for one row and for a thousand."""
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for size, times in ((1, 15), (1000, 3)):
        batch = maker.batch([column[:size] for column in columns])
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(times):
            for predict, seconds in zip((native, compiled), taken, strict=True):
                started = time.perf_counter()
                predict(batch)
                seconds.append(time.perf_counter() - started)
        for by_size, seconds in zip(found, taken, strict=True):
            by_size[str(size)] = float(np.median(seconds))
    return found

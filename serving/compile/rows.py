"""Rows made to hurt: on every threshold of a model and one float step beside it, at the ends, missing, unknown.

Thresholds and categories are read off the kernels and carried back through scalers to the column that a caller sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np

from serving.compile import NotCompiled, leaves
from serving.kernels import Kernel
from serving.kernels.bayes import Above
from serving.kernels.columns import Arithmetic, Chain, Codes, FillNumbers
from serving.kernels.trees import Trees
from serving.tensors import NUMPY_TYPES, Batch, Field, Signature

NUMBERS = ("double", "float", "float64", "float32", "long", "integer", "int64", "int32")
WHOLE = ("long", "integer", "int64", "int32")
UNKNOWN_TEXTS = ("", " ", "no such category")
SPECIAL_NUMBERS = (np.nan, np.inf, -np.inf, 1e39, -1e39, 1e308, -0.0, 1e-310, 1e-50)
MISSING_SHARE = 0.1
FAR_SHARE = 0.1  # callers ask about more than what a few known rows show
LEAVES = 20_000  # so many are reached on purpose
LARGEST = 1e38  # beyond it float32 ends, and with it what trees take

Origin = Callable[[int], Any]  # a kernel's column -> (input column, way back), or None


@dataclass
class Critical:
    """What is critical for one input column: numbers where the model's answer may change, and its categories."""

    numbers: list[np.ndarray] = dataclass_field(default_factory=list)
    categories: list[Any] = dataclass_field(default_factory=list)


def critical_values(root: Kernel, width: int) -> list[Critical]:
    """One for each input column."""
    found = [Critical() for _ in range(width)]
    for kernel, origin in _located(root, _itself):
        if isinstance(kernel, Trees):
            for feature in np.unique(kernel.features):
                _note(origin(int(feature)), beside(np.unique(kernel.thresholds[kernel.features == feature])), found)
        elif isinstance(kernel, Arithmetic):
            inside = _behind(kernel, origin)
            for column in range(len(kernel.operands[0]) if kernel.operands else 0):
                _note(inside(column), np.array([-3.0, -1.0, 0.0, 1.0, 3.0]), found)
        elif isinstance(kernel, FillNumbers):
            for column, fill in enumerate(kernel.fill):
                _note(origin(column), np.array([fill]), found)
        elif isinstance(kernel, Above):
            for column in range(width):
                with suppress(IndexError):  # its table has fewer columns than the input
                    _note(origin(column), beside(np.array([kernel.threshold])), found)
        elif isinstance(kernel, Codes):
            for position, values in enumerate(kernel.categories):
                where = origin(position)
                if where is not None:
                    found[where[0]].categories.extend(values)
    return found


def ways_to_leaves(root: Kernel, at_most: int = LEAVES, seed: int = 0) -> list[leaves.Bounds]:
    """For each leaf of every tree the bounds of the input columns on the way there, where it leads back to such."""
    found: list[leaves.Bounds] = []
    random = np.random.default_rng(seed)
    for kernel, origin in _located(root, _itself):
        if isinstance(kernel, Trees):
            for way in leaves.bounds(kernel.graph.tobytes(), at_most - len(found), random):
                found.append(_back(way, origin))
                if len(found) >= at_most:
                    return found
    return found


def _itself(column: int) -> Any:
    return column, lambda values: values


def _back(way: leaves.Bounds, origin: Origin) -> leaves.Bounds:
    """The bounds of a kernel's own columns as such of input columns."""
    found: leaves.Bounds = {}
    for column, span in way.items():
        where = origin(column)
        if where is None:
            continue
        with np.errstate(all="ignore"):
            ends = where[1](np.array(span))
        if len(ends) != 2 or np.isnan(ends).any():
            continue  # no number leads there, as behind a one-hot encoder
        low, high = sorted(ends.tolist())
        before = found.get(where[0], (-np.inf, np.inf))
        found[where[0]] = max(low, before[0]), min(high, before[1])
    return found


def _located(kernel: Kernel, origin: Origin) -> Iterator[tuple[Kernel, Origin]]:
    """Every kernel, and where the columns of its table come from."""
    yield kernel, origin
    if isinstance(kernel, Chain):
        for step in kernel.steps:
            yield from _located(step, origin)
            origin = _behind(step, origin)
        return
    for inner in _inside(kernel):
        yield from _located(inner, origin)


def _inside(kernel: Kernel) -> Iterator[Kernel]:
    for value in vars(kernel).values():
        for item in value if isinstance(value, tuple) else (value,):
            if hasattr(item, "__dataclass_fields__"):
                yield item


def _behind(step: Kernel, origin: Origin) -> Origin:
    """Where the columns that ``step`` gives come from."""

    def inside(column: int) -> Any:
        own = step.origin(column) if hasattr(step, "origin") else None
        outer = origin(own[0]) if own is not None else None
        if own is None or outer is None:
            return None
        return outer[0], lambda values: outer[1](own[1](values))

    return inside


def _note(where: Any, values: np.ndarray, found: list[Critical]) -> None:
    if where is not None:
        with np.errstate(all="ignore"):
            back = where[1](values)
        found[where[0]].numbers.append(back[np.abs(back) < LARGEST])


def beside(values: np.ndarray) -> np.ndarray:
    """Each value, one and two float64 steps to either side, its float32 and that one's neighbours and midpoints."""
    with np.errstate(all="ignore"):
        narrow = values.astype(np.float32)
        up, down = np.nextafter(narrow, np.float32(np.inf)), np.nextafter(narrow, np.float32(-np.inf))
        wide = [part.astype(np.float64) for part in (narrow, up, down)]
        middles = [(wide[0] + wide[1]) / 2, (wide[0] + wide[2]) / 2]
        steps = [np.nextafter(values, np.inf), np.nextafter(values, -np.inf)]
        steps += [np.nextafter(steps[0], np.inf), np.nextafter(steps[1], -np.inf)]
        beyond = [np.nextafter(middle, np.inf) for middle in middles]
        every = np.concatenate([values, *steps, *wide, *middles, *beyond])
    return every[np.isfinite(every)]


class Maker:
    """Makes batches that fit ``signature``, from what is critical for a model and from rows that are known of it."""

    def __init__(self, signature: Signature, critical: list[Critical], known: list[Batch], seed: int = 0) -> None:
        self._signature = signature
        self._fields = fields_of(signature)
        self._random = np.random.default_rng(seed)
        self._critical = [np.concatenate(c.numbers) if c.numbers else np.empty(0) for c in critical]
        self._categories = [_distinct(c.categories) for c in critical]
        self._known = (
            [np.concatenate([_columns(batch)[k] for batch in known]) for k in range(len(self._fields))]
            if known
            else [np.empty(0)] * len(self._fields)
        )

    @property
    def width(self) -> int:
        return len(self._fields)

    def rows(self, count: int, *, missing: Set[int], unknown: Set[int]) -> list[np.ndarray]:
        """Columns of ``count`` rows: plain ones, and such with few or all columns on critical values.

        ``missing`` and ``unknown`` tell which columns may have gaps and categories that the model does not know.
        """
        share = self._random.choice([0.0, 3.0 / self.width, 1.0], size=count, p=[0.3, 0.5, 0.2])
        return [self._column(k, share, missing=k in missing, unknown=k in unknown) for k in range(self.width)]

    def leading(self, ways: list[leaves.Bounds], *, missing: Set[int], unknown: Set[int]) -> list[np.ndarray]:
        """Columns of plain rows, one for each of ``ways``, changed to lie within its bounds."""
        share = np.zeros(len(ways))
        columns = [self._column(k, share, missing=k in missing, unknown=k in unknown) for k in range(self.width)]
        for row, way in enumerate(ways):
            for k, (low, high) in way.items():
                field = self._fields[k]
                value = leaves.inside(low, high, whole=field.type in WHOLE) if field.type in NUMBERS else None
                if value is not None and abs(value) < LARGEST:
                    columns[k][row] = value
        return columns

    def optional(self) -> frozenset[int]:
        """The columns that may have gaps by the signature."""
        return frozenset(k for k, field in enumerate(self._fields) if not field.required)

    def _column(self, k: int, share: np.ndarray, *, missing: bool, unknown: bool) -> np.ndarray:
        field, count = self._fields[k], len(share)
        gap = missing and not field.required
        if field.type == "boolean":
            return self._booleans(k, count, missing=gap, unknown=unknown)
        if field.type not in NUMBERS:
            return self._texts(k, count, missing=gap, unknown=unknown)
        if self._categories[k] and not unknown and not len(self._critical[k]):
            values = self._random.choice(np.array(self._categories[k], np.float64), size=count)
        else:
            values = self._plain_numbers(k, count)
        critical = self._critical[k]
        if len(critical):
            hurt = self._random.random(count) < share
            values[hurt] = self._random.choice(critical, size=int(hurt.sum()))
        if field.type in WHOLE:
            values = np.clip(np.rint(values), -(2**31), 2**31 - 1)
        if gap:
            values[self._random.random(count) < MISSING_SHARE] = np.nan
        return values

    def _booleans(self, k: int, count: int, *, missing: bool, unknown: bool) -> np.ndarray:
        known = [bool(value) for value in self._categories[k]]
        values = self._random.choice(np.array([False, True] if unknown or not known else known), size=count)
        if not missing:
            return values
        gaps = values.astype(object)
        gaps[self._random.random(count) < MISSING_SHARE] = None
        return gaps

    def _plain_numbers(self, k: int, count: int) -> np.ndarray:
        """Over the range of what is known of the column and a tenth beyond, some far beyond, and known values."""
        known = self._known[k]
        known = known[np.isfinite(known)] if known.dtype.kind == "f" else known.astype(np.float64)
        numbers = [value for value in self._categories[k] if isinstance(value, (int, float)) and value == value]
        every = np.concatenate([known, self._critical[k], np.array(numbers, np.float64)])
        low, high = (float(every.min()), float(every.max())) if len(every) else (-3.0, 3.0)
        margin = 0.1 * (high - low) if high > low else max(1.0, abs(high))
        values = self._random.uniform(low - margin, high + margin, count)
        far = self._random.random(count) < FAR_SHARE
        values[far] = self._random.uniform(low - 100 * margin, high + 100 * margin, int(far.sum()))
        for part in (known, np.array(numbers, np.float64)):
            if len(part):
                some = self._random.random(count) < 0.4
                values[some] = self._random.choice(part, size=int(some.sum()))
        return values

    def _texts(self, k: int, count: int, *, missing: bool, unknown: bool) -> np.ndarray:
        known = [value for value in [*self._categories[k], *self._known[k].tolist()] if isinstance(value, str)]
        choices: list[Any] = _distinct(known) or ["a"]
        picked = self._random.integers(0, len(choices), count)
        texts = np.array(choices, dtype=object)[picked]
        if unknown:
            some = self._random.random(count) < MISSING_SHARE
            texts[some] = [UNKNOWN_TEXTS[k % len(UNKNOWN_TEXTS)] for k in range(int(some.sum()))]
        if missing:
            texts[self._random.random(count) < MISSING_SHARE] = None
        return texts

    def specials(self, columns: list[np.ndarray]) -> Iterator[Batch]:
        """Single rows, each with one column at a special value."""
        for k, field in enumerate(self._fields):
            for value in SPECIAL_NUMBERS if field.type in ("double", "float64") else (*UNKNOWN_TEXTS, None):
                if field.type in NUMBERS and field.type not in ("double", "float64"):
                    continue
                if field.type == "boolean" or (value is None and field.required):
                    continue
                row = [column[:1].copy() for column in columns]
                row[k] = np.array([value], dtype=object if field.type not in NUMBERS else np.float64)
                yield self.batch(row)

    def batch(self, columns: list[np.ndarray]) -> Batch:
        """The columns as a caller's rows would arrive."""
        if self._signature.layout == "tensors":
            return Batch(self._signature.names, block=np.stack(columns, axis=1).astype(self._fields[0].type))
        if all(field.type == "double" for field in self._fields):
            return Batch(self._signature.names, block=np.stack(columns, axis=1))
        typed = [_typed(column, field) for column, field in zip(columns, self._fields, strict=True)]
        return Batch(self._signature.names, tuple(typed))


def fields_of(signature: Signature) -> list[Field]:
    """One field for each single value of a row. Raises `NotCompiled` for a signature that is not of that kind."""
    if signature.layout == "tensors":
        tensor = signature.inputs[0]
        if len(signature.inputs) != 1 or len(tensor.shape) != 1 or tensor.shape[0] < 1:
            raise NotCompiled("its signature is not of rows of a fixed number of values")
        if tensor.type not in NUMBERS:
            raise NotCompiled(f"its input has the type {tensor.type}")
        return [Field(f"{tensor.name}[{k}]", tensor.type, tensor.required) for k in range(tensor.shape[0])]
    if signature.layout != "columns":
        raise NotCompiled("it has no signature")
    for field in signature.inputs:
        if field.type not in (*NUMBERS, "boolean", "string"):
            raise NotCompiled(f"its column {field.name!r} has the type {field.type}")
    return list(signature.inputs)


def _typed(column: np.ndarray, field: Field) -> np.ndarray:
    dtype = NUMPY_TYPES.get(field.type)
    gaps = column.dtype == object or (column.dtype.kind == "f" and bool(np.isnan(column).any()))
    if dtype is None or (dtype.kind in "iub" and gaps):
        return column
    return column.astype(dtype)


def _columns(batch: Batch) -> list[np.ndarray]:
    """Single columns, also of a batch that is one tensor."""
    return [batch.block[:, k] for k in range(batch.block.shape[1])] if batch.block is not None else list(batch.columns)


def _distinct(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value is not None and value == value))

"""Kernels: the parts of a compiled model. They need NumPy, and ONNX Runtime where there are trees; nothing else.

A kernel is a frozen dataclass of plain values, arrays and other kernels that is called with a table. A model's kernels
form a tree, which `save` writes as ``kernels.json`` with ``arrays.bin`` and `load` reads back. Nothing is unpickled.
NumPy's own archive took two fifths of the time of a load, and a worker loads while it answers.

A table is what flows between them: an array of shape (rows, columns), or a tuple of columns of different types.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, dataclass_transform

import numpy as np

Table = np.ndarray | tuple[np.ndarray, ...]
Kernel = Any  # a dataclass that `kernel` has registered

FILES = ("kernels.json", "arrays.bin")
ALIGNED = 64  # bytes, as NumPy's own arrays are

MODULES = ("bayes", "columns", "ensembles", "graph", "linear", "masks", "models", "neighbours", "trees", "vectors")

_KERNELS: dict[str, type] = {}
_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True)
def kernel(cls: _Class) -> _Class:
    """Class decorator: a frozen dataclass that `save` and `load` know by its name."""
    made: Any = dataclasses.dataclass(frozen=True, eq=False)(cls)
    if made.__name__ in _KERNELS:
        raise ValueError(f"there are two kernels called {made.__name__}")
    _KERNELS[made.__name__] = made
    return cast("_Class", made)


def save(root: Kernel, folder: Path) -> None:
    """Write the kernel and all below it into ``folder``."""
    arrays = bytearray()
    plain = _plain(root, arrays)
    tree, values = (folder / name for name in FILES)
    tree.write_text(json.dumps(plain), encoding="utf-8")
    values.write_bytes(arrays)


def load(folder: Path) -> Kernel:
    """What `save` wrote."""
    for module in MODULES:
        import_module(f"serving.kernels.{module}")
    tree, values = (folder / name for name in FILES)
    return _made(json.loads(tree.read_text(encoding="utf-8")), np.fromfile(values, np.uint8))


def walk(root: Kernel) -> list[Kernel]:
    """The kernel and all below it."""
    found = [root]
    for field in dataclasses.fields(root):
        value = getattr(root, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if type(item) in _KERNELS.values():
                found.extend(walk(item))
    return found


def without(root: Kernel, kind: type) -> Kernel:
    """The same kernels, with None in place of each of ``kind``."""

    def changed(value: Any) -> Any:
        if isinstance(value, kind):
            return None
        if isinstance(value, tuple):
            return tuple(changed(item) for item in value)
        return without(value, kind) if type(value) in _KERNELS.values() else value

    return type(root)(**{field.name: changed(getattr(root, field.name)) for field in dataclasses.fields(root)})


def _plain(value: Any, arrays: bytearray) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
        return {"kernel": type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray) and value.dtype != object:
        arrays.extend(bytes(-len(arrays) % ALIGNED))
        at = len(arrays)
        order: Literal["F", "C"] = "F" if value.flags.fnc else "C"
        arrays.extend(value.tobytes(order))
        return {"array": value.dtype.str, "shape": value.shape, "order": order, "at": at}
    if isinstance(value, (tuple, list)):
        return [_plain(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _made(plain: Any, arrays: np.ndarray) -> Any:
    if isinstance(plain, list):
        return tuple(_made(item, arrays) for item in plain)
    if not isinstance(plain, dict):
        return plain
    if "array" in plain:
        dtype, at = np.dtype(plain["array"]), plain["at"]
        flat = arrays[at : at + math.prod(plain["shape"]) * dtype.itemsize].view(dtype)
        return flat.reshape(plain["shape"], order=plain["order"])  # BLAS adds up in another order in the other one
    return _KERNELS[plain["kernel"]](**{name: _made(value, arrays) for name, value in plain["fields"].items()})


# --- tables ----------------------------------------------------------------------------------------------------------


def block(table: Table) -> np.ndarray:
    """The table as one array of numbers; gaps become NaN. Raises ValueError for a text."""
    if isinstance(table, np.ndarray):
        return table if table.dtype != object else table.astype(np.float64)
    numbers = [column if column.dtype.kind in "fiu" else column.astype(np.float64) for column in table]
    side_by_side = np.empty((len(numbers[0]), len(numbers)), np.result_type(*numbers))
    for position, column in enumerate(numbers):  # a third of what np.stack takes for one row
        side_by_side[:, position] = column
    return side_by_side


def columns(table: Table) -> tuple[np.ndarray, ...]:
    """The table as single columns."""
    return table if isinstance(table, tuple) else tuple(table[:, position] for position in range(table.shape[1]))


def rows(table: Table) -> int:
    """How many rows there are."""
    return len(table) if isinstance(table, np.ndarray) else len(table[0])


Score = Callable[[Table], np.ndarray]  # what a kernel that gives numbers is: (rows, outputs)

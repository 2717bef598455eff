"""ONNX Runtime answers: arrays in, arrays out, one thread."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InvalidInput, VersionRefused
from serving.tensors import Batch, Classes, Description, Field, Own, Prediction, Signature

FLAVOR = "onnx"
FOLDER = "model"

ARRAY_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    **{f"tensor({name})": name for name in ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")},
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}
LABELS = ("label", "output_label")
PROBABILITIES = ("probabilities", "output_probability")


def serves(model: Mapping[str, Any], _: Path) -> bool:
    """Whatever was logged with this flavor."""
    return FLAVOR in model["flavors"]


def convert(model: Mapping[str, Any], folder: Path, into: Path) -> Description:
    """Copy the graph with its external data, and read its inputs where the version has no signature."""
    data = model["flavors"][FLAVOR]["data"]
    if not (folder / data).resolve().is_relative_to(folder.resolve()):
        raise VersionRefused(f"its model file lies outside its folder: {data}", reason="bad_path")
    shutil.copytree(folder, into / FOLDER)
    (into / "graph").write_text(data, encoding="utf-8")
    loaded = _session_in(into)
    signature = Signature.from_mlmodel(model.get("signature")) or Signature(
        "tensors", tuple(map(_field, loaded.get_inputs())), "inferred"
    )
    _check_names(signature, loaded)
    outputs = loaded.get_outputs()
    return Description(signature, _classes(model, loaded), output=outputs[0].name if len(outputs) == 1 else None)


def load(folder: Path) -> Callable[[Batch], Prediction]:
    """The graph's outputs: a label with probabilities where it has them by the usual names, else values."""
    loaded = _session_in(folder)
    inputs = [(given.name, np.dtype(_array_type(given)), len(given.shape)) for given in loaded.get_inputs()]
    outputs = [given.name for given in loaded.get_outputs()]

    def predict(batch: Batch) -> Prediction:
        got = loaded.run(None, _feed(batch, inputs))
        return _prediction(outputs, got)

    return predict


def session(path: Path) -> Any:
    """The graph at ``path``, answered in one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _session_in(folder: Path) -> Any:
    return session(folder / FOLDER / (folder / "graph").read_text(encoding="utf-8"))


def _check_names(signature: Signature, session: Any) -> None:
    """A graph of several inputs takes each by its name; one of a single input takes the row as it is."""
    inputs = [given.name for given in session.get_inputs()]
    missing = [name for name in inputs if name not in signature.names]
    if len(inputs) > 1 and missing:
        raise VersionRefused(f"its graph takes {missing[0]!r}, which its signature does not name", reason="load_failed")


def _array_type(given: Any) -> str:
    if given.type not in ARRAY_TYPES:
        raise VersionRefused(f"its input {given.name!r} has the type {given.type}", reason="load_failed")
    return ARRAY_TYPES[given.type]


def _field(given: Any) -> Field:
    shape = tuple(size if isinstance(size, int) else -1 for size in given.shape[1:])
    return Field(given.name, _array_type(given), True, shape)


def _classes(model: Mapping[str, Any], session: Any) -> Classes | None:
    """Class names come with the version's metadata; a graph that gives labels without them names only its labels."""
    names = (model.get("metadata") or {}).get("class_names")
    outputs = {output.name: output for output in session.get_outputs()}
    if not names or not any(name in outputs for name in LABELS):
        return None
    return Classes.of(range(len(names)), names)


def _feed(batch: Batch, inputs: Sequence[tuple[str, np.dtype[Any], int]]) -> dict[str, np.ndarray]:
    if len(inputs) == 1:
        name, dtype, rank = inputs[0]
        return {name: _narrow(_of_rank(rank, _whole(batch)), dtype)}
    return {name: _narrow(_of_rank(rank, batch.column(name)), dtype) for name, dtype, rank in inputs}


def _of_rank(rank: int, array: np.ndarray) -> np.ndarray:
    """One value a row may be a column or a list of its own."""
    return array.reshape(-1, 1) if rank == 2 and array.ndim == 1 else array


def _whole(batch: Batch) -> np.ndarray:
    if batch.block is not None:
        return batch.block
    return batch.columns[0] if len(batch.columns) == 1 else np.stack(batch.columns, axis=1)


def _narrow(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The graph's own type. A number that it cannot hold is the caller's error, not an infinity."""
    if array.dtype == dtype or dtype.kind == "U":
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = array.astype(dtype)
    lost = np.isinf(narrow) if dtype.kind == "f" else narrow != array
    if lost.any():
        row = int(np.argmax(lost.reshape(len(narrow), -1).any(axis=1)))
        what = "is beyond the range of" if dtype.kind == "f" else "cannot be"
        raise InvalidInput(f"a value {what} {dtype.name}", row=row)
    return np.ascontiguousarray(narrow)


def _prediction(names: Sequence[str], got: Sequence[Any]) -> Prediction:
    by_name = dict(zip(names, got, strict=True))
    label = next((by_name[name] for name in LABELS if name in by_name), None)
    chances = next((by_name[name] for name in PROBABILITIES if name in by_name), None)
    arrays = {name: np.asarray(values) for name, values in by_name.items()}
    own = _own(arrays)
    if label is not None and chances is not None:
        return Prediction(np.asarray(label), _probabilities(chances), own=own)
    first = arrays[names[0]]
    values = first[:, 0] if first.ndim == 2 and first.shape[1] == 1 else first
    return Prediction(values, named=arrays if len(arrays) > 1 else None, own=own)


def _own(arrays: Mapping[str, np.ndarray]) -> Own | None:
    """The outputs as the graph calls them, where each has one value a row."""
    lengths = {array.shape[:1] for array in arrays.values()}
    return Own("graph", arrays) if len(lengths) == 1 and lengths != {()} else None


def _probabilities(chances: Any) -> np.ndarray:
    """An array, or the list of ``{label: probability}`` that converters write by default (ZipMap)."""
    if isinstance(chances, list):
        return np.array([list(row.values()) for row in chances], dtype=np.float64)
    return np.asarray(chances)

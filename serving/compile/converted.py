"""What has no kernel, converted by skl2onnx: a step of a pipeline each, the others keep their kernels.

A conversion computes in float64 with operations of its own, so its answers are scikit-learn's only within `TOLERANCE`.
Nothing is converted whose answers jump where the proof cannot look: it reads thresholds off kernels, not off graphs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from serving.bundle import Compilation
from serving.compile import NotCompiled, build
from serving.compile.rows import fields_of
from serving.kernels import Kernel
from serving.kernels.columns import Chain, Take
from serving.kernels.graph import Graph
from serving.tensors import Field, Signature

TOLERANCE = 1e-6  # relative to the larger of 1 and the value
LIMIT_S = 30  # for the conversion of one step
LIMIT_BYTES = 4 << 30  # of data in the process that converts
OPSETS = {"": 18, "ai.onnx.ml": 3}
SLOWER = 2.0  # than scikit-learn for many rows, by this factor, a conversion does not serve

CUTS = "cuts its input at thresholds, which no proof would try once converted"
NEAR = "chooses among equally near rows by its own search"
TEXTS = "splits texts, and no proof tries every kind of text"
KEPT = {
    **dict.fromkeys(("KBinsDiscretizer", "Binarizer"), CUTS),
    **dict.fromkeys(("KNeighborsClassifier", "KNeighborsRegressor", "KNNImputer", "LocalOutlierFactor"), NEAR),
    **dict.fromkeys(("RadiusNeighborsClassifier", "RadiusNeighborsRegressor"), NEAR),
    **dict.fromkeys(("CountVectorizer", "TfidfVectorizer", "HashingVectorizer"), TEXTS),
}
FLOAT = 1  # as ONNX numbers its types
NARROW = ("SVMClassifier", "SVMRegressor", "LinearClassifier", "LinearRegressor", "Scaler", "Imputer")  # float32 inside


def convert(estimator: Any, signature: Signature) -> Kernel:
    """The kernels of a model whose batches fit ``signature``, with a `Graph` for each step that has none.

    Raises `NotCompiled` with a line that names the step.
    """
    fields = fields_of(signature)
    for part in (estimator, *parts(estimator)):
        _check(part)
    taken = _taken(estimator, signature)
    steps = [step for _, step in getattr(estimator, "steps", [("", estimator)]) if step not in (None, "passthrough")]
    kernels: list[Kernel] = []
    for number, step in enumerate(steps):
        first = [fields[position] for position in taken] if number == 0 and _by_name(step) else None
        kernels.append(_kernel(step, first))
    if taken != tuple(range(len(fields))):
        kernels.insert(0, Take(taken))
    return Chain(tuple(kernels)) if len(kernels) != 1 else kernels[0]


def accepted(compilation: Compilation) -> Compilation:
    """What the proof of a conversion comes to: never exact, because other operations gave what rows it tried.

    Raises `NotCompiled` where many rows take much longer than natively: some graphs are fast for one row only.
    """
    native_s, converted_s = compilation.native_s["1000"], compilation.compiled_s["1000"]
    if converted_s > SLOWER * native_s:
        raise NotCompiled(
            f"it answers 1,000 rows in {converted_s * 1e3:.1f} ms, scikit-learn in {native_s * 1e3:.1f} ms"
        )
    return replace(compilation, tolerance=TOLERANCE)


def parts(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """The estimators in a fitted one, itself included."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if hasattr(value, "get_params"):
        yield value
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.dtype == object):
        for item in value.ravel() if isinstance(value, np.ndarray) else value:
            yield from parts(item, seen)


def _check(part: Any) -> None:
    name, module = type(part).__name__, type(part).__module__
    if not module.startswith("sklearn."):
        raise NotCompiled(f"{name} is none of scikit-learn's")
    if module.startswith("sklearn.tree") or "GradientBoosting" in name:
        raise NotCompiled(f"it has trees ({name}), and a tree {CUTS}")
    if name in KEPT:
        raise NotCompiled(f"{name} {KEPT[name]}")


def _taken(estimator: Any, signature: Signature) -> tuple[int, ...]:
    """Which of the signature's columns the model takes, in its own order."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None or signature.layout != "columns":
        return tuple(range(len(fields_of(signature))))
    if not set(map(str, names)) <= set(signature.names):
        raise NotCompiled("its columns are not those of its signature")
    return tuple(signature.names.index(str(name)) for name in names)


def _by_name(step: Any) -> bool:
    return type(step).__name__ == "ColumnTransformer" and getattr(step, "feature_names_in_", None) is not None


def _kernel(step: Any, fields: list[Field] | None) -> Kernel:
    try:
        return build(step)
    except NotCompiled:
        return _graph(step, fields)


def _graph(step: Any, fields: list[Field] | None) -> Graph:
    """A step's graph over one block of numbers, or over one input for each of ``fields``."""
    types = tuple(map(_type, fields)) if fields else ("block",)
    inputs = tuple(field.name for field in fields) if fields else ("x",)
    labels = _labels(step)
    gives = "labels" if _is_classifier(step) else "values" if hasattr(step, "predict") else "block"
    with_probabilities = bool(labels) and hasattr(step, "predict_proba")
    width = getattr(step, "n_features_in_", None)
    if width is None:
        raise NotCompiled(f"{type(step).__name__} does not tell how many columns it takes")
    written, outputs = _in_child(step, tuple(zip(inputs, types, strict=True)), width)
    return Graph(
        np.frombuffer(written, np.uint8),
        inputs,
        types,
        outputs[: 1 + with_probabilities],
        gives,
        bool(step.__sklearn_tags__().input_tags.allow_nan),
        labels,
    )


def _type(field: Field) -> str:
    if field.type in ("string", "boolean"):
        return {"string": "string", "boolean": "bool"}[field.type]
    return "int64" if field.type in ("long", "integer") and field.required else "double"


def _is_classifier(step: Any) -> bool:
    from sklearn.base import is_classifier

    return bool(is_classifier(step))


def _labels(step: Any) -> tuple[Any, ...]:
    """Those of a classifier of one output. Raises `NotCompiled` where the tolerance would take one for another."""
    classes = getattr(step, "classes_", None)
    for known in classes if isinstance(classes, list) else [classes]:
        if isinstance(known, np.ndarray) and known.dtype.kind in "iuf" and len(known) > 1:
            apart = np.diff(known.astype(np.float64)) / np.maximum(1.0, np.abs(known[1:]))
            if apart.min() <= 2 * TOLERANCE:
                raise NotCompiled(f"the labels of {type(step).__name__} lie too close together to be told apart")
    return tuple(classes.tolist()) if isinstance(classes, np.ndarray) and classes.ndim == 1 else ()


# --- in a child ------------------------------------------------------------------------------------------------------


def _in_child(step: Any, inputs: tuple[tuple[str, str], ...], width: int) -> tuple[bytes, tuple[str, ...]]:
    """The ONNX model's bytes and its outputs' names. Conversion may hang or take all memory: a child ends with it."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, step, inputs, width), daemon=True)
    child.start()
    sender.close()
    name = type(step).__name__
    try:
        got = receiver.recv()
    except (EOFError, OSError):  # also in the midst of its answer
        child.join()
        why = f"takes more than {LIMIT_S} s" if child.exitcode == -signal.SIGALRM else f"ended with {child.exitcode}"
        raise NotCompiled(f"converting {name} {why}") from None
    finally:
        receiver.close()
        child.join()
    if isinstance(got, str):
        raise NotCompiled(f"skl2onnx does not convert {name}: {got}")
    return got


def _send(sender: Connection, step: Any, inputs: tuple[tuple[str, str], ...], width: int) -> None:
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends this process, whatever it does, also when its parent has gone
    signal.alarm(LIMIT_S)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    try:
        sender.send(_converted(step, inputs, width))
    except NotCompiled as err:
        sender.send(str(err))
    except Exception as err:  # whatever skl2onnx says of an estimator that it does not convert
        first = (str(err).strip().splitlines() or [""])[0].split(". ")[0]
        sender.send(f"{type(err).__name__}: {first[:150]}")


def _converted(step: Any, inputs: tuple[tuple[str, str], ...], width: int) -> tuple[bytes, tuple[str, ...]]:
    import onnxruntime
    from skl2onnx import to_onnx
    from skl2onnx.common import data_types

    kinds = {"block": "Double", "double": "Double", "int64": "Int64", "bool": "Boolean", "string": "String"}
    typed = [
        (name, getattr(data_types, f"{kinds[kind]}TensorType")([None, width if kind == "block" else 1]))
        for name, kind in inputs
    ]
    options = {id(step): {"zipmap": False}} if _is_classifier(step) else None
    model = to_onnx(step, initial_types=typed, options=options, target_opset=OPSETS)
    for narrow in _narrow(model.graph):
        raise NotCompiled(f"its {narrow} computes in float32")
    written = model.SerializeToString()
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    onnxruntime.InferenceSession(written, quiet, providers=["CPUExecutionProvider"])  # raises for types that do not fit
    return written, tuple(output.name for output in model.graph.output)


def _narrow(graph: Any) -> Iterator[str]:
    """The operators of an ONNX graph that round to float32: a label may change there, where no row of a proof lies."""
    for node in graph.node:
        given = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type in NARROW or (node.op_type == "Cast" and given["to"].i == FLOAT):
            yield node.op_type
        for attribute in node.attribute:
            yield from _narrow(attribute.g) if attribute.HasField("g") else ()

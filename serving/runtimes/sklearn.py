"""scikit-learn itself answers. Needs scikit-learn in the worker, and pandas where the model was fitted on frames."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InvalidInput, VersionRefused
from serving.tensors import Batch, Classes, Description, Field, Prediction, Signature

FLAVOR = "sklearn"
FILE_NAME = "model.pickle"


def serves(model: Mapping[str, Any], _: Path) -> bool:
    """Whatever was logged with this flavor."""
    return FLAVOR in model["flavors"]


def convert(model: Mapping[str, Any], folder: Path, into: Path) -> Description:
    """Read the estimator in any format that MLflow writes and leave it as one pickle, which loads fastest."""
    import cloudpickle

    flavor = model["flavors"][FLAVOR]
    _add_code(folder / str(flavor.get("code") or ""), into)
    estimator = _read(flavor, folder)
    if not hasattr(estimator, "predict"):
        raise VersionRefused(f"{type(estimator).__name__} has no predict method", reason="load_failed")
    _use_one_thread(estimator)
    with (into / FILE_NAME).open("wb") as file:
        cloudpickle.dump(estimator, file)
    signature = Signature.from_mlmodel(model.get("signature")) or _inferred(estimator)
    names = (model.get("metadata") or {}).get("class_names")
    classes = Classes.of(estimator.classes_, names) if _is_classifier(estimator) else None
    return Description(_with_missing(signature, estimator), classes, ("scikit-learn",))


def file_of(model: Mapping[str, Any], folder: Path) -> Path | None:
    """The file with the estimator, by what MLflow writes of it; None where it does not say."""
    name = model["flavors"][FLAVOR].get("pickled_model")
    return folder / name if isinstance(name, str) else None


def load(folder: Path) -> Callable[[Batch], Prediction]:
    """The estimator's ``predict``, and ``predict_proba`` where it has one."""
    estimator = read(folder)
    shape = _input_shape(estimator)
    with_probabilities = _is_classifier(estimator) and hasattr(estimator, "predict_proba")

    def predict(batch: Batch) -> Prediction:
        rows = shape(batch)
        try:
            values = np.asarray(estimator.predict(rows))
            probabilities = estimator.predict_proba(rows) if with_probabilities else None
        except ValueError as err:
            # The estimators check their input themselves; what they say of it concerns the caller.
            if "contains NaN" in str(err) or "contains infinity" in str(err):
                raise InvalidInput("the model takes no missing or infinite values") from err
            if str(err).startswith("could not convert string to float"):
                raise InvalidInput("there is a text where the model takes a number") from err
            if str(err).startswith("Found unknown categories"):
                raise InvalidInput("there is a category that the model does not know") from err
            raise
        return Prediction(values, probabilities)

    return predict


def read(folder: Path) -> Any:
    """The estimator that `convert` left in ``folder``."""
    _add_code(folder / "code")
    with (folder / FILE_NAME).open("rb") as file:
        return pickle.load(file)


def remove(folder: Path) -> None:
    """Take back what `convert` wrote: a compiled version needs none of it."""
    (folder / FILE_NAME).unlink()
    shutil.rmtree(folder / "code", ignore_errors=True)


def _read(flavor: Mapping[str, Any], folder: Path) -> Any:
    path = folder / flavor["pickled_model"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise VersionRefused(f"its model file lies outside its folder: {flavor['pickled_model']}", reason="bad_path")
    if flavor.get("serialization_format") == "skops":
        import skops.io

        return skops.io.load(path, trusted=flavor.get("skops_trusted_types"))
    with path.open("rb") as file:
        return pickle.load(file)


def _add_code(code: Path, into: Path | None = None) -> None:
    """Modules that were logged with the model must be importable where it is loaded."""
    if code.name != "code" or not code.is_dir():
        return
    sys.path.insert(0, str(code))
    if into is not None:
        shutil.copytree(code, into / "code")


def _use_one_thread(estimator: Any) -> None:
    """Workers, not threads, use the cores; and a forest's sums depend on thread timing otherwise."""
    for name in estimator.get_params() if hasattr(estimator, "get_params") else ():
        if name == "n_jobs" or name.endswith("__n_jobs"):
            with contextlib.suppress(ValueError):
                estimator.set_params(**{name: 1})


def _is_classifier(estimator: Any) -> bool:
    classes = getattr(estimator, "classes_", None)
    return isinstance(classes, np.ndarray) and classes.ndim == 1


def _inferred(estimator: Any) -> Signature:
    """What a model without a signature tells of its input: the names of its columns, or their number."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        return Signature("columns", tuple(Field(str(name), "any") for name in names), "inferred")
    width = getattr(estimator, "n_features_in_", None)
    if width is not None:
        return Signature("tensors", (Field("features", "float64", shape=(int(width),)),), "inferred")
    return Signature("unknown", (), "none")


def _with_missing(signature: Signature, estimator: Any) -> Signature:
    """Tensor signatures do not say whether values may be missing; the estimator does."""
    if signature.layout != "tensors" or not _allows_missing(estimator):
        return signature
    inputs = tuple(Field(field.name, field.type, False, field.shape) for field in signature.inputs)
    return Signature(signature.layout, inputs, signature.origin)


def _allows_missing(estimator: Any) -> bool:
    try:
        return bool(estimator.__sklearn_tags__().input_tags.allow_nan)
    except Exception:  # tags are a protocol of third-party code: an estimator without them just says nothing
        return False


def _input_shape(estimator: Any) -> Callable[[Batch], Any]:
    """How this estimator was given its input when it was fitted: a frame, an array, or a list of texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if getattr(estimator, "feature_names_in_", None) is not None:
            return _frame
    if getattr(estimator, "n_features_in_", None) is None:
        return _texts_or_array
    return _array


def _frame(batch: Batch) -> Any:
    import pandas as pd

    if batch.block is not None:
        return pd.DataFrame(batch.block, columns=list(batch.names))
    columns = map(_with_gaps, batch.columns)
    return pd.DataFrame(dict(zip(batch.names, columns, strict=True)))


def _with_gaps(column: np.ndarray) -> Any:
    """pandas reads None beside texts as NaN; where all are gaps it leaves None, which encoders hold for another."""
    if column.dtype != object or any(value is not None for value in column):
        return column
    import pandas as pd

    return pd.Series(column, dtype=pd.Series([""]).dtype)


def _array(batch: Batch) -> np.ndarray:
    if batch.block is not None:
        return batch.block
    if len(batch.columns) == 1 and batch.columns[0].ndim > 1:
        return batch.columns[0]
    return np.stack(batch.columns, axis=1)


def _texts_or_array(batch: Batch) -> Any:
    """Text vectorizers take a plain list and do not count their input columns."""
    only_texts = len(batch.names) == 1 and batch.columns[0].dtype == object
    return batch.columns[0].tolist() if only_texts else _array(batch)

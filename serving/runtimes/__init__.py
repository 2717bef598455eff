"""Runtimes answer batches: one file each, loaded by the name that a bundle carries.

A runtime module has two functions:

``convert(model, folder, into)``
    Used by prepare. Reads the model's own files in ``folder`` as its MLmodel ``model`` describes them, writes what
    `load` needs into ``into``, and returns what it knows of the model as a `Description`.
    The compiled runtime has none: its files come from `serving.compile`.
``load(folder)``
    Used by workers. Returns a function from `Batch` to `Prediction`. Heavy imports happen here, not at import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from serving.tensors import Batch, Prediction

# Read when ONNX Runtime is imported, which would otherwise send reports and leave a file of its own in TMPDIR.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Predictor = Callable[[Batch], Prediction]

# The runtimes that convert, in the order in which they are tried when a model has several flavors.
FLAVORS = ("onnx", "sklearn", "pyfunc")

RUNTIMES = {
    "compiled": "serving.runtimes.compiled",
    "onnx": "serving.runtimes.onnx",
    "sklearn": "serving.runtimes.sklearn",
    "pyfunc": "serving.runtimes.pyfunc",
}


def runtime(name: str) -> ModuleType:
    """The runtime module called ``name``. Raises KeyError when there is none."""
    return import_module(RUNTIMES[name])

"""scikit-learn → kernels with the same bits; `proof` compares the two before a version is served by them.

One function for each kind of estimator builds its kernels. Whatever has none stays with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from serving.kernels import Kernel
from serving.kernels.columns import Chain, Take
from serving.tensors import Signature

# The releases whose private attributes the builders have been tested with.
TESTED = ((1, 7), (1, 9))

MODULES = ("trees", "columns", "linear", "ensembles", "bayes", "neighbours", "vectors")

Build = Callable[[Any], Kernel]


class NotCompiled(Exception):
    """This estimator stays with scikit-learn; the message says why."""


def build(estimator: Any) -> Kernel:
    """The kernels of a fitted estimator or transformer. Raises `NotCompiled`."""
    cls = type(estimator)
    builder = _builders().get(cls.__name__) if cls.__module__.startswith("sklearn.") else None
    if builder is None:
        raise NotCompiled(f"there is no kernel for {cls.__module__}.{cls.__name__}")
    try:
        return builder(estimator)
    except (AttributeError, KeyError, IndexError, TypeError) as err:
        raise NotCompiled(f"{cls.__name__} is not as it is known: {type(err).__name__}: {err}") from err


def build_model(estimator: Any, signature: Signature) -> Kernel:
    """The kernels of a model whose batches fit ``signature``. Raises `NotCompiled`."""
    check_release()
    root = build(estimator)
    names = getattr(estimator, "feature_names_in_", None)
    if names is None or signature.layout != "columns" or list(map(str, names)) == list(signature.names):
        return root
    if not set(map(str, names)) <= set(signature.names):
        raise NotCompiled("its columns are not those of its signature")
    return Chain((Take(tuple(signature.names.index(str(name)) for name in names)), root))


def check_release() -> None:
    """Raise `NotCompiled` where the installed scikit-learn is none that the builders are tested with."""
    import sklearn

    release = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    if not TESTED[0] <= release <= TESTED[1]:
        tested = " to ".join(f"{major}.{minor}" for major, minor in TESTED)
        raise NotCompiled(f"scikit-learn {sklearn.__version__} is not among the tested releases ({tested})")


def _builders() -> dict[str, Build]:
    found: dict[str, Build] = {}
    for module in MODULES:
        found.update(import_module(f"serving.compile.{module}").BUILDERS)
    return found

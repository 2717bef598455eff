"""Support vector machines over dense rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.compile import NotCompiled
from serving.kernels import Kernel
from serving.kernels.vectors import Likeness, Pairs, VectorClassifier, VectorRegressor

FARTHEST = 1e5  # gamma * distance² of a support vector from the middle; beyond, distances by products lose 1e-10


def _likeness(estimator: Any) -> Likeness:
    if estimator.kernel not in ("linear", "poly", "rbf", "sigmoid") or estimator._sparse:
        raise NotCompiled(f"{type(estimator).__name__} over sparse rows or with a kernel of its own")
    vectors = np.asarray(estimator.support_vectors_, np.float64)
    gamma, centre = float(estimator._gamma), np.zeros(vectors.shape[1])
    if estimator.kernel == "rbf" and len(vectors):
        centre = vectors.mean(axis=0)
        vectors = vectors - centre
        if not gamma * np.square(vectors).sum(axis=1).max() < FARTHEST:
            raise NotCompiled("its support vectors lie too far apart for its gamma; are its inputs scaled?")
    return Likeness(estimator.kernel, vectors, centre, gamma, int(estimator.degree), float(estimator.coef0))


def regressor(estimator: Any) -> Kernel:
    return VectorRegressor(_likeness(estimator), estimator._dual_coef_[0], float(estimator._intercept_[0]))


def classifier(estimator: Any) -> Kernel:
    """Probabilities only where it was fitted with them, in the way of old: by libsvm itself."""
    labels = tuple(estimator.classes_.tolist())
    counts = tuple(int(count) for count in estimator._n_support)
    pairs = Pairs(_likeness(estimator), estimator._dual_coef_, estimator._intercept_, counts)
    several = len(labels) > 2 and estimator.decision_function_shape == "ovr"
    with_probabilities = hasattr(estimator, "predict_proba")
    slopes = estimator._probA if with_probabilities else np.zeros(0)
    offsets = estimator._probB if with_probabilities else np.zeros(0)
    return VectorClassifier(pairs, labels, several, several and bool(estimator.break_ties), slopes, offsets)


BUILDERS = {"SVC": classifier, "NuSVC": classifier, "SVR": regressor, "NuSVR": regressor}

"""Voting, calibration, and what else puts models around models."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.compile import NotCompiled, build
from serving.kernels import Kernel
from serving.kernels.columns import Chain
from serving.kernels.ensembles import (
    Calibrated,
    Decision,
    Majority,
    MeanCalibrated,
    MeanProbabilities,
    MeanValues,
    Probabilities,
    Sigmoid,
    Steps,
    Thresholded,
)
from serving.kernels.models import Classifier


def _weights(estimator: Any) -> np.ndarray | None:
    weights = estimator._weights_not_none
    return None if weights is None else np.asarray(weights)


def voting_classifier(estimator: Any) -> Kernel:
    """Soft: mean probabilities. Hard: votes."""
    members = tuple(build(member) for member in estimator.estimators_)
    labels, weights = tuple(estimator.classes_.tolist()), _weights(estimator)
    if estimator.voting == "soft":
        return MeanProbabilities(members, labels, weights)
    return Majority(members, labels, np.ones(len(members)) if weights is None else weights)


def voting_regressor(estimator: Any) -> Kernel:
    return MeanValues(tuple(build(member) for member in estimator.estimators_), _weights(estimator))


# --- calibration -----------------------------------------------------------------------------------------------------


def calibrated(estimator: Any) -> Kernel:
    """Sigmoid or isotonic, over one model or over those of each fold."""
    labels = tuple(estimator.classes_.tolist())
    members = tuple(_calibrated(member) for member in estimator.calibrated_classifiers_)
    return MeanCalibrated(members, labels)


def _calibrated(member: Any) -> Kernel:
    classes = member.classes
    positions = np.searchsorted(classes, member.estimator.classes_)
    if len(classes) == 2:
        positions = positions[:1] + 1  # one curve, of the second class's score
    curves = tuple(_curve(calibrator) for calibrator in member.calibrators)
    if len(curves) != len(positions):
        raise NotCompiled("a fold of its calibration does not have all classes")
    return Calibrated(_response(member.estimator), curves, tuple(positions.tolist()), len(classes))


def _curve(calibrator: Any) -> Kernel:
    kind = type(calibrator).__name__
    if kind == "_SigmoidCalibration":
        return Sigmoid(float(calibrator.a_), float(calibrator.b_))
    if kind != "IsotonicRegression":
        raise NotCompiled(f"calibration by {kind}")
    scores, values = calibrator.X_thresholds_, calibrator.y_thresholds_
    if scores.dtype != np.float64 or values.dtype != np.float64:
        raise NotCompiled("isotonic calibration of scores that are no float64")
    return Steps(scores, values)


def _response(estimator: Any) -> Kernel:
    """What scikit-learn calibrates: the decision function where there is one, else the probabilities."""
    model = build(estimator)
    return _decision(model) if hasattr(estimator, "decision_function") else Probabilities(model)


def _decision(model: Kernel) -> Kernel:
    if isinstance(model, Chain):
        return Chain((*model.steps[:-1], _decision(model.steps[-1])))
    if hasattr(model, "decision"):
        return Decision(model)
    if isinstance(model, Classifier):
        return model.score
    raise NotCompiled(f"there is no kernel for the decision function of {type(model).__name__}")


def thresholded(estimator: Any) -> Kernel:
    """FixedThresholdClassifier over probabilities, the model's own; without a label, of the second class."""
    if estimator.response_method == "decision_function":
        raise NotCompiled("FixedThresholdClassifier over a decision function")
    inner = getattr(estimator, "estimator_", estimator.estimator)
    if not hasattr(inner, "predict_proba"):
        raise NotCompiled("FixedThresholdClassifier over a model without probabilities")
    labels = tuple(inner.classes_.tolist())
    positive = 1 if estimator.pos_label is None else labels.index(estimator.pos_label)
    threshold = 0.5 if estimator.threshold == "auto" else float(estimator.threshold)
    return Thresholded(build(inner), labels, positive, threshold)


def frozen(estimator: Any) -> Kernel:
    """FrozenEstimator is the model in it."""
    return build(estimator.estimator)


BUILDERS = {
    "VotingClassifier": voting_classifier,
    "VotingRegressor": voting_regressor,
    "CalibratedClassifierCV": calibrated,
    "FixedThresholdClassifier": thresholded,
    "FrozenEstimator": frozen,
}

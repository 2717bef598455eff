"""Linear models and multilayer perceptrons."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.compile import NotCompiled
from serving.kernels import Kernel
from serving.kernels.linear import Layers, Linear
from serving.kernels.models import Classifier, Values


def _linear(estimator: Any) -> Linear:
    return Linear(np.asarray(estimator.coef_), np.asarray(estimator.intercept_))


def regressor(estimator: Any) -> Kernel:
    """``x @ coef + intercept``."""
    if not isinstance(estimator.coef_, np.ndarray):
        raise NotCompiled(f"{type(estimator).__name__} with sparse coefficients")
    return Values(_linear(estimator))


def logistic(estimator: Any) -> Kernel:
    """Two classes: expit of the one score. More: softmax over theirs."""
    labels = tuple(estimator.classes_.tolist())
    return Classifier(_linear(estimator), labels, link="softmax" if len(labels) > 2 else "expit")


def one_vs_rest(estimator: Any) -> Kernel:
    """SGDClassifier: expit of every score where its loss is the logarithm; other losses give labels only."""
    loss = getattr(estimator, "loss", None)
    if loss == "modified_huber":
        raise NotCompiled("SGDClassifier with loss='modified_huber'")
    link = "one_vs_rest" if loss == "log_loss" else "labels_only"
    return Classifier(_linear(estimator), tuple(estimator.classes_.tolist()), link=link)


def labels_only(estimator: Any) -> Kernel:
    """Classifiers that give no probabilities."""
    if getattr(estimator.classes_, "ndim", 0) != 1:
        raise NotCompiled(f"{type(estimator).__name__} with several outputs")
    return Classifier(_linear(estimator), tuple(estimator.classes_.tolist()), link="labels_only")


def _layers(estimator: Any, last: str) -> Layers:
    hidden = [estimator.activation] * (len(estimator.coefs_) - 1)
    if last == "exp":
        raise NotCompiled("MLPRegressor with loss='poisson'")
    return Layers(tuple(estimator.coefs_), tuple(estimator.intercepts_), (*hidden, last))


def perceptron_regressor(estimator: Any) -> Kernel:
    return Values(_layers(estimator, estimator.out_activation_))


def perceptron_classifier(estimator: Any) -> Kernel:
    """Its output layer gives probabilities; that of two classes has one output, compared with one half."""
    if estimator.out_activation_ == "logistic" and len(estimator.classes_) != 2:
        raise NotCompiled("MLPClassifier with several labels a row")
    from serving.kernels.linear import SecondClass

    layers = _layers(estimator, estimator.out_activation_)
    labels = tuple(estimator.classes_.tolist())
    return SecondClass(layers, labels) if estimator.out_activation_ == "logistic" else Classifier(layers, labels)


REGRESSORS = (
    *("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "SGDRegressor"),
    *("BayesianRidge", "ARDRegression", "HuberRegressor", "Lars", "LarsCV", "LassoLars", "LassoLarsCV", "LinearSVR"),
    *("OrthogonalMatchingPursuit", "PassiveAggressiveRegressor", "TheilSenRegressor", "QuantileRegressor"),
    *("MultiTaskLasso", "MultiTaskElasticNet"),
)

BUILDERS = {
    **dict.fromkeys(REGRESSORS, regressor),
    "LogisticRegression": logistic,
    "LogisticRegressionCV": logistic,
    "SGDClassifier": one_vs_rest,
    **dict.fromkeys(("RidgeClassifier", "RidgeClassifierCV", "LinearSVC", "Perceptron"), labels_only),
    "PassiveAggressiveClassifier": labels_only,
    "MLPClassifier": perceptron_classifier,
    "MLPRegressor": perceptron_regressor,
}

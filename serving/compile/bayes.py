"""Naive Bayes."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.kernels import Kernel
from serving.kernels.bayes import Above, Gaussians, Posterior
from serving.kernels.columns import Chain
from serving.kernels.linear import Linear


def _posterior(score: Kernel, estimator: Any) -> Kernel:
    return Posterior(score, tuple(estimator.classes_.tolist()))


def gaussian(estimator: Any) -> Kernel:
    variances = estimator.var_
    constants = np.array([-0.5 * np.sum(np.log(2.0 * np.pi * variance)) for variance in variances])
    return _posterior(Gaussians(np.log(estimator.class_prior_), constants, estimator.theta_, variances), estimator)


def multinomial(estimator: Any) -> Kernel:
    return _posterior(Linear(estimator.feature_log_prob_, estimator.class_log_prior_), estimator)


def complement(estimator: Any) -> Kernel:
    """The priors count only where there is a single class."""
    several = len(estimator.classes_) > 1
    priors = np.zeros(len(estimator.classes_)) if several else estimator.class_log_prior_
    return _posterior(Linear(estimator.feature_log_prob_, priors), estimator)


def bernoulli(estimator: Any) -> Kernel:
    present = estimator.feature_log_prob_
    absent = np.log(1 - np.exp(present))
    score = Linear(present - absent, estimator.class_log_prior_ + absent.sum(axis=1))
    if estimator.binarize is None:
        return _posterior(score, estimator)
    return _posterior(Chain((Above(float(estimator.binarize)), score)), estimator)


BUILDERS = {
    "GaussianNB": gaussian,
    "MultinomialNB": multinomial,
    "ComplementNB": complement,
    "BernoulliNB": bernoulli,
}

"""Family: what a kind of model has to say for itself, so that one command can train them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

from serving.tensors import Prediction
from training import pictures
from training.data import Data, Rows
from training.evaluation import classification
from training.flavor import ScikitLearn
from training.gate import Rule

Params = Mapping[str, Any]


class Estimator(Protocol):
    """What `Family.make` gives: scikit-learn's habits, as far as they are needed."""

    def fit(self, inputs: Any, labels: np.ndarray) -> Any:
        """Learn from the rows; returns the fitted model, as a rule itself. What comes pretrained learns nothing."""


class Flavor(Protocol):
    """How models of a family answer, and how they are written to MLflow and read back."""

    def predict(self, model: Any, inputs: Any) -> Prediction:
        """The model's own answers, computed as a client will get them."""

    def log(self, model: Any, inputs: Any, class_names: tuple[str, ...]) -> str:
        """Log the model under the active run, with signature and input example off ``inputs``; returns its model id."""

    def load(self, folder: Path) -> Any:
        """The model that `log` wrote, from a folder of its files. May raise anything."""


@dataclass(frozen=True)
class About:
    """What people should know of a fitted model before they use it: said, logged, and written on its version."""

    words: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Family:
    """What is particular to a family. All that has a default is that of a classifier made with scikit-learn."""

    name: str  # the registered model's
    data: Callable[[], Data]  # the same rows and the same split at every call
    candidates: tuple[Params, ...]
    make: Callable[[Params, int], Estimator]  # one candidate's parameters and a seed: the same model at every call
    rules: tuple[Rule, ...]  # what the gate asks; the first also chooses the best candidate, the next break its ties
    # Of the cross-validation of the candidates. 0: each candidate is judged once, on a part of the training rows that
    # is kept aside for that; a single candidate not at all.
    folds: int = 5
    flavor: Flavor = field(default_factory=ScikitLearn)
    # Metrics by name, of what a model answered for the rows; must have each of the rules' metrics.
    measure: Callable[[Prediction, Rows, tuple[str, ...]], dict[str, float]] = classification
    # Pictures of the fitted model on the holdout, by file name.
    pictures: Callable[[Any, Data], dict[str, Figure]] = pictures.of_classifier
    # The best candidate, not yet fitted, with what it learns from its trial: the rows that it was tried on, and what
    # models that had not seen them answered. Not called for a single candidate without folds.
    settle: Callable[[Estimator, Rows, Prediction], Estimator] = lambda estimator, *_: estimator
    threads: int | None = None  # of OpenMP, while it is trained; None: as many as there are cores
    # What there is to know of the fitted model beyond its metrics; None for nothing.
    about: Callable[[Any], About | None] = lambda _: None
    compiles: bool = True  # whether its versions may have a compiled form: those of scikit-learn

    def score(self, model: Any, rows: Rows, class_names: tuple[str, ...]) -> dict[str, float]:
        """The metrics of ``model`` on ``rows``."""
        return self.measure(self.flavor.predict(model, rows.inputs), rows, class_names)

"""How good a model is: metrics of its answers, and cross-validation of a candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support
from sklearn.model_selection import StratifiedKFold

from serving.tensors import Prediction
from training.data import Data, Rows

if TYPE_CHECKING:
    from training.family import Family, Params


@dataclass(frozen=True)
class Trial:
    """One candidate, cross-validated."""

    params: Params
    folds: tuple[dict[str, float], ...]  # each fold's metrics

    @property
    def metrics(self) -> dict[str, float]:
        """Each metric's mean over the folds."""
        return {name: float(np.mean([fold[name] for fold in self.folds])) for name in self.folds[0]}

    def spread(self, metric: str) -> float:
        """The metric's standard deviation over the folds."""
        return float(np.std([fold[metric] for fold in self.folds]))


def classification(prediction: Prediction, rows: Rows, class_names: tuple[str, ...]) -> dict[str, float]:
    """Accuracy, log loss, and precision and recall of each class. Labels are the positions of ``class_names``."""
    classes = list(range(len(class_names)))
    precision, recall, _, _ = precision_recall_fscore_support(
        rows.labels, prediction.values, labels=classes, zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(rows.labels, prediction.values)),
        "log_loss": float(log_loss(rows.labels, prediction.probabilities, labels=classes)),
        **{f"precision_{name}": float(value) for name, value in zip(class_names, precision, strict=True)},
        **{f"recall_{name}": float(value) for name, value in zip(class_names, recall, strict=True)},
    }


def cross_validate(
    family: Family, params: Params, data: Data, seed: int, after_fold: Callable[[], object] = lambda: None
) -> Trial:
    """Fit and measure the candidate on each fold of the training rows; every candidate gets the same folds."""
    folds = []
    splitter = StratifiedKFold(family.folds, shuffle=True, random_state=seed)
    for learn, check in splitter.split(np.zeros(len(data.train)), data.train.labels):
        rows = data.train.take(learn)
        model = family.make(params, seed).fit(rows.inputs, rows.labels)
        folds.append(family.score(model, data.train.take(check), data.class_names))
        after_fold()
    return Trial(params, tuple(folds))


def best(family: Family, trials: list[Trial]) -> Trial:
    """The trial that the family's rules put first; of equal ones the earliest."""
    return min(trials, key=lambda trial: [rule.cost(trial.metrics) for rule in family.rules])

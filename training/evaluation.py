"""How good a model is: metrics of its answers, and the trial of a candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support
from sklearn.model_selection import StratifiedKFold, train_test_split

from serving.tensors import Prediction
from training.data import Data, Rows

if TYPE_CHECKING:
    from training.family import Family, Params

VALIDATION = 0.2  # of the training rows, where candidates are judged once


@dataclass(frozen=True)
class Trial:
    """One candidate, and what it answered to rows that it had not learned from."""

    params: Params
    folds: tuple[dict[str, float], ...] = ()  # each fold's metrics; none of a candidate that has no other beside it
    rows: Rows | None = None  # of all folds, one after the other
    unseen: Prediction | None = None  # what was answered to them

    @property
    def metrics(self) -> dict[str, float]:
        """Each metric's mean over the folds."""
        if not self.folds:
            return {}
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


def attempts(family: Family) -> int:
    """How many models are fitted to choose the best candidate."""
    candidates = len(family.candidates)
    return candidates * (family.folds or (1 if candidates > 1 else 0))


def attempt(
    family: Family, params: Params, data: Data, seed: int, after_fold: Callable[[], object] = lambda: None
) -> Trial:
    """Fit and measure the candidate on each fold of the training rows; every candidate gets the same folds."""
    folds, checked, answers = [], [], []
    for learn, check in _folds(family, data, seed):
        rows, unseen = data.train.take(learn), data.train.take(check)
        model = family.make(params, seed).fit(rows.inputs, rows.labels)
        answer = family.flavor.predict(model, unseen.inputs)
        folds.append(family.measure(answer, unseen, data.class_names))
        checked.append(check)
        answers.append(answer)
        after_fold()
    return Trial(params, tuple(folds), data.train.take(np.concatenate(checked)), _joined(answers))


def best(family: Family, trials: list[Trial]) -> Trial:
    """The trial that the family's rules put first; of equal ones the earliest."""
    if len(trials) == 1:
        return trials[0]
    return min(trials, key=lambda trial: [rule.cost(trial.metrics) for rule in family.rules])


def _folds(family: Family, data: Data, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions among the training rows: to learn from, and to check with."""
    rows, labels = np.arange(len(data.train)), data.train.labels
    if family.folds:
        yield from StratifiedKFold(family.folds, shuffle=True, random_state=seed).split(rows, labels)
    elif len(family.candidates) > 1:
        yield tuple(train_test_split(rows, test_size=VALIDATION, random_state=seed, stratify=labels))


def _joined(answers: list[Prediction]) -> Prediction:
    values = np.concatenate([answer.values for answer in answers])
    if any(answer.probabilities is None for answer in answers):
        return Prediction(values)
    return Prediction(values, np.concatenate([answer.probabilities for answer in answers]))

"""The fraud family: is a card payment fraud? Made-up payments, or a table of the user's own (``--data FILE``).

A logistic regression is the baseline, and gradient boosting has to beat it. Both give probabilities; what is answered
is decided by a threshold, chosen where the errors cost least. It is chosen on the training rows, by what models
answered to them that had learned from the others (the folds), never on the holdout. The served model applies it itself
(`FixedThresholdClassifier`), so that MLflow's ``predict`` and the service name the same class.

The gate. For the made-up payments the limits are what the second best candidate reaches, with room for the 100 frauds
of the holdout. Of a table of the user's own nothing is known, so its limits are those of a model that has learned
anything at all: better than giving each payment the share of frauds as its probability, which has that share as its
average precision, finds 1 % of the frauds at 1 % of false alarms, and has a log loss that can be computed beforehand.
What is really wanted of it is the comparison with the version that it replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    precision_score,
    recall_score,
    roc_curve,
)
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from serving.tensors import Prediction
from training import pictures, table
from training.data import Data, Rows
from training.decision import Costs
from training.family import Family, Params
from training.flavor import ScikitLearn
from training.gate import Rule
from training.options import Options
from training.transactions import payments

LABEL = "fraud"
CLASS_NAMES = ("legitimate", "fraud")  # of the labels 0 and 1
PAYMENTS, SEED = 32_000, 0
HOLDOUT = 1 / 3
KINDS = 40  # of a text column; what is rarer counts as one kind
FALSE_POSITIVES = 0.01  # of the legitimate payments, at which the recall is compared

# In euro: the money that is gone, with what handling a chargeback costs, against a call to a customer who did nothing.
COSTS = Costs(missed=120.0, false_alarm=8.0)

RULES = (
    Rule("average_precision", limit=0.35, tolerance=0.03),
    Rule("recall_at_1pct_fpr", limit=0.6, tolerance=0.04),  # four of the 100 frauds
    Rule("log_loss", limit=0.035, tolerance=0.002, lower_is_better=True),  # 0.054 for who knows nothing
)

# What skops finds in these estimators and does not know to be harmless: types, a choice of columns, and trees.
TRUSTED = (
    "numpy.dtype",
    "numpy.number",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)


def made_up() -> Data:
    """Payments that never happened; a third of them is kept back."""
    return Data.split(payments(PAYMENTS, SEED), CLASS_NAMES, HOLDOUT)


def classifier(params: Params, seed: int) -> FixedThresholdClassifier:
    """One candidate, deciding as it would if its probabilities were true."""
    chosen = dict(params)
    build = {"logistic": logistic, "boosting": boosting}[chosen.pop("model")]
    model, threshold = build(chosen, seed), COSTS.fair_threshold
    return FixedThresholdClassifier(model, threshold=threshold, response_method="predict_proba")


def logistic(params: Params, seed: int) -> Pipeline:
    """Scaled numbers, their gaps as columns of their own, and a column for each kind of text."""
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    texts = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=KINDS, sparse_output=False)
    return make_pipeline(_columns(numbers, texts), LogisticRegression(**params, max_iter=2000, random_state=seed))


def boosting(params: Params, seed: int) -> Pipeline:
    """Texts as numbers; trees split them as they find it useful, and send gaps to the side that fits."""
    unknown = {"handle_unknown": "use_encoded_value", "unknown_value": -1}
    texts = OrdinalEncoder(**unknown, max_categories=KINDS, encoded_missing_value=-2)
    trees = HistGradientBoostingClassifier(**params, early_stopping=False, random_state=seed)
    return make_pipeline(_columns("passthrough", texts), trees)


def _columns(numbers: Any, texts: Any) -> ColumnTransformer:
    numeric, other = make_column_selector(dtype_include=np.number), make_column_selector(dtype_exclude=np.number)
    return ColumnTransformer([("numbers", numbers, numeric), ("texts", texts, other)])


def measure(prediction: Prediction, rows: Rows, class_names: tuple[str, ...]) -> dict[str, float]:
    """How well frauds are ranked, how true the probabilities are, and what the answers cost."""
    del class_names
    assert prediction.probabilities is not None
    scores, flagged = prediction.probabilities[:, 1], prediction.values == 1
    return {
        "average_precision": float(average_precision_score(rows.labels, scores)),
        "recall_at_1pct_fpr": recall_at(FALSE_POSITIVES, scores, rows.labels),
        "log_loss": float(log_loss(rows.labels, scores, labels=[0, 1])),
        "brier": float(brier_score_loss(rows.labels, scores)),
        "cost_per_1000": 1000 * COSTS.mean(flagged, rows.labels),
        "precision_fraud": float(precision_score(rows.labels, flagged, zero_division=0)),
        "recall_fraud": float(recall_score(rows.labels, flagged)),
        "flagged": float(flagged.mean()),
    }


def recall_at(false_positives: float, scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of the frauds that the best threshold finds which flags at most ``false_positives`` of the others."""
    wrong, right, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(right[wrong <= false_positives].max())


def settle(estimator: Any, rows: Rows, unseen: Prediction) -> FixedThresholdClassifier:
    """The candidate with the threshold that would have cost least on rows that its models had not seen."""
    assert unseen.probabilities is not None
    threshold = COSTS.best_threshold(unseen.probabilities[:, 1], rows.labels)
    return estimator.set_params(threshold=threshold)


def drawn(model: Any, data: Data) -> dict[str, Figure]:
    """Whom it finds, whether its probabilities are true, what a threshold costs, and what it leans on."""
    scores, labels = model.predict_proba(data.holdout.inputs)[:, 1], data.holdout.labels
    return {
        "precision_recall.png": pictures.precision_recall(scores, labels, model.threshold),
        "calibration.png": pictures.calibration(scores, labels),
        "cost_over_threshold.png": pictures.cost(scores, labels, model.threshold, COSTS),
        "feature_importance.png": pictures.importance(model, data, "average_precision"),
    }


def chance(data: Data) -> tuple[Rule, ...]:
    """The rules for a table of which nothing is known: better than the share of frauds as everyone's probability."""
    labels = data.holdout.labels
    share = float(labels.mean())
    guess = float(log_loss(labels, np.full(len(labels), data.train.labels.mean()), labels=[0, 1]))
    return (
        Rule("average_precision", limit=share, tolerance=0.03),
        Rule("recall_at_1pct_fpr", limit=FALSE_POSITIVES, tolerance=0.05),
        Rule("log_loss", limit=guess, tolerance=0.05 * guess, lower_is_better=True),
    )


def family(options: Options) -> Family:
    """Made-up payments, or those of ``options.data``. Raises `training.options.Unusable`, or OSError."""
    if options.data is None:
        return _family(made_up, RULES)
    own = Data.split(table.read(options.data, LABEL), CLASS_NAMES, HOLDOUT)
    return _family(lambda: own, chance(own))


def _family(data: Callable[[], Data], rules: tuple[Rule, ...]) -> Family:
    return Family(
        name="fraud",
        data=data,
        candidates=(
            {"model": "logistic", "C": 0.3},
            {"model": "boosting", "max_iter": 100, "learning_rate": 0.06, "max_leaf_nodes": 15},
            {"model": "boosting", "max_iter": 150, "learning_rate": 0.04, "max_leaf_nodes": 8},
        ),
        make=classifier,
        rules=rules,
        flavor=ScikitLearn(trusted=TRUSTED),
        measure=measure,
        pictures=drawn,
        settle=settle,
        threads=1,
    )

"""Pictures of a fitted classifier on the holdout."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.inspection import permutation_importance
from sklearn.metrics import confusion_matrix, precision_recall_curve

from training.data import Data
from training.decision import Costs

INK, PALE, STRONG = "#1f2933", "#9aa5b1", "#2563a8"
MOST_FEATURES = 20
SHUFFLES, SHUFFLED_ROWS = 5, 5000
CALIBRATED = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)  # where cases are rare, most of what matters is at the end


def of_classifier(model: Any, data: Data) -> dict[str, Figure]:
    """Which classes it takes for which, and how much it leans on each feature."""
    return {
        "confusion_matrix.png": confusion(model, data),
        "feature_importance.png": importance(model, data),
    }


def confusion(model: Any, data: Data) -> Figure:
    """Rows of each true class by predicted class, coloured by their share of the true class."""
    names = data.class_names
    counts = confusion_matrix(data.holdout.labels, model.predict(data.holdout.inputs), labels=range(len(names)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _canvas(f"Confusion matrix, {len(data.holdout)} holdout rows", width=5.6, height=5.2)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.tick_params(length=0)
    axes.hlines(np.arange(1, len(names)) - 0.5, -0.5, len(names) - 0.5, color="white", linewidth=2)
    axes.vlines(np.arange(1, len(names)) - 0.5, -0.5, len(names) - 0.5, color="white", linewidth=2)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        ink = "white" if share > 0.5 else INK if count else PALE
        axes.text(column, row, f"{count}\n{share:.0%}", ha="center", va="center", color=ink, fontsize=12)
    return figure


def precision_recall(scores: np.ndarray, labels: np.ndarray, threshold: float) -> Figure:
    """How many of those that are flagged are cases, by how many of the cases are; marked where the threshold is."""
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    figure, axes = _canvas(f"Precision and recall, {len(labels)} holdout rows", width=6, height=5)
    axes.step(recall, precision, where="post", color=STRONG)
    at = min(int(np.searchsorted(thresholds, threshold)), len(thresholds) - 1)
    axes.plot(recall[at], precision[at], "o", color=INK)
    axes.annotate(f"threshold {threshold:.3f}", (recall[at], precision[at]), (8, 8), textcoords="offset points")
    axes.axhline(labels.mean(), color=PALE, linestyle="--", label="by chance")
    axes.set_xlabel("recall: share of the cases that are flagged")
    axes.set_ylabel("precision: share of the flagged that are cases")
    axes.legend(frameon=False)
    return figure


def calibration(scores: np.ndarray, labels: np.ndarray) -> Figure:
    """How often it is a case where a probability is given; a model that is right about itself lies on the line."""
    edges = np.unique(np.quantile(scores, CALIBRATED))
    places = np.searchsorted(edges, scores, side="right")
    groups = [places == k for k in range(len(edges) + 1)]
    points = [(scores[group].mean(), labels[group].mean(), group.sum()) for group in groups if group.any()]
    given, seen, rows = map(np.array, zip(*points, strict=True))
    figure, axes = _canvas(f"Calibration, {len(labels)} holdout rows", width=6, height=5)
    axes.plot([0, 1], [0, 1], color=PALE, linestyle="--")
    spread = np.sqrt(np.maximum(seen * (1 - seen), 1e-12) / rows)
    axes.errorbar(given, seen, yerr=2 * spread, fmt="o-", color=STRONG, ecolor=PALE, capsize=3)
    for axis in (axes.set_xscale, axes.set_yscale):
        axis("symlog", linthresh=0.01)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability that was given, mean of the group")
    axes.set_ylabel("share of cases, ± two standard errors")
    return figure


def cost(scores: np.ndarray, labels: np.ndarray, threshold: float, costs: Costs) -> Figure:
    """What a thousand rows cost by the threshold, beside flagging nobody."""
    thresholds, each = costs.curve(scores, labels)
    figure, axes = _canvas("Cost over threshold", width=6, height=5)
    axes.step(thresholds, 1000 * each, where="mid", color=STRONG)
    axes.axhline(1000 * each[0], color=PALE, linestyle="--", label="nobody flagged")
    axes.axvline(threshold, color=INK, linewidth=0.8, label=f"chosen: {threshold:.3f}")
    axes.set_xscale("log")
    axes.set_xlim(1e-3, 1)
    axes.set_ylim(0, 2.5 * 1000 * each[0])
    axes.set_xlabel("least probability that is flagged")
    axes.set_ylabel(f"cost of 1000 rows; a miss {costs.missed:g}, a false alarm {costs.false_alarm:g}")
    axes.legend(frameon=False)
    return figure


def importance(model: Any, data: Data, scoring: str = "neg_log_loss") -> Figure:
    """How much worse a metric of scikit-learn's gets when one feature's values are shuffled among the holdout rows."""
    rows = data.holdout.sample(SHUFFLED_ROWS)
    found = permutation_importance(model, rows.inputs, rows.labels, scoring=scoring, n_repeats=SHUFFLES, random_state=0)
    order = np.argsort(found.importances_mean)[-MOST_FEATURES:]
    names = [data.rows.batch().names[position] for position in order]
    figure, axes = _canvas("Feature importance", width=7, height=1.6 + 0.5 * len(order))
    axes.barh(
        names,
        found.importances_mean[order],
        xerr=found.importances_std[order],
        color=STRONG,
        error_kw={"ecolor": PALE, "capsize": 3},
        height=0.6,
    )
    metric = scoring.removeprefix("neg_").replace("_", " ")
    turn = "rise" if scoring.startswith("neg_") else "fall"
    axes.set_xlabel(f"{turn} of the holdout's {metric} when shuffled, mean ± deviation of {SHUFFLES}")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="x", color=PALE, alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    return figure


def _canvas(title: str, width: float, height: float) -> tuple[Figure, Any]:
    """A figure with one bare set of axes. No pyplot: it would look for a display, and keep every figure alive."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=12)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure, axes

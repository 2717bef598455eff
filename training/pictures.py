"""Pictures of a fitted classifier on the holdout."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.inspection import permutation_importance
from sklearn.metrics import confusion_matrix

from training.data import Data

INK, PALE, STRONG = "#1f2933", "#9aa5b1", "#2563a8"
MOST_FEATURES = 20
SHUFFLES = 5


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


def importance(model: Any, data: Data) -> Figure:
    """How much worse the log loss gets when one feature's values are shuffled among the holdout rows."""
    found = permutation_importance(
        model, data.holdout.inputs, data.holdout.labels, scoring="neg_log_loss", n_repeats=SHUFFLES, random_state=0
    )
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
    axes.set_xlabel(f"rise of the holdout's log loss when shuffled, mean ± deviation of {SHUFFLES}")
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

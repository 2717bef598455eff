"""Similarity: pairs of sentences with what people would say of them, and how well vectors see it the same way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from serving.tensors import Prediction
from training.data import Data, Rows

SAME = 4  # the grade from which two sentences say the same
LEARN = "kitchen"  # the topic whose pairs are shown as examples; the others are the holdout


@cache
def topics() -> dict[str, list[tuple[int, str, str]]]:
    """Pairs by topic: a grade from 0, nothing in common, to 5, the same; and two sentences."""
    file = Path(__file__).with_name("sentences.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    return {topic: [(grade, one, other) for grade, one, other in pairs] for topic, pairs in content["topics"].items()}


def pairs() -> Data:
    """Two rows for each pair, one after the other; the label of both is the grade of the pair."""
    graded = [(topic, *pair) for topic, many in topics().items() for pair in many]
    texts = [text for _, _, one, other in graded for text in (one, other)]
    grades = np.repeat([grade for _, grade, _, _ in graded], 2).astype(np.int64)
    learn = np.repeat([topic == LEARN for topic, *_ in graded], 2)
    rows = Rows(pd.DataFrame({"text": np.array(texts, dtype=object)}), grades)
    return Data(rows, np.flatnonzero(learn), np.flatnonzero(~learn))


def varied() -> list[str]:
    """All sentences, and of every third topic all in one text, some of which are longer than a model reads."""
    sentences = [[text for _, *two in many for text in two] for many in topics().values()]
    return [*(text for many in sentences for text in many), *(" ".join(many) for many in sentences[::3])]


def quality(prediction: Prediction, rows: Rows, _: Sequence[str] = ()) -> dict[str, float]:
    """How the vectors of pairs, as `pairs` gives them, fit their grades.

    ``retrieval_at_1``: of the sentences that have another way to say them, the share whose most similar one among all
    second sentences is that; ``spearman``: the rank correlation of similarity and grade.
    """
    first, second, grades = _two(prediction, rows)
    same = np.flatnonzero(grades >= SAME)
    found = (first[same] @ second.T).argmax(axis=1)
    return {
        "retrieval_at_1": float((found == same).mean()),
        "spearman": float(spearmanr((first * second).sum(axis=1), grades).statistic),
    }


def figure(prediction: Prediction, rows: Rows) -> Figure:
    """The similarity of each pair by its grade."""
    first, second, grades = _two(prediction, rows)
    drawn = Figure(figsize=(6.4, 4), layout="constrained", dpi=150)
    axes: Any = drawn.add_subplot()
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(grades))
    axes.plot(grades + jitter, (first * second).sum(axis=1), "o", color="#2563a8", alpha=0.6, markersize=5)
    axes.set_xlabel("grade: 5 says the same, 0 has nothing in common")
    axes.set_ylabel("cosine of the vectors")
    axes.set_title(f"Similarity of {len(grades)} pairs", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def _two(prediction: Prediction, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vectors = np.asarray(prediction.values)
    return vectors[0::2], vectors[1::2], rows.labels[0::2]

"""The iris family: which of three species a flower is, from the length and width of its sepals and petals."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from training.data import Data, Rows
from training.family import Family, Params
from training.gate import Rule
from training.options import Options


def flowers() -> Data:
    """Fisher's 150 flowers, which come with scikit-learn; a third of each species is kept back."""
    bunch = load_iris(as_frame=True)
    rows = Rows(bunch.data, bunch.target.to_numpy(np.int64))
    return Data.split(rows, tuple(str(name) for name in bunch.target_names), holdout=1 / 3)


def forest(params: Params, seed: int) -> RandomForestClassifier:
    """One thread: on 100 flowers more of them cost time, and a served model must not start its own."""
    return RandomForestClassifier(**params, random_state=seed, n_jobs=1)


FAMILY = Family(
    name="iris",
    data=flowers,
    candidates=(
        {"n_estimators": 100, "max_depth": None, "min_samples_leaf": 1},
        {"n_estimators": 100, "max_depth": 4, "min_samples_leaf": 2},
        {"n_estimators": 100, "max_depth": 3, "min_samples_leaf": 5},
    ),
    make=forest,
    rules=(
        Rule("accuracy", limit=0.9, tolerance=0.02),  # one flower of the 50
        Rule("log_loss", limit=0.4, tolerance=0.05, lower_is_better=True),
    ),
)


def family(_: Options) -> Family:
    """The flowers have no options."""
    return FAMILY

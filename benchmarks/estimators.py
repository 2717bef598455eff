"""What compilation gives for each kind of scikit-learn model: fitted here, then compiled and proven as prepare does it.

Prints a table and writes ``docs/ESTIMATORS.md``. With ``ONLY=forest,svc`` in the environment it takes the models whose
names contain one of these words, and only prints.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from sklearn import datasets
from sklearn.pipeline import make_pipeline
from sklearn.utils import all_estimators
from threadpoolctl import threadpool_limits

from benchmarks.report import Conditions, shown, table
from serving import prepare
from serving.bundle import Compilation
from serving.settings import ROOT
from serving.transforms import tabular

DOCUMENT = ROOT / "docs" / "ESTIMATORS.md"
COUNT, OWN_ROWS = 400, 200  # people, and how many rows the proof is given as the version's own at most
NUMBERS, TEXTS = ["age", "income", "visits"], ["city", "job"]
TWO, THREE, WINE, NUMBER, DIGITS = "breast cancer", "iris, texts", "wine, texts", "diabetes", "digits"
GAPS, TARGETS, PEOPLE = ", with gaps", ", two targets", "people, with gaps"
FOREST, BOOSTING, LOGISTIC = "RandomForestClassifier", "HistGradientBoostingClassifier", "LogisticRegression"
KNOWN = dict(all_estimators())
PLAIN = {  # as scikit-learn makes them, and what they are fitted to
    FOREST: (TWO, THREE, "iris" + TARGETS),
    BOOSTING: (TWO, THREE, TWO + GAPS),
    **dict.fromkeys(("GradientBoostingClassifier", LOGISTIC, "LinearSVC", "MLPClassifier", "SVC"), (TWO, THREE)),
    **dict.fromkeys(("NuSVC", "KNeighborsClassifier", "AdaBoostClassifier", "BaggingClassifier"), (THREE,)),
    **dict.fromkeys(("LinearDiscriminantAnalysis", "QuadraticDiscriminantAnalysis"), (THREE,)),
    **dict.fromkeys(("DecisionTreeClassifier", "GaussianNB", "MultinomialNB", "ComplementNB"), (DIGITS,)),
    "ExtraTreesClassifier": (WINE,),
    **dict.fromkeys(("RandomForestRegressor", "LinearRegression"), (NUMBER, NUMBER + TARGETS)),
    **dict.fromkeys(("ExtraTreesRegressor", "DecisionTreeRegressor", "GradientBoostingRegressor"), (NUMBER,)),
    **dict.fromkeys(("HistGradientBoostingRegressor", "Ridge", "Lasso", "ElasticNet"), (NUMBER,)),
    **dict.fromkeys(("MLPRegressor", "SVR", "KNeighborsRegressor", "GaussianProcessRegressor"), (NUMBER,)),
}
Outcome = tuple[Compilation | None, str | None]  # how the compiled form compares, or why it stays native
HEADER = ["", "data", "answers", "rows", "1 row: native", "compiled", "ratio", "1,000: native", "compiled", "ratio"]


@dataclass(frozen=True)
class Case:
    """An estimator that is not fitted yet, and which of the `data` it is fitted to."""

    name: str
    data: str
    estimator: Any


@cache
def data(name: str) -> tuple[Any, np.ndarray]:
    """Rows (an array or a frame) and targets."""
    if name.startswith("people"):
        return _people(gaps=name.endswith(GAPS))
    loaded = getattr(datasets, f"load_{name.split(',')[0].replace(' ', '_')}")()
    rows, targets = loaded.data, loaded.target
    if name == DIGITS:
        rows, targets = rows[:600, 18:30], targets[:600]
    if name.endswith(TARGETS):
        targets = np.c_[targets, targets > np.median(targets)]
    if name.endswith("texts"):
        targets = loaded.target_names[targets]
    if name.endswith(GAPS):
        rows = np.where(np.random.default_rng(0).random(rows.shape) < 0.1, np.nan, rows)
    return rows, targets


def _people(*, gaps: bool) -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers, a boolean and texts, one of which is rare; with gaps a tenth of all but the boolean is missing."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"age": random.normal(40, 12, COUNT).round(1), "income": random.lognormal(10, 1, COUNT)})
    frame["visits"] = random.integers(0, 9, COUNT)
    frame["member"] = random.random(COUNT) < 0.5
    frame["city"] = random.choice(["Bern", "Basel", "Genf", "Chur"], COUNT, p=[0.5, 0.3, 0.15, 0.05])
    frame["job"] = random.choice(["a", "b", "c"], COUNT)
    targets = np.array(["lo", "mid", "hi"])[(frame.age > 40).astype(int) + (frame.city == "Bern")]
    for name in (*NUMBERS, *TEXTS) if gaps else ():
        frame[name] = frame[name].mask(random.random(COUNT) < 0.1)
    return frame, targets


def as_sent(rows: Any) -> list[Any]:
    """Rows as a caller writes them in JSON: a gap is null."""
    gone = pd.isna(rows)
    if isinstance(rows, pd.DataFrame):
        return rows.astype(object).mask(gone, None).to_dict("records")
    sent: Any = np.where(gone, None, rows.astype(object))
    return sent.tolist()


# --- models ----------------------------------------------------------------------------------------------------------


def new(name: str, *args: Any, **options: Any) -> Any:
    """An estimator or transformer of scikit-learn's by its name, seeded."""
    made = KNOWN[name](*args, **options)
    return made.set_params(random_state=0) if "random_state" in made.get_params() else made


def cases() -> list[Case]:
    """Every kind of model that the compiler knows, and some that it does not."""
    plain = [Case(name, data, new(name)) for name, fitted in PLAIN.items() for data in fitted]
    return sorted([*plain, *_options(), *_ensembles(), *_pipelines()], key=lambda case: case.name)


def _options() -> Iterator[Case]:
    for loss in ("hinge", "log_loss", "modified_huber"):
        yield Case(f"SGDClassifier, {loss}", THREE, new("SGDClassifier", loss=loss))
    for data in (TWO, THREE):
        yield Case("SVC, probability", data, new("SVC", probability=True))
    yield Case("BernoulliNB", DIGITS, new("BernoulliNB", binarize=8.0))
    yield Case(f"{BOOSTING}, categorical splits", DIGITS, new(BOOSTING, categorical_features=[1, 2, 3]))
    regressor = "HistGradientBoostingRegressor"
    yield Case(f"{regressor}, Poisson", NUMBER + GAPS, new(regressor, loss="poisson"))
    yield Case(f"{LOGISTIC}, L1", TWO, new(LOGISTIC, l1_ratio=1.0, solver="liblinear"))


def _ensembles() -> Iterator[Case]:
    linear = make_pipeline(new("StandardScaler"), new(LOGISTIC))
    members = [("linear", linear), ("forest", new(FOREST)), ("bayes", new("GaussianNB"))]
    for voting in ("soft", "hard"):
        yield Case(f"VotingClassifier, {voting}", THREE, new("VotingClassifier", members, voting=voting))
    members = [("ridge", new("Ridge")), ("boosting", new("GradientBoostingRegressor"))]
    yield Case("VotingRegressor", NUMBER, new("VotingRegressor", members))
    for data, method, base in ((THREE, "sigmoid", new("LinearSVC")), (TWO, "isotonic", linear)):
        yield Case(f"CalibratedClassifierCV, {method}", data, new("CalibratedClassifierCV", base, method=method))


def _pipelines() -> Iterator[Case]:
    for scaler in (new("StandardScaler"), new("MinMaxScaler", clip=True), new("RobustScaler"), new("PCA", 5)):
        yield Case(f"pipeline: {type(scaler).__name__}, {LOGISTIC}", WINE, make_pipeline(scaler, new(LOGISTIC)))
    numbers = make_pipeline(new("SimpleImputer", strategy="median"), new("StandardScaler"))
    texts = make_pipeline(new("SimpleImputer", strategy="most_frequent"), new("OneHotEncoder", handle_unknown="ignore"))
    filled = _columns(numbers, texts)
    for name in (FOREST, LOGISTIC):
        yield Case(f"pipeline: impute, scale, one-hot, {name}", PEOPLE, make_pipeline(filled, new(name)))
    refusing = make_pipeline(_columns(new("RobustScaler"), new("OneHotEncoder")), new(FOREST))
    yield Case(f"pipeline: scale, one-hot that refuses the unknown, {FOREST}", "people", refusing)
    ordinal = new("OrdinalEncoder", handle_unknown="use_encoded_value", unknown_value=np.nan)
    numbered = make_pipeline(_columns("passthrough", ordinal), new(BOOSTING, categorical_features=[3, 4]))
    yield Case(f"pipeline: passthrough, ordinal, {BOOSTING}", PEOPLE, numbered)
    own = new("FunctionTransformer", np.log1p)
    yield Case(f"pipeline: a function of its own, {LOGISTIC}", THREE, make_pipeline(own, new(LOGISTIC)))


def _columns(numbers: Any, texts: Any) -> Any:
    """The rest, which is a boolean, passes through."""
    return new("ColumnTransformer", [("n", numbers, NUMBERS), ("t", texts, TEXTS)], remainder="passthrough")


def chosen(only: str) -> list[Case]:
    """The cases whose names contain a word of ``only``, or all. Raises SystemExit for a word that is in none."""
    every = cases()
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    if unknown := [word for word in words if not any(word in case.name.lower() for case in every)]:
        raise SystemExit(f"ONLY names {unknown[0]!r}, which no model is called")
    return [case for case in every if not words or any(word in case.name.lower() for word in words)]


def measured(case: Case) -> Outcome:
    """Fit it, and hand it to the code of prepare as MLflow would have left it."""
    from mlflow.models import infer_signature

    rows, targets = data(case.data)
    estimator = case.estimator.fit(rows, targets)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "model.pkl").write_bytes(pickle.dumps(estimator))
        flavors = {"sklearn": {"pickled_model": "model.pkl"}}
        model = {"flavors": flavors, "signature": infer_signature(rows).to_dict()}
        description, native = prepare._convert("sklearn", model, folder, folder)
        sent, _ = tabular.parse(description.signature, as_sent(rows[:OWN_ROWS]))
        return prepare._compile(folder, description.signature, native, [sent])


def document(outcomes: list[tuple[Case, Outcome]], here: Conditions) -> str:
    """The whole page."""
    compiled = [cells(case, compilation) for case, (compilation, _) in outcomes if compilation is not None]
    native = [f"- {case.name}, {case.data}: {why}" for case, (compilation, why) in outcomes if compilation is None]
    reasons = ["## Native\n\nThese are served by scikit-learn itself, for the reason beside them:\n", *native, ""]
    return "\n".join([_head(here), "## Compiled\n", table(HEADER, compiled), *(reasons if native else [])])


def cells(case: Case, proof: Compilation) -> list[str]:
    """A line of the table: microseconds for one row, milliseconds for a thousand."""
    exact = "exact" if proof.exact else f"{proof.largest_difference:.1g} of {proof.tolerance:g}"
    found = [case.name, case.data, exact, f"{proof.rows:,}"]
    for size, factor, unit in (("1", 1e6, " µs"), ("1000", 1e3, " ms")):
        native, compiled = proof.native_s[size], proof.compiled_s[size]
        found += [shown(native * factor, unit), shown(compiled * factor, unit), shown(native / compiled, " ×")]
    return found


def _head(here: Conditions) -> str:
    return (
        "# Estimators\n\n"
        "What compilation gives for each kind of scikit-learn model. Each was fitted to a small data set with\n"
        "scikit-learn's defaults (a forest has 100 trees), then compiled and proven by the code that prepares a\n"
        "version for serving. `/model/info` says the same of the model that is served.\n\n"
        "- *exact*: every label, probability and value had the same bits as scikit-learn's own; otherwise the\n"
        "  largest difference, relative to the larger of 1 and the value, and the tolerance within which it had to\n"
        "  be: 1e-09 for kernels of our own, 1e-06 for what skl2onnx converts. Where labels are all that can be\n"
        "  seen of operations that are not scikit-learn's own, it is *0 of* a tolerance. *rows* were compared, singly\n"
        "  and in batches: known ones, on and beside thresholds, at extremes, with gaps and unknown categories.\n"
        "- Times are those of the predictor alone, without HTTP: medians, taken by turns, one thread each, for a\n"
        "  request of 1 row and one of 1,000. They are of one machine; the ratios count.\n\n"
        f"{here.cpu}, {here.cores} cores, {here.system}, Python {here.python}, scikit-learn {sklearn.__version__};\n"
        f"{here.minutes:.0f} minutes, load average {here.busy:.1f} before.\n\n"
        "```\nmake estimators                    # all of it, some minutes; writes this file\n"
        "make estimators ONLY=forest,svc    # some models only: prints, and leaves this file alone\n```\n"
    )


def main() -> None:
    only = os.environ.get("ONLY", "")
    started, busy, outcomes = time.monotonic(), os.getloadavg()[0], []
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        for case in chosen(only):
            print(f"{case.name}, {case.data} ...", file=sys.stderr, flush=True)
            outcomes.append((case, measured(case)))
    text = document(outcomes, Conditions.here(1, 0.0, (time.monotonic() - started) / 60, busy))
    print(text)
    if not only:
        DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

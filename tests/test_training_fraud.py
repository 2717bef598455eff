"""The fraud family: trained on few payments, its threshold chosen on rows that its models had not seen, and served."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from registries import empty_registry
from rich.console import Console
from served import running, settings_of
from sklearn.model_selection import FixedThresholdClassifier
from threadpoolctl import threadpool_limits

from serving.compile import proof
from serving.registry import LocalFiles, Ref
from serving.tensors import Prediction
from training import fraud
from training.data import Data, Rows
from training.options import Options, Unusable
from training.pipeline import Plan, train
from training.report import Outcome, Report
from training.transactions import payments

CANDIDATES = (
    {"model": "logistic", "C": 0.3},
    {"model": "boosting", "max_iter": 15, "learning_rate": 0.2, "max_leaf_nodes": 8},
)

SOON = 60.0  # seconds


def few() -> Data:
    """So many of them fraud that a few rows have some."""
    rows = payments(2500, seed=1)
    risky = np.flatnonzero(rows.labels == 1)
    return Data.split(rows.take(np.r_[np.arange(1200), np.tile(risky, 3)]), fraud.CLASS_NAMES, fraud.HOLDOUT)


@dataclass(frozen=True)
class Trained:
    home: Path
    outcome: Outcome
    said: str

    @property
    def folder(self) -> Path:
        return Path(LocalFiles(self.home / "models").resolve(Ref("fraud")).location)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What the command leaves behind, for few rows and the smallest proof."""
    home = tmp_path_factory.mktemp("fraud")
    settings = settings_of(home, mlflow_tracking_uri=empty_registry(home / "mlruns" / "mlflow.db"), models=("fraud",))
    family = replace(fraud._family(few, fraud.chance(few())), candidates=CANDIDATES, folds=3)
    said, patch = StringIO(), pytest.MonkeyPatch()
    patch.setattr(proof, "ROWS", 600)
    patch.setattr(proof, "CUTS", ((1, 10), (17, 2)))
    patch.setattr("training.pictures.SHUFFLES", 1)
    outcome = train(family, Plan(), settings, Report(Console(file=said, width=120), family))
    patch.undo()
    return Trained(home, outcome, said.getvalue())


@pytest.fixture
def run(trained: Trained) -> Any:
    mlflow.set_tracking_uri(f"sqlite:///{trained.home / 'mlruns' / 'mlflow.db'}")
    return MlflowClient().get_run(MlflowClient().get_model_version("fraud", "1").run_id)


def test_it_is_compiled_and_promoted(trained: Trained) -> None:
    assert trained.outcome.allowed, trained.said
    assert "Compiled: the same bits as scikit-learn" in trained.said
    assert set(trained.outcome.metrics) == {"average_precision", "recall_at_1pct_fpr", "log_loss"}


def test_threshold_metrics_and_pictures_are_logged(trained: Trained, run: Any) -> None:
    metadata = mlflow.models.Model.load(str(trained.folder)).metadata
    assert metadata["class_names"] == ["legitimate", "fraud"]
    assert metadata["positive_class"] == "fraud"
    assert 0 < metadata["threshold"] < 1
    assert float(run.data.params["threshold"]) == metadata["threshold"] != fraud.COSTS.fair_threshold
    assert {"brier", "cost_per_1000", "precision_fraud", "recall_fraud", "flagged"} <= set(run.data.metrics)
    pictures = {entry.path for entry in MlflowClient().list_artifacts(run.info.run_id)}
    assert {
        *("precision_recall.png", "calibration.png", "cost_over_threshold.png", "feature_importance.png"),
    } <= pictures


def test_the_profile_has_categories_and_gaps(trained: Trained) -> None:
    features = {one["name"]: one for one in json.loads((trained.folder / "profile.json").read_text())["features"]}
    assert len(features) == 20
    assert features["device"]["kind"] == features["merchant_category"]["kind"] == "category"
    assert "android" in features["device"]["values"]
    assert features["device"]["missing"] > 0.5
    assert features["amount"]["kind"] == "numeric"


def test_the_service_answers_what_mlflow_does_and_says_why(trained: Trained) -> None:
    data = few()
    rows = data.holdout.sample(40)
    records = [
        {name: None if value is None or value != value else value for name, value in row.items()}
        for row in rows.inputs.astype(object).to_dict("records")
    ]
    model = mlflow.sklearn.load_model(str(trained.folder))
    threshold = mlflow.models.Model.load(str(trained.folder)).metadata["threshold"]
    with threadpool_limits(1):
        expected = mlflow.pyfunc.load_model(str(trained.folder)).predict(rows.inputs).tolist()
        scores = model.predict_proba(rows.inputs)[:, 1].tolist()
    with running(settings_of(trained.home, models=("fraud",), max_body_bytes=100_000)) as app:
        deadline = time.monotonic() + SOON
        while not app.extensions["service"].ready():
            assert time.monotonic() < deadline, app.extensions["service"].overview()
            time.sleep(0.05)
        client = app.test_client()
        many = client.post("/predict", json={"instances": records}).get_json()["predictions"]
        one = client.post("/predict", json={"features": records[0]}).get_json()
        scored = client.post("/invocations", json={"dataframe_records": records}).get_json()["predictions"]
        document = json.dumps(client.get("/openapi.json").get_json())
    assert [row["class_id"] for row in many] == expected == scored
    assert {row["class_name"] for row in many} == {"legitimate", "fraud"}
    assert [row["score"] for row in many] == scores
    assert all(row["threshold"] == threshold for row in many)
    assert one["prediction"] == {name: value for name, value in many[0].items() if name != "probabilities"}
    assert "The answer is 'fraud' where the score is at least this." in document


# --- the pieces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", CANDIDATES, ids=["logistic", "boosting"])
def test_candidates_take_gaps_and_kinds_that_they_have_not_seen(params: Any) -> None:
    rows = few().rows
    with threadpool_limits(1):
        model = fraud.classifier(params, 0).fit(rows.inputs, rows.labels)
        gaps = rows.inputs.head(3).assign(device="abacus", email=None, amount_to_usual=None)
        assert model.predict_proba(gaps).shape == (3, 2)
    assert model.threshold == pytest.approx(8 / 128)


def test_boosting_beats_the_baseline_and_neither_is_perfect() -> None:
    data = Data.split(payments(12_000, seed=5), fraud.CLASS_NAMES, fraud.HOLDOUT)
    family = fraud.family(Options())
    with threadpool_limits(1):
        first, last = (
            family.score(fraud.classifier(params, 0).fit(data.train.inputs, data.train.labels), data.holdout, ())
            for params in (family.candidates[0], family.candidates[-1])
        )
    assert first["average_precision"] + 0.1 < last["average_precision"] < 0.9
    assert first["log_loss"] > last["log_loss"]
    assert 0.0 < first["recall_at_1pct_fpr"] < last["recall_at_1pct_fpr"] < 1.0


def test_the_threshold_is_chosen_on_what_was_not_learned() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.9])
    unseen = Prediction(np.zeros(4, int), np.stack([1 - scores, scores], axis=1))
    rows = Rows(pd.DataFrame({"x": scores}), np.array([0, 0, 1, 1]))
    settled = fraud.settle(fraud.classifier(CANDIDATES[0], 0), rows, unseen)
    assert isinstance(settled, FixedThresholdClassifier)
    assert settled.threshold == pytest.approx(0.25)


def test_recall_where_one_in_a_hundred_is_a_false_alarm() -> None:
    labels = np.r_[np.ones(10, int), np.zeros(200, int)]
    scores = np.r_[np.full(6, 0.9), np.full(3, 0.5), 0.1, np.full(2, 0.7), np.full(198, 0.2)]
    assert fraud.recall_at(0.01, scores, labels) == 0.9  # 2 of the 200 are above 0.5
    assert fraud.recall_at(0.005, scores, labels) == 0.6


# --- a table of the user's own ---------------------------------------------------------------------------------------


def test_a_table_of_the_users_own_has_rules_of_its_own(tmp_path: Path) -> None:
    rows = few().rows
    path = tmp_path / "mine.parquet"
    rows.inputs[["amount", "device", "hour"]].assign(fraud=rows.labels == 1).to_parquet(path)
    family = fraud.family(Options(data=path))
    data = family.data()
    assert list(data.rows.inputs.columns) == ["amount", "device", "hour"]
    assert data.rows.labels.tolist() == rows.labels.tolist()
    limits = {rule.metric: rule.limit for rule in family.rules}
    nothing = np.full(len(data.holdout), data.train.labels.mean())
    guess = Prediction(np.zeros(len(nothing), int), np.stack([1 - nothing, nothing], axis=1))
    metrics = fraud.measure(guess, data.holdout, fraud.CLASS_NAMES)
    assert {name: metrics[name] for name in ("average_precision", "log_loss")} == pytest.approx(
        {name: limits[name] for name in ("average_precision", "log_loss")}
    )


def test_a_table_that_cannot_be_used_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("amount\n1\n")
    with pytest.raises(Unusable, match="has no column 'fraud'"):
        fraud.family(Options(data=tmp_path / "mine.csv"))

"""The command, on a real store: what it leaves in MLflow and on disk, and what it does when it cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from rich.console import Console
from sklearn.tree import DecisionTreeClassifier

import train_model
from serving import reference
from serving.digest import folder_digest
from serving.registry import BREAKING_TAG, DIGEST_TAG, LocalFiles, Ref
from serving.registry.moves import Aliases, actor
from serving.settings import Settings
from training import Kind, iris, tracking
from training.failure import NotPromoted
from training.family import Family
from training.pipeline import Plan, train
from training.report import Report

COMMAND = [sys.executable, str(Path(train_model.__file__))]
METRICS = {"accuracy", "log_loss", "precision_setosa", "recall_setosa", "precision_virginica", "recall_versicolor"}

# Iris with trees of one split, which are fitted at once: good enough to be the first, or too bad for anything.
FAST = replace(iris.FAMILY, candidates=({"n_estimators": 10, "max_depth": 3}, {"n_estimators": 5, "max_depth": 3}))
BAD = replace(iris.FAMILY, candidates=({"n_estimators": 1, "max_depth": 1},))


@dataclass(frozen=True)
class Store:
    """A tracking store in a folder, and what the command said when it was first run there."""

    home: Path
    first: subprocess.CompletedProcess[str]

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.home)

    @property
    def settings(self) -> Settings:
        return Settings.from_env(self.environment)

    def version(self, number: str) -> Any:
        return MlflowClient().get_model_version("iris", number)

    def behind(self, alias: str) -> str:
        return str(MlflowClient().get_model_version_by_alias("iris", alias).version)

    def newest(self) -> str:
        return str(max(int(version.version) for version in MlflowClient().search_model_versions("name='iris'")))

    def files(self, number: str, into: Path) -> Path:
        return tracking.fetch(self.version(number), into)

    def local(self) -> dict[str, bytes]:
        folder = self.home / "models"
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def environment(home: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlruns' / 'mlflow.db'}", "MODEL_DIR": str(home / "models")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that was not there before the command ran as a user runs it, without a terminal."""
    home = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [*COMMAND, "iris"], env={**os.environ, **environment(home)}, capture_output=True, text=True, timeout=300
    )
    return Store(home, done)


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """The command and MLflow write to the environment; the next test gets it as it was."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def store(trained: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The trained store, as what this process works with."""
    for name, value in trained.environment.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(trained.environment["MLFLOW_TRACKING_URI"])
    return trained


def run(family: Family, plan: Plan, store: Store) -> tuple[bool, str]:
    """Train without the command line around it; returns whether it may go live, and what was said."""
    said = StringIO()
    outcome = train(family, plan, store.settings, Report(Console(file=said), family))
    return outcome.allowed, said.getvalue()


def register_perfect(columns: list[str] | None = None) -> str:
    """Register a tree that has seen the holdout, and so is right about all of it; returns its version."""
    data = iris.FAMILY.data()
    inputs = data.rows.inputs[columns] if columns else data.rows.inputs
    with mlflow.start_run(experiment_id=tracking.experiment("iris").experiment_id):
        model = DecisionTreeClassifier(random_state=0).fit(inputs, data.rows.labels)
        model_id = iris.FAMILY.flavor.log(model, inputs, data.class_names)
    return str(tracking.register(model_id, "iris", {}).version)


# --- what the first run leaves behind ---------------------------------------------------------------------------------


def test_first_run_promotes_and_says_where_to_look(trained: Store) -> None:
    assert trained.first.returncode == train_model.PROMOTED, trained.first.stderr
    assert trained.first.stderr == ""
    said = trained.first.stdout
    assert "best" in said
    assert "Gate: passed" in said
    assert "iris version 1 is now champion." in said
    assert "make mlflow" in said
    assert "\x1b" not in said


def test_candidates_are_nested_runs_with_parameters_and_metrics(store: Store) -> None:
    parent = store.version("1").run_id
    experiment = tracking.experiment("iris").experiment_id
    children = MlflowClient().search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert len(children) == len(iris.FAMILY.candidates) >= 3
    found = [{name: child.data.params[name] for name in iris.FAMILY.candidates[0]} for child in children]
    for params in iris.FAMILY.candidates:
        assert {name: str(value) for name, value in params.items()} in found
    for child in children:
        assert child.info.status == "FINISHED"
        assert METRICS | {"accuracy_std", "log_loss_std"} <= set(child.data.metrics)


def test_parent_has_the_best_with_its_holdout_metrics_pictures_and_origin(store: Store) -> None:
    run = MlflowClient().get_run(store.version("1").run_id)
    assert set(run.data.metrics) >= METRICS
    assert run.data.metrics["accuracy"] >= 0.9
    assert run.data.params["n_estimators"] == "100"
    assert run.data.params["seed"] == "42"
    assert {"git_commit", "git_dirty"} <= set(run.data.tags)
    assert run.data.tags["dataset_digest"] == iris.FAMILY.data().digest
    assert {dataset.dataset.digest for dataset in run.inputs.dataset_inputs} == {iris.FAMILY.data().digest}
    pictures = {entry.path: entry.file_size for entry in MlflowClient().list_artifacts(run.info.run_id)}
    assert pictures["confusion_matrix.png"] > 10_000
    assert pictures["feature_importance.png"] > 10_000


def test_artifacts_lie_beside_the_store(store: Store) -> None:
    assert tracking.experiment("iris").artifact_location == (store.home / "mlruns" / "artifacts" / "iris").as_uri()


def test_version_records_the_digest_of_its_files_and_its_origin(store: Store, tmp_path: Path) -> None:
    version = store.version("1")
    files = store.files("1", tmp_path)
    assert (files / reference.FILE_NAME).is_file()
    assert version.tags[DIGEST_TAG] == folder_digest(files)
    assert version.tags["dataset_digest"] == iris.FAMILY.data().digest
    assert version.tags["gate"] == "passed"
    assert "git_commit" in version.tags
    assert BREAKING_TAG not in version.tags


def test_logged_model_has_signature_example_and_class_names(store: Store, tmp_path: Path) -> None:
    model = mlflow.models.Model.load(str(store.files("1", tmp_path)))
    assert model.signature.inputs.input_names() == list(iris.FAMILY.data().rows.inputs.columns)
    assert len(model.load_input_example(str(tmp_path / "artifacts"))) == 3
    assert model.metadata["class_names"] == ["setosa", "versicolor", "virginica"]
    assert model.flavors["sklearn"]["serialization_format"] == "skops"


def test_reference_rows_reproduce_the_models_outputs_to_the_last_bit(store: Store, tmp_path: Path) -> None:
    files = store.files("1", tmp_path)
    inputs, recorded = reference.read(files / reference.FILE_NAME)
    rows = iris.FAMILY.data().rows.inputs
    assert len(rows) == 150
    for name in rows.columns:
        np.testing.assert_array_equal(inputs[name], rows[name])
    model = iris.FAMILY.flavor.load(files)
    np.testing.assert_array_equal(model.predict(rows), recorded.values)
    assert model.predict_proba(rows).tobytes() == np.ascontiguousarray(recorded.probabilities).tobytes()
    assert recorded.values.dtype == np.int64


def test_promoted_version_is_left_for_a_service_without_registry(store: Store) -> None:
    local = LocalFiles(store.home / "models").resolve(Ref("iris"))
    recorded = store.version(local.version)
    assert local.source == "local"
    assert local.digest == folder_digest(Path(local.location)) == recorded.tags[DIGEST_TAG]
    assert local.run_id == recorded.run_id


def test_the_promotion_is_on_record(store: Store) -> None:
    move = Aliases(MlflowClient()).moves("iris")[0]
    assert (move.alias, move.before, move.to, move.why, move.gate) == ("champion", None, "1", "trained", "passed")
    assert move.by == actor()


# --- the second run and the gate --------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_outputs_and_metrics(store: Store, tmp_path: Path) -> None:
    numbers = []
    for _ in range(2):
        allowed, _said = run(FAST, Plan(force=True), store)
        assert allowed
        numbers.append(store.newest())
        assert store.behind("champion") == store.newest()
        assert LocalFiles(store.home / "models").resolve(Ref("iris")).version == store.newest()
    before, after = ((store.files(which, tmp_path / which) / reference.FILE_NAME).read_bytes() for which in numbers)
    assert before == after
    old, new = (MlflowClient().get_run(store.version(which).run_id).data.metrics for which in numbers)
    assert old == new


def test_gate_refuses_a_worse_version_and_touches_nothing(store: Store) -> None:
    champion, local = store.behind("champion"), store.local()
    perfect = register_perfect()
    MlflowClient().set_registered_model_alias("iris", "champion", perfect)
    try:
        allowed, said = run(FAST, Plan(), store)
        assert not allowed
        assert store.behind("champion") == perfect
    finally:
        MlflowClient().set_registered_model_alias("iris", "champion", champion)
    assert "Gate: refused" in said
    assert f"version {perfect} has 0.0000" in said
    assert "champion stays where it was" in said
    assert store.local() == local
    assert store.version(store.newest()).tags["gate"].startswith("refused: log_loss")


def test_first_version_behind_an_alias_must_pass_the_limits(store: Store) -> None:
    allowed, said = run(BAD, Plan(alias="untaken"), store)
    assert not allowed
    assert "no   accuracy" in said
    assert "must be at least 0.9" in said
    assert tracking.behind("iris", "untaken") is None


def test_another_alias_than_the_default_leaves_the_local_files_alone(store: Store) -> None:
    local = store.local()
    allowed, said = run(FAST, Plan(alias="challenger"), store)
    assert allowed
    assert "is now challenger" in said
    assert store.behind("challenger") == store.newest()
    assert store.local() == local


def test_no_promote_registers_and_moves_nothing(store: Store) -> None:
    champion, local = store.behind("champion"), store.local()
    before = int(store.newest())
    allowed, _ = run(FAST, Plan(promote=False, alias="nobody"), store)
    assert allowed
    assert int(store.newest()) == before + 1
    assert tracking.behind("iris", "nobody") is None
    assert store.behind("champion") == champion
    assert store.local() == local


def test_champion_that_cannot_be_loaded_is_no_free_pass(store: Store) -> None:
    broken = register_perfect()
    source = MlflowClient().get_model_version_download_uri("iris", broken)
    path = Path(source.removeprefix("file://")) / "model.skops"
    path.write_bytes(path.read_bytes()[:1000])
    MlflowClient().set_registered_model_alias("iris", "broken", broken)

    allowed, said = run(FAST, Plan(alias="broken"), store)
    assert not allowed
    assert f"version {broken} cannot be measured" in said
    assert "--force" in said
    assert store.behind("broken") == broken

    allowed, _ = run(FAST, Plan(alias="broken", force=True), store)
    assert allowed
    assert store.behind("broken") == store.newest()


def test_changed_signature_must_be_declared(store: Store) -> None:
    other = register_perfect(columns=["petal width (cm)", "petal length (cm)"])
    MlflowClient().set_registered_model_alias("iris", "other", other)
    allowed, said = run(FAST, Plan(alias="other"), store)
    assert not allowed
    assert "declare it with --breaking-change" in said
    run(FAST, Plan(alias="other", breaking=True, force=True), store)
    assert store.version(store.newest()).tags[BREAKING_TAG] == "true"


# --- bad times --------------------------------------------------------------------------------------------------------


def fails_in_one_line(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert train_model.main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("train_model.py: ")
    assert error.count("\n") == 1
    return error


def test_unreachable_server_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    error = fails_in_one_line(["iris"], train_model.ERROR, capsys)
    assert "http://127.0.0.1:9" in error
    assert "connection refused" in error


def test_unreachable_database_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me:secret@127.0.0.1:9/runs")
    error = fails_in_one_line(["iris"], train_model.ERROR, capsys)
    assert "127.0.0.1:9" in error
    assert "secret" not in error


def test_store_in_an_impossible_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlruns/mlflow.db")
    assert f"{tmp_path}/file" in fails_in_one_line(["iris"], train_model.ERROR, capsys)


def test_store_that_is_no_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_text("something else entirely " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert "mlflow.db: file is not a database" in fails_in_one_line(["iris"], train_model.ERROR, capsys)


def test_impossible_model_dir_is_found_before_the_work(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = store.newest()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODEL_DIR", str(tmp_path / "file"))
    assert str(tmp_path / "file") in fails_in_one_line(["iris"], train_model.ERROR, capsys)
    assert store.newest() == newest


def test_alias_stays_when_the_local_files_cannot_be_written(store: Store, tmp_path: Path) -> None:
    champion = store.behind("champion")
    (tmp_path / "iris").touch()
    settings = replace(store.settings, model_dir=tmp_path)
    with pytest.raises(NotPromoted, match="is registered, but was not promoted: File exists"):
        train(FAST, Plan(), settings, Report(Console(file=StringIO()), FAST))
    assert store.behind("champion") == champion


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_full_disk_is_one_line(tmp_path: Path) -> None:
    limited = f"ulimit -f 100; exec {' '.join(COMMAND)} iris"
    done = subprocess.run(
        ["sh", "-c", limited], env={**os.environ, **environment(tmp_path)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == train_model.ERROR
    assert done.stderr.startswith("train_model.py: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--all"),
        (["rose"], "unknown family 'rose'; there are: iris"),
        (["iris", "--seed", "-1"], "--seed"),
        (["iris", "--seed", "many"], "--seed"),
        (["iris", "--alias", "latest"], "'latest'"),
        (["iris", "--alias", "v2"], "'v2'"),
        (["iris", "--fast"], "--fast"),
        (["iris", "--data", "mine.csv"], "iris takes no --data; it is for: fraud"),
        (["fraud", "--weights", "none"], "fraud takes no --weights; it is for: images, minilm"),
        (["images", "fraud", "--precision", "int8"], "fraud takes no --precision; it is for: images, minilm"),
        (["images", "--precision", "fp16"], "fp16"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train_model.main(arguments)
    assert stop.value.code == train_model.USAGE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_misspelt_setting_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MODELS_DIR", "elsewhere")
    assert "did you mean MODEL_DIR" in fails_in_one_line(["iris"], train_model.ERROR, capsys)


def test_a_table_that_is_not_there_is_one_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing.csv" in fails_in_one_line(["fraud", "--data", "nothing.csv"], train_model.ERROR, capsys)


def test_a_family_without_its_libraries_says_how_to_get_them(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(train_model.FAMILIES, "images", Kind("pictures", libraries=("json", "no_such_library")))
    error = fails_in_one_line(["images"], train_model.ERROR, capsys)
    assert error == "train_model.py: images needs no_such_library, not installed here: make deep\n"


def test_all_goes_on_after_a_failure_and_ends_with_a_table(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {"images": Kind("pictures", libraries=("no_such_library",)), "iris": train_model.FAMILIES["iris"]}
    monkeypatch.setattr(train_model, "FAMILIES", kinds)
    monkeypatch.setattr(iris, "FAMILY", FAST)
    assert train_model.main(["--all", "--alias", "everything", "--data", "for-others.csv"]) == train_model.ERROR
    table = capsys.readouterr().out.partition("All families")[2]
    assert re.search(r"images +│ +│ images needs no_such_library", table)
    assert re.search(rf"iris +│ {store.newest()} +│ everything +│ accuracy 0\.\d+, log_loss 0\.\d+", table)


@pytest.mark.parametrize("option", ["--list", "--help"])
def test_listing_and_help_import_nothing_heavy(option: str) -> None:
    script = f"""
import atexit, sys, train_model
atexit.register(lambda: print("heavy:", {{"mlflow", "sklearn", "pandas"}} & set(sys.modules)))
sys.exit(train_model.main(["{option}"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(COMMAND[1]).parent, capture_output=True, text=True)
    assert done.returncode == 0
    assert "iris" in done.stdout
    assert "heavy: set()" in done.stdout

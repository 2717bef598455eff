"""Versions that compete: the better one is promoted, others are not, and a champion that fails goes back by itself."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Running, wait_for
from registered import CLASS_NAMES, Registered

ROWS = 10  # a request
ENOUGH = 400  # labels, of both sides together
LATEST_S = 60.0


class Contest:
    """A service whose challenger answers half of the callers, and its registry."""

    def __init__(self, home: Path) -> None:
        from mlflow import MlflowClient
        from sklearn.datasets import load_iris

        self.X, self.y = load_iris(return_X_y=True, as_frame=True)
        self.home = home
        self.registry = Registered(home / "registry")
        self.client = MlflowClient(tracking_uri=self.registry.uri, registry_uri=self.registry.uri)
        self.service = Running(
            home / "service",
            self.registry.uri,
            {"WEB_CONCURRENCY": "2", "POLL_INTERVAL_S": "1", "CHALLENGER": "50%", "AUTO_ROLLBACK": "true"}
            # How fast a busy machine is says nothing of a version.
            | {"PROBATION_S": str(LATEST_S), "ROLLBACK_MIN_ROWS": "20", "ROLLBACK_LATENCY_RATIO": "1000"},
        )
        self._random = random.Random(3)

    def add(self, estimator: Any) -> str:
        """Register a classifier as a graph, as one that passed its gate."""
        import mlflow
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType

        graph = to_onnx(estimator, initial_types=[("X", FloatTensorType([None, 4]))], options={"zipmap": False})
        return self._save(mlflow.onnx.save_model, graph, estimator)

    def add_fragile(self) -> str:
        """Register one that raises where a flower is as large as a tree."""
        import mlflow
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer

        def measured(flowers: Any) -> Any:
            if (flowers > 100).to_numpy().any():
                raise RuntimeError("no such flower")
            return flowers

        model = make_pipeline(FunctionTransformer(measured), LogisticRegression(max_iter=500)).fit(self.X, self.y)
        return self._save(mlflow.sklearn.save_model, model, model, serialization_format="cloudpickle")

    def _save(self, save: Any, model: Any, estimator: Any, **more: Any) -> str:
        from mlflow.models import infer_signature

        folder = self.home / f"version-{time.monotonic_ns()}"
        signature = infer_signature(self.X, estimator.predict(self.X))
        metadata = {"class_names": CLASS_NAMES}
        save(model, folder, signature=signature, input_example=self.X.head(3), metadata=metadata, **more)
        return self.registry.add(folder, tags={"gate": "passed"})

    def challenge(self, version: str) -> None:
        """Have the version answer its share."""
        self.registry.point(version, "challenger")
        wait_for(lambda: self._takes_part(version), LATEST_S, f"version {version} does not take part")

    def unchallenged(self) -> bool:
        return self._takes_part(None)

    def _takes_part(self, version: str | None) -> bool:
        """In every worker; each says so in its note."""
        said = [json.loads(path.read_text()) for path in (self.service.folder / "state" / "workers").glob("*.json")]
        return all(note["challengers"].get("iris", {}).get("version") == version for note in said)

    def labelled(self, rows: int) -> None:
        """Ask for so many rows, and say what they were."""
        items = []
        for _ in range(rows // ROWS):
            pick = [self._random.randrange(len(self.X)) for _ in range(ROWS)]
            answer = self.service.call("/predict", {"features": self.X.iloc[pick].to_numpy().tolist()})
            assert answer.status == 200, answer.text
            given = answer.json["prediction_id"]
            items += [{"prediction_id": given, "row": row, "label": int(self.y[at])} for row, at in enumerate(pick)]
        assert self.service.call("/feedback", items).status in (200, 202)

    def compared(self, rows: int) -> Any:
        """What the service says once it knows so many labels of both sides together."""

        def known() -> Any:
            found = self.service.call("/models/iris/compare").json
            labels = sum(found[side]["quality"]["labelled_rows"] for side in ("champion", "challenger"))
            return found if labels >= rows else None

        return wait_for(known, LATEST_S, "the labels are not counted")

    def command(self, *arguments: str) -> tuple[int, str]:
        """``python -m serving`` as people run it: its exit code and all that it said."""
        ran = subprocess.run(
            [sys.executable, "-m", "serving", *arguments],
            cwd=ROOT,
            env=self.service.environment(),
            capture_output=True,
            text=True,
        )
        print(ran.stdout, ran.stderr)
        return ran.returncode, ran.stdout + ran.stderr

    def champion(self) -> str:
        return str(self.client.get_model_version_by_alias("iris", "champion").version)

    def serves(self, version: str) -> bool:
        info = self.service.call("/model/info").json
        return bool(info["version"] == version and info["workers"] == {"acknowledged": 2, "total": 2})


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contest]:
    """Version 1, which knows two flowers of three, is the champion."""
    from sklearn.tree import DecisionTreeClassifier

    contest = Contest(tmp_path_factory.mktemp("contest"))
    stump = DecisionTreeClassifier(max_depth=1, random_state=0).fit(contest.X.to_numpy(), contest.y)
    contest.registry.point(contest.add(stump))
    contest.service.start()
    yield contest
    contest.service.kill()


def forest(contest: Contest, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(10, max_depth=3, random_state=seed).fit(contest.X.to_numpy(), contest.y)


def quality(found: Any) -> bool | None:
    [check] = [check for check in found["verdict"]["checks"] if check["what"] == "quality"]
    return check["passed"]  # type: ignore[no-any-return]


def test_a_better_one_waits_for_its_labels_and_is_promoted(contest: Contest) -> None:
    contest.challenge(contest.add(forest(contest, seed=1)))
    contest.labelled(60)
    contest.compared(60)
    code, said = contest.command("promote", "iris")
    assert (code, contest.champion()) == (3, "1")
    assert "more labels are needed" in said
    contest.labelled(ENOUGH)
    assert quality(contest.compared(ENOUGH + 60)) is True
    deadline = time.monotonic() + LATEST_S
    while contest.command("compare", "iris")[0] != 0:  # a few slow calls of few: more will show
        assert time.monotonic() < deadline
        contest.labelled(ENOUGH)
    code, said = contest.command("promote", "iris", "--why", "it knows all three")
    assert (code, contest.champion()) == (0, "2"), said
    wait_for(lambda: contest.serves("2"), LATEST_S, "version 2 is not served everywhere")


def test_one_that_is_as_good_is_not_promoted(contest: Contest) -> None:
    contest.challenge(contest.add(forest(contest, seed=2)))
    contest.labelled(ENOUGH)
    assert quality(contest.compared(ENOUGH)) is None
    code, said = contest.command("promote", "iris")
    assert (code, contest.champion()) == (3, "2")
    assert "brier is better by" in said


def test_a_worse_one_is_not_promoted(contest: Contest) -> None:
    from sklearn.linear_model import LogisticRegression

    shuffled = contest.y.sample(frac=1, random_state=0).to_numpy()
    contest.challenge(contest.add(LogisticRegression(max_iter=500).fit(contest.X.to_numpy(), shuffled)))
    contest.labelled(ENOUGH)
    assert quality(contest.compared(ENOUGH)) is False
    code, said = contest.command("promote", "iris", "--json")
    assert (code, json.loads(said)["decision"], contest.champion()) == (3, "keep", "2")


def test_a_champion_that_fails_goes_back_within_its_probation(contest: Contest) -> None:
    contest.client.delete_registered_model_alias("iris", "challenger")
    version = contest.add_fragile()
    assert contest.command("promote", "iris", "--version", version, "--force", "--why", "a hurry")[0] == 0
    wait_for(lambda: contest.serves(version), LATEST_S, f"version {version} is not served everywhere")
    wait_for(contest.unchallenged, LATEST_S, "somebody challenges")
    went_live = time.monotonic()
    tree = [[500.0, 100.0, 300.0, 90.0]]
    statuses = {contest.service.call("/predict", {"features": tree}).status for _ in range(40)}
    assert statuses == {500}
    wait_for(lambda: contest.serves("2"), LATEST_S, "version 2 does not come back")
    print(f"back after {time.monotonic() - went_live:.1f} s")
    assert contest.champion() == "2"
    assert contest.service.call("/predict", {"features": tree}).status == 200
    gone = wait_for(lambda: contest.service.call("/model/info").json["rolled_back"], LATEST_S, "nobody says so")
    assert (gone["from"], gone["to"]) == (version, "2")
    assert "rows failed, more than 0.05 of them" in gone["why"]
    counted = contest.service.call("/metrics").text
    assert 'ml_rollbacks_total{model="iris",reason="error_ratio"} 1.0' in counted
    assert json.loads(contest.client.get_model_version("iris", version).tags["rolled_back"])["by"] == "service"
    tags = contest.client.get_registered_model("iris").tags
    last = json.loads(tags[max(key for key in tags if key.startswith("move."))])
    assert (last["from"], last["to"], last["by"], last["gate"]) == (version, "2", "service", "rollback")
    [said] = [json.loads(line) for line in contest.service.log.splitlines() if "is rolled back to" in line]
    assert said["level"] == "error"


def test_nor_is_it_promoted_again(contest: Contest) -> None:
    version = contest.service.call("/model/info").json["rolled_back"]["from"]
    contest.registry.point(version, "challenger")
    code, said = contest.command("promote", "iris")
    assert code == 3
    assert "it was rolled back at" in said

"""The way of a model: data → candidates → evaluate → log → register → gate → alias."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from threadpoolctl import threadpool_limits

from serving import drift, reference
from serving.bundle import Compilation
from serving.digest import folder_digest
from serving.prepare import precompile
from serving.registry import BREAKING_TAG, DEFAULT_ALIAS, DIGEST_TAG, LocalFiles, Ref, Version
from serving.registry.moves import PASSED
from serving.settings import Settings
from serving.tensors import Classes, Signature
from training import evaluation, provenance, tracking
from training.data import Data
from training.evaluation import Trial
from training.failure import SURROUNDINGS, NotPromoted, brief
from training.family import About, Estimator, Family
from training.gate import Contender, Verdict, judge
from training.profile import profile
from training.report import Outcome, Report


@dataclass(frozen=True)
class Plan:
    """What the user asked for."""

    seed: int = 42
    alias: str = DEFAULT_ALIAS
    promote: bool = True  # False: stop after the gate
    force: bool = False  # promote what the gate refuses
    breaking: bool = False  # the signature may change; clients were told


@dataclass(frozen=True)
class Registered:
    """The best candidate as a version in the registry."""

    version: ModelVersion
    files: Path  # as they came back from the artifact store
    digest: str  # of these files


def train(family: Family, plan: Plan, settings: Settings, report: Report) -> Outcome:
    """Train ``family``, register the version, and promote it if the gate lets it."""
    with threadpool_limits(family.threads, user_api="openmp"):
        return _train(family, plan, settings, report)


def _train(family: Family, plan: Plan, settings: Settings, report: Report) -> Outcome:
    began = time.monotonic()
    tracking.connect(settings, Ref(family.name, plan.alias))
    if plan.promote:
        _try_writing(settings.model_dir)
    data = family.data()
    tags = provenance.tags(data.digest)
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        scratch = Path(folder)
        model_id, about = _fit(family, plan, data, tags, report, scratch)
        with report.busy("registering"):
            new = _register(family, plan, model_id, tags, about, scratch / "new")
            contender, champion = _contenders(family, plan, data, new, scratch / "champion")
            verdict = judge(family.rules, contender, champion, plan.breaking)
            tracking.set_tags(new.version, {"gate": str(verdict)})
        report.verdict(verdict)
        allowed = verdict.passed or plan.force
        if plan.promote and allowed:
            _promote(family, plan, settings, new, PASSED if verdict.passed else f"forced; {verdict}")
    report.end(_ending(plan, new, allowed), _places(plan, settings, new, allowed))
    measured = contender.metrics or {}
    metrics = {rule.metric: measured[rule.metric] for rule in family.rules if rule.metric in measured}
    short, seconds = _in_short(plan, verdict), time.monotonic() - began
    return Outcome(family.name, str(new.version.version), allowed, short, metrics, seconds)


def _fit(
    family: Family, plan: Plan, data: Data, tags: dict[str, str], report: Report, scratch: Path
) -> tuple[str, About | None]:
    """Find the best candidate, fit it on all training rows and log it; returns its model id, and what to know of it."""
    experiment_id = tracking.experiment(family.name).experiment_id
    with mlflow.start_run(experiment_id=experiment_id, tags=tags):
        tracking.log_dataset(data, family.name)
        trials = _try_candidates(family, plan.seed, data, experiment_id, report)
        best = evaluation.best(family, trials)
        report.candidates(trials, best)
        with report.busy("fitting and logging the best"):
            model = _estimator(family, best, plan.seed).fit(data.train.inputs, data.train.labels)
            metrics = family.score(model, data.holdout, data.class_names)
            report.holdout(metrics, len(data.holdout))
            mlflow.log_params({**best.params, "seed": plan.seed, "folds": family.folds})
            model_id = family.flavor.log(model, data.train.inputs, data.class_names)
            if about := family.about(model):
                report.about(about.words)
                metrics = {**metrics, **about.metrics}
            mlflow.log_metrics(metrics, model_id=model_id)
            for name, figure in family.pictures(model, data).items():
                mlflow.log_figure(figure, name)
            _log_reference(family, model, model_id, data, scratch)
            _log_profile(family, model, model_id, data, scratch)
        if family.compiles:
            with report.busy("compiling, and comparing over ten thousand rows"):
                report.compiled(_log_compiled(model_id, scratch))
    return model_id, about


def _estimator(family: Family, best: Trial, seed: int) -> Estimator:
    estimator = family.make(best.params, seed)
    if best.rows is None or best.unseen is None:
        return estimator
    return family.settle(estimator, best.rows, best.unseen)


def _try_candidates(family: Family, seed: int, data: Data, experiment_id: str, report: Report) -> list[Trial]:
    """Try each candidate in a run of its own under the active one; one that has no other beside it needs no trial."""
    if not evaluation.attempts(family):
        return [Trial(family.candidates[0])]
    trials = []
    with report.progress() as progress:
        task = progress.add_task(family.name, total=evaluation.attempts(family))
        for params in family.candidates:
            title = ", ".join(f"{name}={value}" for name, value in params.items())
            with mlflow.start_run(experiment_id=experiment_id, run_name=title, nested=True):
                trial = evaluation.attempt(family, params, data, seed, lambda: progress.advance(task))
                mlflow.log_params({**params, "seed": seed, "folds": family.folds})
                spread = {f"{rule.metric}_std": trial.spread(rule.metric) for rule in family.rules}
                mlflow.log_metrics(trial.metrics | spread)
            trials.append(trial)
    return trials


def _log_reference(family: Family, model: Any, model_id: str, data: Data, scratch: Path) -> None:
    """Put the reference rows among the model's own files, so that they travel with it and its digest covers them."""
    rows = data.rows.sample(reference.MAX_ROWS)
    reference.write(scratch / reference.FILE_NAME, rows.batch(), family.flavor.predict(model, rows.inputs))
    MlflowClient().log_model_artifact(model_id, str(scratch / reference.FILE_NAME))


def _log_profile(family: Family, model: Any, model_id: str, data: Data, scratch: Path) -> None:
    """Put beside it what the service compares live rows with."""
    made = profile(
        data.train.batch(),
        family.flavor.predict(model, data.rows.inputs),
        Classes.of(range(len(data.class_names)), data.class_names) if data.class_names else None,
        unseen=family.flavor.predict(model, data.holdout.inputs),
        gate={rule.metric: rule.limit for rule in family.rules},
    )
    path = scratch / drift.FILE_NAME
    path.write_text(json.dumps(made.as_json(), indent=1), encoding="utf-8")
    MlflowClient().log_model_artifact(model_id, str(path))


def _log_compiled(model_id: str, scratch: Path) -> Compilation | str:
    """Have the version bring its compiled form along, for servers without scikit-learn; what came of it."""
    made = scratch / "compiled-form"
    made.mkdir()
    outcome = precompile(tracking.fetch_logged(model_id, scratch / "logged"), made)
    if isinstance(outcome, Compilation):
        MlflowClient().log_model_artifacts(model_id, str(made))
    return outcome


def _register(
    family: Family, plan: Plan, model_id: str, tags: dict[str, str], about: About | None, into: Path
) -> Registered:
    version = tracking.register(model_id, family.name, tags | dict(about.tags if about else {}))
    if about:
        tracking.describe(version, about.words)
    files = tracking.fetch(version, into)
    digest = folder_digest(files)
    tracking.set_tags(version, {DIGEST_TAG: digest} | ({BREAKING_TAG: "true"} if plan.breaking else {}))
    return Registered(version, files, digest)


def _contenders(
    family: Family, plan: Plan, data: Data, new: Registered, scratch: Path
) -> tuple[Contender, Contender | None]:
    """The new version and the one behind the alias, measured on the same rows, each from the files in the store."""
    contender = _contender(family, data, new.version, lambda: new.files)
    holder = tracking.behind(family.name, plan.alias)
    return contender, _contender(family, data, holder, lambda: tracking.fetch(holder, scratch)) if holder else None


def _contender(family: Family, data: Data, version: ModelVersion, files: Callable[[], Path]) -> Contender:
    signature = None
    try:
        folder = files()
        signature = Signature.from_mlmodel(
            yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8")).get("signature")
        )
        metrics = family.score(family.flavor.load(folder), data.holdout, data.class_names)
    except Exception as err:  # it may be of any making: whatever it raises is the gate's finding, not our failure
        return Contender(str(version.version), problem=brief(err), signature=signature)
    return Contender(str(version.version), metrics, signature)


def _promote(family: Family, plan: Plan, settings: Settings, new: Registered, gate: str) -> None:
    try:
        _publish(family, plan, settings, new)  # before the alias: when the disk is full it has not moved
        before = tracking.move(plan.alias, new.version)
    except SURROUNDINGS as err:
        title = f"{family.name} version {new.version.version}"
        raise NotPromoted(f"{title} is registered, but was not promoted: {brief(err)}") from err
    tracking.record(plan.alias, new.version, before, gate)


def _publish(family: Family, plan: Plan, settings: Settings, new: Registered) -> None:
    """Leave the version under MODEL_DIR."""
    if plan.alias != DEFAULT_ALIAS:
        return  # a service without a registry must not start from a mere challenger
    promoted = Version(
        name=family.name,
        version=str(new.version.version),
        alias=plan.alias,
        source="registry",
        location=str(new.version.source),
        run_id=new.version.run_id,
        digest=new.digest,
    )
    LocalFiles(settings.model_dir).publish(promoted, new.files)


def _try_writing(folder: Path) -> None:
    """Raise OSError now, not when all the work is done."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _ending(plan: Plan, new: Registered, allowed: bool) -> str:
    title = f"{new.version.name} version {new.version.version}"
    if not allowed:
        return f"{title} is registered; {plan.alias} stays where it was. To promote it nevertheless: --force"
    return f"{title} is now {plan.alias}." if plan.promote else f"{title} is registered, and was not to be promoted."


def _in_short(plan: Plan, verdict: Verdict) -> str:
    if not verdict.passed:
        return f"{plan.alias}, by force" if plan.force and plan.promote else str(verdict)
    return plan.alias if plan.promote else "no: it was not to be"


def _places(plan: Plan, settings: Settings, new: Registered, allowed: bool) -> dict[str, str]:
    """Where to look."""
    places = {"run": str(new.version.run_id), "digest": new.digest}
    if plan.promote and allowed and plan.alias == DEFAULT_ALIAS:
        places["local files"] = str(settings.model_dir / new.version.name)
    uri = settings.mlflow_tracking_uri.rstrip("/")
    page = f"{uri}/#/models/{new.version.name}/versions/{new.version.version}"
    return places | {"look at it": page if uri.startswith("http") else "make mlflow"}

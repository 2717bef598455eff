"""The same payloads to ``mlflow models serve`` and to us: whatever differs is one of `RULES`, each with its reason.

By default some models get every kind of payload twice; ``MLFLOW_DIFFERENTIAL=all`` sends 500 to every model, and then
every rule must have been needed. The reasons are what ``docs/API.md`` lists.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from payloads import Payload, payloads
from scored import SAVED, Scored, save
from served import environment, free_port, settings_of

from serving.digest import folder_digest
from serving.registry import LocalFiles, Version
from serving.settings import ROOT

ALL = os.environ.get("MLFLOW_DIFFERENTIAL") == "all"
MODELS = tuple(SAVED) if ALL else ("houses",)
PAYLOADS = int(os.environ.get("MLFLOW_DIFFERENTIAL_PAYLOADS", "500" if ALL else "160"))
SEED = 7
READY_S = 120.0

Got = tuple[int, Any]  # a status, and the JSON of the answer or None


class Rule(NamedTuple):
    """Payloads of these kinds may be answered with other statuses than MLflow's."""

    name: str
    reason: str
    kinds: frozenset[str]
    statuses: frozenset[tuple[int, int]]  # MLflow's and ours


def rule(name: str, reason: str, kinds: str, *statuses: tuple[int, int]) -> Rule:
    return Rule(name, reason, frozenset(kinds.split()), frozenset(statuses))


RULES = (
    rule(
        "missing values",
        "a gap where the signature allows none reaches MLflow's model as NaN, and is answered as if it were a value",
        "null nan null-text null-boolean null-whole csv-short-row ragged",
        (200, 400),
    ),
    rule(
        "silent casts",
        "MLflow reads texts as numbers, true as 1, any text as true, cuts fractions and lets integers wrap around",
        "text-for-number true-for-number fraction-for-whole beyond-integer text-for-boolean number-for-boolean "
        "number-for-text",
        (200, 400),
    ),
    rule(
        "no finite number",
        "what a number's type cannot hold becomes infinite in MLflow, and so may the answer",
        "infinity huge",
        (200, 400),
    ),
    rule(
        "unknown columns",
        "MLflow drops them without a word; most are misspelt optional columns",
        "extra-column csv-long-row",
        (200, 400),
    ),
    rule(
        "an index of another length",
        "pandas repeats a single row for each label of the index",
        "index-long",
        (200, 400),
    ),
    rule(
        "no rows",
        "MLflow answers nothing with nothing where the model does not mind",
        "no-rows csv-header-only",
        (200, 400),
    ),
    rule(
        "params that are no object",
        "MLflow ignores them where the model has no params",
        "params-no-object",
        (200, 400),
    ),
    rule(
        "rows as lists",
        "MLflow has no names for them; a row in the signature's order says all that is needed",
        "lists",
        (400, 200),
    ),
    rule(
        "an optional column that is left out",
        "MLflow hands a frame without it to scikit-learn, which fails; here it is a column of gaps",
        "missing-optional",
        (400, 200),
    ),
    rule(
        "CSV for an array of 32-bit floats",
        "MLflow reads CSV as 64-bit floats, which its own signature then refuses",
        "good whole-for-number",
        (400, 200),
    ),
    rule(
        "NA in a text",
        "pandas takes the texts NA, null and nan for gaps; here only an empty cell is one",
        "word-na",
        (200, 200),
        (400, 200),
        (400, 400),
    ),
    rule(
        "a failure of the model",
        "MLflow says 400, which no alert counts, and sends the traceback along",
        "huge",
        (400, 500),
    ),
    rule(
        "no content type",
        "MLflow fails on it with a bare 500",
        "media-missing",
        (500, 415),
    ),
)


# --- the two servers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scored]:
    home = tmp_path_factory.mktemp("scored")
    return {name: save(name, home) for name in MODELS}


@pytest.fixture(scope="module")
def ours(models: dict[str, Scored], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``python app.py`` with all models from local files, for as long as the module's tests run."""
    home = tmp_path_factory.mktemp("ours")
    for name, model in models.items():
        plain = Version(name, "1", "champion", "local", str(model.folder), digest=folder_digest(model.folder))
        LocalFiles(home / "models").publish(plain, model.folder)
    port = free_port()
    settings = settings_of(home, models=MODELS, port=port, web_concurrency=1, drain_s=0, max_body_bytes=1_000_000)
    with _running([sys.executable, str(ROOT / "app.py")], environment(settings), home / "log"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def mlflow_server(model: Scored, home: Path) -> Iterator[str]:
    """``mlflow models serve`` of one model."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model.folder)]
    options = ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port), "-w", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where it finds uvicorn
    env = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with _running([*command, *options], env, home / f"{model.name}.log"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)  # mlflow's own child too
        process.wait(timeout=30)


def await_answer(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


def asked(session: requests.Session, url: str, payload: Payload) -> Got:
    headers = {"Content-Type": payload.content_type} if payload.content_type else {}
    answer = session.post(url, data=payload.body, headers=headers, timeout=30)
    if answer.status_code >= 500:
        session.close()  # MLflow's server breaks off a connection on which it failed
    with contextlib.suppress(ValueError):
        return answer.status_code, answer.json()
    return answer.status_code, None


def explained(payload: Payload, theirs: Got, ours: Got) -> str | None:
    """The rule by which the two answers differ; an empty text where they do not, None where there is no rule."""
    if theirs[0] == ours[0] and (ours[0] != 200 or alike(theirs[1], ours[1])):
        return ""
    found = [one.name for one in RULES if payload.kind in one.kinds and (theirs[0], ours[0]) in one.statuses]
    return found[0] if found else None


def alike(theirs: Any, ours: Any) -> bool:
    """Whether two answers say the same; MLflow writes NaN, which JSON does not have, where we write null."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return theirs.keys() == ours.keys() and all(alike(theirs[name], ours[name]) for name in theirs)
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(map(alike, theirs, ours))
    if isinstance(theirs, float) and math.isnan(theirs):
        return ours is None
    return bool(theirs == ours) and isinstance(theirs, bool) == isinstance(ours, bool)


@pytest.mark.parametrize("name", MODELS)
def test_whatever_differs_is_a_rule(
    name: str, models: dict[str, Scored], ours: str, used: Counter[str], tmp_path: Path
) -> None:
    session, unexplained = requests.Session(), []
    with mlflow_server(models[name], tmp_path) as theirs:
        await_answer(f"{ours}/readyz")
        await_answer(f"{theirs}/ping")
        for payload in payloads(models[name], PAYLOADS, SEED):
            expected = asked(session, f"{theirs}/invocations", payload)
            got = asked(session, f"{ours}/models/{name}/invocations", payload)
            by = explained(payload, expected, got)
            if by is None:
                unexplained.append(f"{payload.kind} as {payload.form}: {payload.body[:300]!r}: {expected} {got}")
            used[by or ("the same" if by == "" else "unexplained")] += 1
            assert got[0] < 500 or by == "a failure of the model", payload
            assert got[0] == 200 or got[1].keys() == {"error_code", "message"}
    assert not unexplained, "\n".join(unexplained[:20])


@pytest.fixture(scope="module")
def used() -> Iterator[Counter[str]]:
    """How often each rule was needed; where all models are asked, none may be idle."""
    counted: Counter[str] = Counter()
    yield counted
    print(f"\n{counted.total()} payloads: {dict(counted.most_common())}")
    if ALL:
        assert {one.name for one in RULES} <= counted.keys()

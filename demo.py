"""Calls a running service as a user would, each of its models in the way that fits it, and checks every answer.

    python demo.py                  the service at http://localhost:5000
    python demo.py --self-hosted    a service of its own with all that is trained, started for this and stopped again
    python demo.py --only fraud     one of its models

A line says what was asked, the status, the time that it took (the median) and what came back; with ``--verbose``, or
where that was not as it should be, body and answer stand below it.

Exit code: 0 when every answer was as it should be, 1 when one was not, 2 when there was nothing to call.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import math
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from dotenv import load_dotenv
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.markup import escape
from rich.text import Text

START_TIMEOUT_S = 180
ANSWER_TIMEOUT_S = 180  # longer than a reload may take
PAUSE_S = 0.2  # between two looks at what takes a moment
WIDTH = 100  # where no terminal says how wide it is
SHOWN_LINES = 3  # of a body
TITLE, LEFT = 31, 50  # columns of a title, and of all that stands left of what is said
MARKS = {True: ("✔", "green"), False: ("✘", "bold red")}


class Wrong(Exception):
    """An answer that is not as it should be."""


class NothingToCall(Exception):
    """There is no service, or none that answers."""


Say = Callable[[Any], str]  # what is to be said of a content; raises Wrong, KeyError, TypeError or ValueError


@dataclass(frozen=True)
class Step:
    """A request, and what should come back: ``status``, and content of which ``say`` finds something to say."""

    title: str
    path: str
    body: Any  # sent as JSON; text and bytes as they are; None: no body; a function: what it gives by then
    status: int
    say: Say
    calls: int = 5  # one after the other, every one of which must hold
    method: str = "POST"
    media_type: str = "application/json"
    headers: Callable[[int], dict[str, str]] = lambda _: {}  # of a call, by its number
    patience_s: float = 0.0  # how long to ask again while the answer is not as it should be

    @property
    def data(self) -> bytes:
        """The body as it goes out."""
        body = self.body() if callable(self.body) else self.body
        if isinstance(body, bytes):
            return body
        if body is None or isinstance(body, str):
            return (body or "").encode()
        return json.dumps(body, separators=(",", ":")).encode()


def expect(held: bool, otherwise: str) -> None:
    """Raise `Wrong` unless ``held``."""
    if not held:
        raise Wrong(otherwise)


def refused(code: str, column: str | None = None) -> Say:
    """An error with this code, which names ``column``."""

    def say(content: dict[str, Any]) -> str:
        error = content["error"]
        expect(error["code"] == code, f"the code is {error['code']} and not {code}")
        expect(column is None or error["column"] == column, f"it does not name {column!r}")
        return str(error["message"])

    return say


# --- rows that fit a model -------------------------------------------------------------------------------------------

PLAIN = {"string": "a", "str": "a", "binary": "AA==", "datetime": "2026-01-31T12:00:00"}


class Model:
    """What the service says of a model, where it answers, and rows: of its kind, its own example, or made up."""

    def __init__(self, info: dict[str, Any], *, of_texts: bool = False) -> None:
        """``of_texts``: it makes vectors of texts."""
        self.info, self.name, self.version = info, info["name"], str(info["version"])
        self.home = f"/models/{quote(self.name, safe='')}"
        self.layout, self.inputs = info["signature"]["layout"], info["signature"]["inputs"]
        self.names, types = [given["name"] for given in self.inputs], [given["type"] for given in self.inputs]
        self.of_texts, self.of_pictures = of_texts, self.layout == "columns" and types == ["binary"]
        self.of_payments = set(self.names) == set(HONEST)
        self.example = self._own_rows() or info.get("example") or []
        self.answered: dict[str, Any] = {}  # to the last single row
        self.watched: list[dict[str, Any]] = []  # columns, with what training knew of them: the drift report's
        self.vectors: list[list[float]] = []  # of `SENTENCES`

    def _own_rows(self) -> list[Any]:
        if self.of_payments:
            return [HONEST, STOLEN]
        plain = SENTENCES if self.of_texts else [as_text(png(zero)), as_text(png(one))] if self.of_pictures else []
        return [[value] for value in plain] if self.layout == "columns" else plain

    def named(self, number: int = 0) -> dict[str, Any]:
        """A row as an object with the inputs' names."""
        if not self.example:
            made_up = (_filled(given, _value(given["type"], number)) for given in self.inputs)
            return dict(zip(self.names, made_up, strict=True))
        row = self.example[number % len(self.example)]
        if isinstance(row, dict):
            return row
        return {self.names[0]: row} if self.layout == "tensors" else dict(zip(self.names, row, strict=False))

    def row(self, number: int = 0) -> Any:
        """A row in the shortest way in which this model takes one."""
        named = self.named(number)
        if self.layout == "columns":
            return [named.get(name) for name in self.names]
        return next(iter(named.values())) if len(named) == 1 else named

    @property
    def words(self) -> str:
        """What it is, in a few words."""
        takes = "pictures" if self.of_pictures else "texts" if self.of_texts else _many(len(self.inputs), "input")
        classes = self.info.get("classes")
        gives = "vectors" if self.of_texts else _many(len(classes), "class") if classes else "values"
        return f"{takes} → {gives}, {self.info['runtime']}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("es" if what.endswith("s") else "s") * (count != 1)


def _value(kind: str, number: int) -> Any:
    return PLAIN.get(kind, number % 2 == 0 if kind.startswith("bool") else 1 + number % 3)


def _filled(given: dict[str, Any], value: Any) -> Any:
    """``value`` in nested lists of the input's shape; an axis of any length gets one."""
    for length in reversed(given.get("shape", [])):
        value = [value] * max(length, 1)
    return value


# --- payments: a table with texts and gaps ---------------------------------------------------------------------------

HONEST = {
    **{"amount": 23.4, "hour": 17, "weekday": 4, "merchant_category": "groceries", "channel": "chip", "device": None},
    **{"card_type": "debit", "country": "home", "address_check": None, "email": None, "distance_km": 2.1},
    **{"account_age_days": 2100, "card_age_days": 600, "device_age_days": None, "minutes_since_last": 410.5},
    **{"transactions_1h": 0, "transactions_24h": 2, "declined_24h": 0, "amount_24h": 61.3, "amount_to_usual": 0.6},
}
STOLEN = {  # somebody else's account, on a device that it never saw, for what can be sold again
    **{"amount": 389.0, "hour": 3, "weekday": 2, "merchant_category": "vouchers", "channel": "online"},
    **{"device": "android", "card_type": "credit", "country": "abroad", "address_check": "mismatch"},
    **{"email": "disposable", "distance_km": None, "account_age_days": 900, "card_age_days": 300},
    **{"device_age_days": 0.0, "minutes_since_last": 2.5, "transactions_1h": 5, "transactions_24h": 8},
    **{"declined_24h": 2, "amount_24h": 350.0, "amount_to_usual": 6.5},
}
MOVED = ("amount", "device")  # what is changed, to see the service notice


def payments(model: Model) -> list[Step]:
    """An honest payment and one that is not: a threshold decides the class, and the answer says it."""
    path, draw = f"{model.home}/predict", random.Random(7)
    honest, fraud = model.info["classes"] or ("", "")

    def step(title: str, payment: dict[str, Any], name: str) -> Step:
        def say(content: dict[str, Any]) -> str:
            model.answered, found = content, content["prediction"]
            score, threshold = found["score"], found["threshold"]
            expect((score >= threshold) == (found["class_name"] == fraud), "score and class do not fit together")
            expect(found["class_name"] == name, f"it is {found['class_name']} and not {name}, with {score:.4f}")
            return f"{name}: score {score:.4f}, threshold {threshold:.4f}"

        return Step(title, path, {"features": payment}, 200, say, calls=20)

    def watched(content: dict[str, Any]) -> str:
        model.watched = content["features"]
        return f"{len(model.watched)} columns are watched: {content['verdict']}"

    def counted(content: dict[str, Any]) -> str:
        names = [found["class_name"] for found in content["predictions"]]
        expect(len(names) == 1000, f"{len(names)} predictions for 1,000 payments")
        return f"{names.count(fraud)} of 1,000 are {fraud}"

    def thousand() -> dict[str, Any]:
        return {"instances": [like_training(model, draw) for _ in range(1000)]}

    return [
        step("An honest payment", HONEST, honest),
        step("A stolen card", STOLEN, fraud),
        Step("Has the data moved?", f"{model.home}/drift", None, 200, watched, calls=1, method="GET"),
        Step("A thousand as in training", path, thousand, 200, counted, calls=1),
    ]


def moved(model: Model) -> list[Step]:
    """Payments unlike those of training, and what the service says of them."""
    draw = random.Random(8)

    def three_thousand() -> dict[str, Any]:
        return {"instances": [like_training(model, draw, MOVED) for _ in range(3000)]}

    def answered(content: dict[str, Any]) -> str:
        expect(len(content["predictions"]) == 3000, "there were 3,000 payments")
        return "all answered"

    def drifted(content: dict[str, Any]) -> str:
        expect(set(MOVED) <= set(content["drifted"]), f"{content['verdict']}: {content['drifted']}")
        scores = {line["name"]: (line["score"], line["threshold"]) for line in content["features"]}
        return "\n".join(f"{name}: PSI %.2f, threshold %.2f" % scores[name] for name in content["drifted"])

    return [
        Step("3,000 large ones, from desktops", f"{model.home}/predict", three_thousand, 200, answered, calls=1),
        Step("What has moved?", f"{model.home}/drift", None, 200, drifted, calls=1, method="GET", patience_s=15),
    ]


def like_training(model: Model, draw: random.Random, moved: Sequence[str] = ()) -> dict[str, Any]:
    """A payment whose columns fall into their bins as often as in training; those of ``moved`` into the last two."""
    made, kinds = dict(HONEST), {given["name"]: given["type"] for given in model.inputs}
    for line in model.watched:
        name, bins = line["name"], [one for one in line["bins"] if not one["bin"].startswith("other")]
        bins = bins[-2:] if name in moved else bins
        label = draw.choices([one["bin"] for one in bins], [one["reference"] for one in bins])[0]
        made[name] = None if draw.random() < line["missing"]["reference"] else _inside(label, kinds[name])
    return made


def _inside(label: str, kind: str) -> Any:
    """A value of the bin that the drift report calls so: a category, ``<= 5``, ``(5, 7.5]`` or ``> 7.5``."""
    if kind == "string":
        return label
    edges = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", label)]
    edges = [0.0, *edges] if label.startswith("<") else edges
    value = edges[0] + 1 if label.startswith(">") else sum(edges) / len(edges)
    return math.ceil(value) if kind in ("long", "integer") else value


# --- pictures --------------------------------------------------------------------------------------------------------

Light = Callable[[float, float], float]  # of a point (both from -1 to 1): 0 to 1


def zero(x: float, y: float) -> float:
    """The digit, as written by hand."""
    return max(0.0, 1.0 - abs(math.hypot(x / 0.5, y / 0.75) - 1.0) * 2.5)


def one(x: float, y: float) -> float:
    """The digit, as written by hand."""
    return max(0.0, 1.0 - abs(x) * 4.0) if abs(y) < 0.8 else 0.0


def png(light: Light, size: int = 32) -> bytes:
    """A square grey picture as a file: 8 bits a point."""
    at = [(2 * place + 1) / size - 1 for place in range(size)]
    lines = b"".join(b"\0" + bytes(int(255 * light(x, y)) for x in at) for y in at)
    head = struct.pack(">2I5B", size, size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


def as_text(file: bytes) -> str:
    """How a file goes into JSON: base64."""
    return base64.b64encode(file).decode()


def pictures(model: Model) -> list[Step]:
    """A picture in JSON, as an upload and by the MLflow and v2 protocols (see `protocols`); the best classes."""
    path, files = f"{model.home}/predict", [png(zero), png(one)]
    few = min(3, len(model.info["classes"] or [0]))

    def ranked(content: dict[str, Any]) -> str:
        found = content["top_k"]
        chances = [each["confidence"] for each in found]
        expect(len(found) == few and chances == sorted(chances, reverse=True), f"these are not the best {few} classes")
        expect(found[0]["class_name"] == content["prediction"]["class_name"], "the best class is another one")
        model.answered = content
        return ", ".join(map(_said, found))

    def uploaded(content: dict[str, Any]) -> str:
        expect(content["prediction"] == model.answered["prediction"], "the file is something else than the text")
        return _said(content["prediction"]) + ", the same"

    def both(content: dict[str, Any]) -> str:
        expect(len(content["predictions"]) == 2, "there were two files")
        return ", ".join(map(_said, content["predictions"]))

    def upload(title: str, sent: list[bytes], say: Say) -> Step:
        body, media_type = form(sent, {"top_k": "1"})
        return Step(title, path, body, 200, say, media_type=media_type)

    body, media_type = form([png(zero)[:60]])
    return [
        Step(
            f"A picture, the best {few} classes", path, {"features": model.row(), "top_k": few}, 200, ranked, calls=10
        ),
        upload("The same as a file", files[:1], uploaded),
        upload("Two files", files, both),
        Step("Half a file", path, body, 400, refused("invalid_input", model.names[0]), media_type=media_type),
        Step("A text that is no picture", path, {"features": [as_text(b"no picture")]}, 400, refused("invalid_input")),
    ]


def form(files: Sequence[bytes], fields: Mapping[str, str] | None = None) -> tuple[bytes, str]:
    """What a browser sends, and its media type."""
    parts = [("file", (f"{place}.png", file, "image/png")) for place, file in enumerate(files)]
    made = requests.Request("POST", "http://localhost", files=parts, data=fields).prepare()
    assert isinstance(made.body, bytes)
    return made.body, made.headers["Content-Type"]


# --- texts -----------------------------------------------------------------------------------------------------------

SENTENCES = [
    "The train to Vienna leaves at nine.",
    "When does the railway go to Austria?",
    "She baked a cake with apples.",
    "An apple pie is in the oven.",
    "The invoice is to be paid by Friday.",
    "My bank card was stolen yesterday.",
    "It will rain all week.",
    "The weather is going to be wet.",
    "Our cat sleeps on the sofa.",
    "A kitten lies on the couch.",
    "The server answers within a millisecond.",
    "He plays the violin in an orchestra.",
]
QUESTION = "Somebody took my credit card. What now?"
COMPARED, FOUND = 4, 3  # texts in the matrix; the nearest that are shown
LONG = "word " * 200_000


def texts(model: Model) -> list[Step]:
    """Vectors of texts by three protocols, which must be the same; and what they are good for."""
    name, field_name, count = model.name, model.names[0], len(SENTENCES)
    rows = [model.row(number) for number in range(count)]

    def simple(content: dict[str, Any]) -> str:
        vectors = [found["value"] for found in content["predictions"]]
        expect(len(vectors) == count, f"{len(vectors)} vectors of {count} texts")
        model.vectors = vectors
        return f"{count} vectors of {len(vectors[0])} numbers, length {math.hypot(*vectors[0]):.3f}\n{_matrix(vectors)}"

    def v2(content: dict[str, Any]) -> str:
        [output] = content["outputs"]
        length = output["shape"][1]
        return same([output["data"][row * length : (row + 1) * length] for row in range(count)])

    def openai(content: dict[str, Any]) -> str:
        return same([found["embedding"] for found in content["data"]]) + f"; {content['usage']['total_tokens']} tokens"

    def same(vectors: list[list[float]]) -> str:
        expect(list(map(_bits, vectors)) == list(map(_bits, model.vectors)), "these are other vectors")
        return "the same vectors, to the last bit"

    def search(content: dict[str, Any]) -> str:
        [asked] = [found["embedding"] for found in content["data"]]
        near = sorted((cosine(asked, vector), text) for vector, text in zip(model.vectors, SENTENCES, strict=True))
        return f"{QUESTION}\n" + "\n".join(f"{score:6.2f}  {text}" for score, text in near[: -FOUND - 1 : -1])

    tensor = {"name": field_name, "datatype": "BYTES", "shape": [count], "data": SENTENCES}
    steps = [
        Step("A dozen sentences", f"{model.home}/predict", {"features": rows}, 200, simple),
        Step("By Open Inference v2, as BYTES", f"/v2{model.home}/infer", {"inputs": [tensor]}, 200, v2),
        Step("As OpenAI's clients ask", "/v1/embeddings", {"input": SENTENCES, "model": name}, 200, openai),
        Step("Search among them", "/v1/embeddings", {"input": [QUESTION], "model": name}, 200, search),
        Step("An empty text", "/v1/embeddings", {"input": "", "model": name}, 400, refused("invalid_input")),
    ]
    if model.info["runtime"] == "text":  # others have no limit of their own
        too_long = {"input": LONG, "model": name}
        steps.append(Step("A million characters", "/v1/embeddings", too_long, 400, refused("invalid_input")))
    return steps


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """How near two vectors are: 1 for the same direction."""
    return sum(map(float.__mul__, left, right)) / (math.hypot(*left) * math.hypot(*right))


def _matrix(vectors: list[list[float]]) -> str:
    """How near the first ones are to each other."""
    few = vectors[:COMPARED]
    lines = [[cosine(left, right) for right in few] for left in few]
    expect(all(abs(lines[place][place] - 1) < 1e-6 for place in range(len(few))), "a vector is not near itself")
    shown = zip(lines, SENTENCES, strict=False)
    return "\n".join("".join(f"{near:6.2f}" for near in line) + f"  {text[:22]}…" for line, text in shown)


def _bits(vector: list[float]) -> bytes:
    """As 32-bit numbers, which some protocols write with the digits of 64-bit ones."""
    return struct.pack(f"{len(vector)}f", *vector)


# --- the scenes: one function for each group of steps ----------------------------------------------------------------


def predictions(model: Model) -> list[Step]:
    """The service's own protocol, as it is meant to be used."""

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


DATATYPES = {
    **{"double": "FP64", "float": "FP32", "long": "INT64", "integer": "INT32", "boolean": "BOOL"},
    **{"string": "BYTES", "binary": "BYTES", "datetime": "BYTES"},
}


def protocols(model: Model) -> list[Step]:
    """The same row as clients of other servers send it."""
    row = model.named()
    if model.layout != "columns" or not {given["type"] for given in model.inputs} <= DATATYPES.keys():
        return []
    tensors = [
        {"name": given["name"], "datatype": DATATYPES[given["type"]], "shape": [1], "data": [row[given["name"]]]}
        for given in model.inputs
        if row.get(given["name"]) is not None
    ]

    def mlflow(content: dict[str, Any]) -> str:
        expect(len(content["predictions"]) == 1, "it is not one prediction")
        return _brief(content["predictions"])

    def v2(content: dict[str, Any]) -> str:
        expect(all(output["shape"][0] == 1 for output in content["outputs"]), "it is not one prediction")
        return ", ".join(f"{output['name']} {_brief(output['data'])}" for output in content["outputs"])

    return [
        Step("As mlflow models serve is asked", f"{model.home}/invocations", {"dataframe_records": [row]}, 200, mlflow),
        Step("By Open Inference v2", f"/v2{model.home}/infer", {"inputs": tensors}, 200, v2),
    ]


def _brief(plain: Any) -> str:
    """The beginning of what may be long."""
    text = re.sub(r"(\.\d{3})\d+", r"\1", json.dumps(plain))
    return text if len(text) <= 60 else text[:59] + "…"


def mistakes(model: Model) -> list[Step]:
    """The service's own protocol, as it is used by accident: the answer says what is wrong, and where."""
    path, row, named = f"{model.home}/predict", model.row(), model.named()

    def step(title: str, features: Any, column: str | None = None) -> Step:
        return Step(title, path, {"features": features}, 400, refused("invalid_input", column))

    steps = [
        Step("Half a body", path, '{"features": [1, 2', 400, refused("invalid_input")),
        step("No rows", []),
        step("An unknown column", {**named, "no_such_column": 1}, "no_such_column"),
    ]
    if missing := next((given["name"] for given in model.inputs if given["required"]), None):
        steps.append(step("A missing column", {k: v for k, v in named.items() if k != missing}, missing))
    if model.layout == "columns":
        steps.append(step("A value too many", [*row, 1]))
    if typed := next((given for given in reversed(model.inputs) if given["type"] not in ("any", "object")), None):
        wrong = {**named, typed["name"]: _filled(typed, 12.5 if typed["type"] in PLAIN else "many")}
        steps.append(step("A wrong type in the second row", [named, wrong], typed["name"]))
    if typed := next((given for given in model.inputs if given["type"] in ("double", "float")), None):
        steps.append(step("An infinite number", {**named, typed["name"]: float("inf")}, typed["name"]))
    return steps


CALLERS = 20  # each asks twice


def challenged(model: Model) -> list[Step]:
    """A version that challenges the live one: whom it answers, and how both compare."""
    challenger = model.info.get("challenger") or {}
    if "part" not in challenger:
        return []
    share, seen = challenger["part"], []

    def routed(content: dict[str, Any]) -> str:
        seen.append(str(content["model"]["version"]))
        expect(set(seen) <= {model.version, str(challenger["version"])}, f"version {seen[-1]} should answer nobody")
        once, again = seen[:CALLERS], seen[CALLERS:]
        expect(again == once[: len(again)], "a caller got another version than before")
        theirs = [f"{at + 1}" for at, version in enumerate(once) if version != model.version]
        if not theirs:
            return f"version {model.version} answers all {CALLERS}; version {challenger['version']}: {share}"
        who = f"caller {', '.join(theirs)} of {CALLERS}, both times"
        return f"version {challenger['version']} has {share}: {who}"

    def compared(content: dict[str, Any]) -> str:
        sides = [content["champion"], content["challenger"]]
        lines = [f"{'':8}" + "".join(f"{'version ' + str(side['version']):>14}" for side in sides)]
        lines.append("rows    " + "".join(f"{side['rows']:>14,}" for side in sides))
        lines.append("failed  " + "".join(f"{_or_none(side['error_ratio'], '.1%'):>14}" for side in sides))
        lines.append("p95, s  " + "".join(f"{_or_none(side['latency']['p95_s'], '.5f'):>14}" for side in sides))
        if agreement := content["agreement"]:
            lines.append(f"agreed  {_or_none(agreement['agreed_ratio'], '.1%'):>14} of {agreement['rows']:,} rows")
        verdict = content["verdict"]
        return "\n".join([*lines, f"{verdict['decision']}; labels needed: {verdict['labels_needed']:,}"])

    return [
        Step(
            "Whom the challenger answers",
            f"{model.home}/predict",
            {"features": model.row()},
            200,
            routed,
            calls=2 * CALLERS,
            headers=lambda number: {"X-Routing-Key": f"caller-{number % CALLERS + 1}"},
        ),
        Step("Both side by side", f"{model.home}/compare", None, 200, compared, calls=1, method="GET"),
    ]


def _or_none(number: float | None, form: str) -> str:
    return "–" if number is None else format(number, form)


def labelled(model: Model) -> list[Step]:
    """What turned out to be true. Not in anybody's ledger but our own."""

    def label() -> dict[str, Any]:
        predicted = model.answered["prediction"]
        truth = predicted.get("class_name", predicted.get("value"))
        return {"prediction_id": model.answered["prediction_id"], "label": truth}

    def kept(content: dict[str, Any]) -> str:
        expect(content["unknown"] == [], "the prediction is not known")
        return "the label is new" if content["accepted"] else "the label was known already"

    return [Step("What turned out to be true", "/feedback", label, 200, kept, calls=1)]


def operations(model: Model) -> list[Step]:
    """What people who run the service ask it."""
    registry, home = model.info["registry"], model.home

    def live(content: dict[str, Any]) -> str:
        rows, workers = content["proof"]["rows"], content["workers"]
        proven = f"proven on {rows} rows" if rows else "not proven: " + content["proof"].get("note", "no rows")
        return f"version {content['version']} in {workers['acknowledged']} of {workers['total']} workers, {proven}"

    def drift(content: dict[str, Any]) -> str:
        expect(content["name"] == model.name, f"this is not of {model.name}")
        return ": ".join([content["verdict"], *filter(None, [", ".join(content["drifted"])])])

    def reloaded(content: dict[str, Any]) -> str:
        if "error" in content:
            return f"version {model.version} serves on: {content['error']['message']}"
        version, workers = content["model"]["version"], content["workers"]
        expect(workers["acknowledged"] == workers["total"], f"not in every worker: {workers}")
        return f"{'now' if content['changed'] else 'still'} version {version}, in all {workers['total']} workers"

    on_reload = 409 if model.info["refused"] else 200
    if registry["error"]:
        on_reload = 404 if registry["reachable"] else 502
    return [
        Step("What is live?", home, None, 200, live, method="GET"),
        Step("Look at the registry now", f"{home}/reload", None, on_reload, reloaded, calls=1),
        Step("Has the data moved?", f"{home}/drift", None, 200, drift, calls=1, method="GET"),
    ]


def scenes(model: Model, *, own: bool) -> list[Step]:
    """All that fits ``model``; ``own``: the service is there for nothing else."""
    if not model.inputs:
        return operations(model)  # without a signature there is nothing to make a row from
    if model.of_texts:
        steps = texts(model)  # about a vector there is no truth
    elif model.of_pictures:
        steps = pictures(model) + protocols(model)
    else:
        steps = (payments if model.of_payments else predictions)(model) + protocols(model) + mistakes(model)
    if own and not model.of_texts:
        steps += labelled(model)
    return steps + challenged(model) + (moved(model) if own and model.of_payments else []) + operations(model)


def service(first: Model) -> list[Step]:
    """What is the same for every model: routes that name none, or a wrong one, and the whole service's health."""

    def counted(text: str) -> str:
        counts = re.findall(r'^ml_predictions_total{.*outcome="ok".*} (.+)', text, re.MULTILINE)
        expect(bool(counts), "no rows were counted")
        return f"{sum(map(float, counts)):,.0f} rows predicted so far"

    def named(content: dict[str, Any]) -> str:
        expect(content["model"]["name"] == first.name, f"this is not an answer of {first.name}")
        return f"{first.name} answers, the first one"

    features = {"features": first.row() if first.inputs else [1]}
    named_first = Step("No model named", "/predict", features, 200, named)
    return [
        *([named_first] if first.inputs else []),
        Step("An unknown model", "/models/no-such/predict", features, 404, refused("unknown_model")),
        Step("A version that is not live", f"{first.home}/versions/0/predict", features, 404, refused("unknown_model")),
        Step("The wrong method", "/predict", None, 405, refused("wrong_method"), method="GET"),
        Step(
            "The wrong media type", "/predict", "1,2,3", 415, refused("unsupported_media_type"), media_type="text/csv"
        ),
        Step("A label without its prediction", "/feedback", {"label": 1}, 400, refused("invalid_input")),
        Step("Is it ready?", "/health", None, 200, lambda content: str(content["status"]), method="GET"),
        Step("What Prometheus sees", "/metrics", None, 200, counted, method="GET"),
    ]


# --- playing them ----------------------------------------------------------------------------------------------------


@dataclass
class Player:
    """Plays steps against the service at ``url``, a line each; ``verbose``: with both sides."""

    console: Console
    url: str
    verbose: bool = False
    held: list[bool] = field(default_factory=list)  # of every step so far
    session: requests.Session = field(default_factory=requests.Session)

    def models(self, only: str | None) -> list[Model]:
        """Those that are live there, or the one called ``only``. Raises `NothingToCall`."""
        try:
            answer = self.session.get(f"{self.url}/models", timeout=ANSWER_TIMEOUT_S)
            listed = answer.json()["models"]
            answer.raise_for_status()
            names = [str(one["name"]) for one in listed]
            if only is not None and only not in names:
                raise NothingToCall(f"{self.url}: no model {only!r} here; there is {', '.join(names)}")
            chosen = [one for one in listed if only in (None, one["name"])]
            models = [self._model(one["name"]) for one in chosen if one["ready"]]
        except (requests.ConnectionError, requests.Timeout):
            raise NothingToCall(f"no service at {self.url}; start one, or use --self-hosted") from None
        except (requests.RequestException, KeyError, TypeError, ValueError):
            raise NothingToCall(f"what answers at {self.url} is not this service") from None
        for one in chosen:
            if not one["ready"]:
                self.console.print(f"[bold red]✘ {escape(one['name'])} is not live: {escape(str(one.get('error')))}")
                self.held.append(False)
        return models

    def _model(self, name: str) -> Model:
        info = self.session.get(f"{self.url}/models/{quote(name, safe='')}", timeout=ANSWER_TIMEOUT_S).json()
        known = self.session.get(f"{self.url}/v1/models/{quote(name, safe='')}", timeout=ANSWER_TIMEOUT_S)
        return Model(info, of_texts=known.ok)

    def play(self, title: str, words: str, steps: Sequence[Step]) -> None:
        """Steps under a heading."""
        self.console.print()
        self.console.rule(Text.assemble((title, "bold"), f"  {words}"), align="left", style="blue")
        for step in steps:
            self._play(step)

    def _play(self, step: Step) -> None:
        """One step: call, judge, show. Every one of the calls must hold."""
        status, text, durations, verdict, held = None, "", [0.0], "", False
        sent, deadline = b"", time.monotonic() + step.patience_s
        number = 0
        while number < step.calls:
            try:
                sent = step.data
                answer = self._send(step, sent, number)
                status, text = answer.status_code, answer.text
                durations.append(answer.elapsed.total_seconds())
                verdict, held = _judge(step, answer), True
            except requests.RequestException as err:
                verdict, held = f"no answer: {type(err).__name__}", False
            except Wrong as err:
                verdict, held = str(err), False
            except (KeyError, TypeError, ValueError) as err:
                verdict, held = f"the content has another shape: {err!r}", False
            if not held and time.monotonic() > deadline:
                break
            if held:
                number += 1
            else:
                time.sleep(PAUSE_S)
        self.held.append(held)
        self._show(step, status, statistics.median(durations[1:] or durations), verdict, held)
        if self.verbose or not held:
            self._sides(step, sent.decode(errors="replace"), text)

    def _send(self, step: Step, data: bytes, number: int) -> requests.Response:
        headers = {"Content-Type": step.media_type} if data else {}
        headers |= step.headers(number)
        url = self.url + step.path
        return self.session.request(step.method, url, data=data or None, headers=headers, timeout=ANSWER_TIMEOUT_S)

    def _show(self, step: Step, status: int | None, seconds: float, verdict: str, held: bool) -> None:
        mark, colour = MARKS[held]
        took = f"{1000 * seconds:.1f} ms"
        head = Text.assemble((mark, colour), f" {step.title:<{TITLE}} {status or '–':>3} {took:>10}  ")
        for paragraph in verdict.split("\n"):
            for line in Text(paragraph, "" if held else "red").wrap(
                self.console, self.console.width - LEFT, overflow="fold"
            ):
                self.console.print(head + line)
                head = Text(" " * LEFT)

    def _sides(self, step: Step, sent: str, got: str) -> None:
        """What was sent and what came back, as far as it can be shown."""
        shown = [Text(f"{step.method} {step.path}", "cyan"), *(self._short(text) for text in (sent, got) if text)]
        for text in shown:
            for line in text.wrap(self.console, self.console.width - 4, overflow="fold"):
                self.console.print(Text("    ") + line)

    def _short(self, body: str) -> Text:
        """The first of a body, in colour where it is JSON; without the comments of metrics."""
        most = SHOWN_LINES * (self.console.width - 4)
        flat = " ".join(line.strip() for line in body[: 100 * most].splitlines() if not line.startswith("#"))
        return JSONHighlighter()(Text(flat if len(flat) <= most else flat[: most - 2] + " …"))


def _judge(step: Step, answer: requests.Response) -> str:
    """The verdict on an answer; raises what `Step.say` raises."""
    is_json = answer.headers.get("Content-Type") == "application/json"
    content: Any = answer.json() if is_json else answer.text
    if answer.status_code != step.status:
        error = content.get("error", answer.reason) if isinstance(content, dict) else answer.reason
        raise Wrong(f"expected {step.status}: {error['message'] if isinstance(error, dict) else error}")
    expect("X-Request-Id" in answer.headers, "it has no X-Request-Id")
    return step.say(content)


def demo(console: Console, url: str, only: str | None, *, own: bool = False, verbose: bool = False) -> int:
    """Play all that fits what is live, and sum up; the exit code. ``own``: the service is there for nothing else."""
    player = Player(console, (url if "://" in url else f"http://{url}").rstrip("/"), verbose)
    models = player.models(only)
    console.print(f"{_many(len(models), 'model')} at {escape(player.url)}")
    for model in models:
        player.play(f"{model.name} {model.version}", model.words, scenes(model, own=own))
    if models and only is None:
        player.play("The service", "whatever the model", service(models[0]))
    if all(player.held) and player.held:
        console.print(f"\n[bold green]All {len(player.held)} answers were as they should be.")
        return 0
    wrong = player.held.count(False)
    console.print(f"\n[bold red]{wrong} of {len(player.held)} answers were not as they should be.")
    return 1


# --- a service of its own --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_service(console: Console) -> Iterator[str]:
    """A service on a free port with a state folder of its own, by its URL; it is gone however this ends."""
    load_dotenv(Path(__file__).with_name(".env"))  # as the service reads it
    with tempfile.TemporaryDirectory(prefix="demo-", ignore_cleanup_errors=True) as folder:
        log, port = Path(folder, "service.log"), _free_port()
        own = {"BIND_ADDRESS": "127.0.0.1", "PORT": str(port), "DRAIN_S": "0", "LOG_FORMAT": "text"}
        own |= {"STATE_DIR": folder, "PROMETHEUS_MULTIPROC_DIR": f"{folder}/metrics", "METRICS_PORT": "0"}
        own |= {"DATABASE_URL": f"sqlite:///{folder}/ledger.db"}
        with log.open("wb") as output:
            service = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("app.py"))],
                env={"WEB_CONCURRENCY": "2", **_trained(), **os.environ, **own},
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


def _trained() -> dict[str, str]:
    """``MODELS`` with all that training left in the folder of local files, iris first; empty where nothing is there."""
    folder = Path(os.environ.get("MODEL_DIR") or Path(__file__).with_name("models"))
    names = [note.parent.name for note in folder.glob("*/version.json")]
    return {"MODELS": ",".join(sorted(names, key=lambda name: (name != "iris", name)))} if names else {}


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
            if health.ok and all(_in_every_worker(model) for model in health.json()["models"]):
                return
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    raise NothingToCall(f"the service {what}; it said:\n" + "\n".join(f"  {line}" for line in said))


def _in_every_worker(model: dict[str, Any]) -> bool:
    return bool(model["ready"] and model["workers"]["acknowledged"] == model["workers"]["total"])


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
    parser.add_argument("--only", metavar="MODEL", help="one of its models (default: all)")
    parser.add_argument("--self-hosted", action="store_true", help="start a service for this, and stop it again")
    parser.add_argument("--verbose", action="store_true", help="show what is sent and what comes back")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _told_to_stop)
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)
    try:
        with own_service(console) if options.self_hosted else contextlib.nullcontext(options.url) as url:
            return demo(console, url, options.only, own=options.self_hosted, verbose=options.verbose)
    except NothingToCall as err:
        print(f"demo: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())

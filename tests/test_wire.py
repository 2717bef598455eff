"""Frozen wire behaviour: each ``wire/<protocol>/<case>.request.json`` is answered with its ``<case>.response.json``.

A request has ``method``, ``path``, maybe ``headers``, and ``body`` (sent as JSON) or ``raw`` (a text, sent as it is).
``base64`` is binary data behind the JSON of ``body``, of a request as of a response. ``form`` is a list of parts with
``name``, ``text`` or ``base64``, and for files a ``filename``.
A response has ``status`` and ``body``, and those ``headers`` that matter for the case. `PLACEHOLDERS` in a response
stand for what differs from call to call.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client

WIRE = Path(__file__).with_name("wire")
CASES = sorted(str(path.relative_to(WIRE)).removesuffix(".request.json") for path in WIRE.glob("*/*.request.json"))
TEXTS, DEEP = "openai/", "deep/"  # cases for a service that has a model of texts, and for one of deep models
LANE = ("simple/", "mlflow/", "v2/", TEXTS, DEEP)
ROUNDS = 3
APPS = {"service": "app", "texts": "texts_app", "deep": "deep_app"}
BOUNDARY = "a-line-between-parts"
BINARY = "Inference-Header-Content-Length"  # says where binary data begin

PLACEHOLDERS = {
    "<uuid>": r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",  # version 7, ordered by time
    "<hex>": r"[0-9a-f]{32}",
    "<digest>": r"sha256:[0-9a-f]{64}",
    "<time>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00",
    "<number>": "",  # stands for a whole value
    "<anything>": "",  # likewise, where it depends on what came before
    "<path>": r"/\S+",
}


@dataclass
class Answer:
    """What came back, however it came."""

    status: int
    headers: Mapping[str, str]
    data: bytes


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(LANE)])
def test_the_lane_and_flask_answer_alike(
    case: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last byte, with the same headers in the same order; ids are held still for the comparison."""
    monkeypatch.setattr("serving.service.prediction_id", lambda _: "019aa6f0-5b5e-7c1e-9d3c-0f4f6f2f9a51")
    monkeypatch.setattr("serving.telemetry.random_id", lambda: bytes(16))
    app: Flask = request.getfixturevalue(APPS[service_of(case)])
    path, method, data, headers = parts(read(case, "request"))
    past, through = (
        Client(wsgi).open(path, method=method, data=data, headers=headers) for wsgi in (app.wsgi_app, app.wsgi_app.app)
    )
    assert past.status == through.status
    assert list(past.headers) == list(through.headers)
    assert past.data == through.data


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, request: pytest.FixtureRequest) -> None:
    app: Flask = request.getfixturevalue(APPS[service_of(case)])
    path, method, data, headers = parts(read(case, "request"))
    got = app.test_client().open(path, method=method, data=data, headers=headers)
    check(case, Answer(got.status_code, got.headers, got.data))


def service_of(case: str) -> str:
    """The service that a case is for, as its fixtures begin."""
    return {TEXTS: "texts", DEEP: "deep"}.get(case.partition("/")[0] + "/", "service")


@pytest.mark.parametrize("service", ["service", "texts", "deep"])
def test_all_over_one_connection(service: str, request: pytest.FixtureRequest) -> None:
    """Under gunicorn, kept alive: no answer leaves anything behind that the next request stumbles over."""
    connection = http.client.HTTPConnection("127.0.0.1", request.getfixturevalue(f"{service}_port"), timeout=20)
    for case in [case for case in CASES if service_of(case) == service] * ROUNDS:
        path, method, data, headers = parts(read(case, "request"))
        connection.request(method, path, data, headers)
        got = connection.getresponse()
        check(case, Answer(got.status, got.headers, got.read()))
    connection.close()


def test_every_file_has_its_other_half() -> None:
    halves = {path.name.rsplit(".", 2)[1] for path in WIRE.glob("*/*")}
    responses = {str(path.relative_to(WIRE)).removesuffix(".response.json") for path in WIRE.glob("*/*.response.json")}
    assert halves == {"request", "response"}
    assert responses == set(CASES)


def read(case: str, half: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((WIRE / f"{case}.{half}.json").read_text(encoding="utf-8"))
    return content


def parts(request: dict[str, Any]) -> tuple[str, str, bytes | None, dict[str, str]]:
    headers = dict(request.get("headers", {}))
    if "body" in request:
        headers.setdefault("Content-Type", "application/json")
        data = json.dumps(request["body"]).encode()
        if "base64" in request:
            headers.setdefault(BINARY, str(len(data)))
            data += base64.b64decode(request["base64"])
        return request["path"], request["method"], data, headers
    if "form" in request:
        headers.setdefault("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
        return request["path"], request["method"], form(request["form"]), headers
    data = request["raw"].encode() if "raw" in request else None
    return request["path"], request["method"], data, headers


def form(parts: list[dict[str, str]]) -> bytes:
    """A body of type multipart/form-data."""
    lines = []
    for part in parts:
        file = f'; filename="{part["filename"]}"' if "filename" in part else ""
        content = base64.b64decode(part["base64"]) if "base64" in part else part["text"].encode()
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{part["name"]}"{file}\r\n\r\n'
        lines.append(head.encode() + content + b"\r\n")
    return b"".join(lines) + f"--{BOUNDARY}--\r\n".encode()


def check(case: str, got: Answer) -> None:
    expected = read(case, "response")
    headers = {name: got.headers.get(name) for name in expected.get("headers", {})}
    end = int(got.headers.get(BINARY) or len(got.data))
    shown = {"status": got.status, "headers": headers, "body": json.loads(got.data[:end])}
    if end < len(got.data):
        shown["base64"] = base64.b64encode(got.data[end:]).decode()
    wrong = list(differences({"headers": {}, **expected}, shown, case))
    assert not wrong, "\n".join(wrong)
    assert got.headers["Content-Type"] == ("application/octet-stream" if "base64" in shown else "application/json")
    assert got.headers["X-Request-Id"]


def differences(expected: Any, got: Any, where: str) -> Iterator[str]:
    """One line for each place where ``got`` is not as ``expected``; types count, so that 1 is neither 1.0 nor true."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for name in sorted(expected.keys() | got.keys()):
            if name not in got or name not in expected:
                yield f"{where}.{name}: is {'missing' if name in expected else 'not expected'}"
            else:
                yield from differences(expected[name], got[name], f"{where}.{name}")
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for position, pair in enumerate(zip(expected, got, strict=True)):
            yield from differences(*pair, f"{where}[{position}]")
    elif not same(expected, got):
        yield f"{where}: expected {expected!r}, got {got!r}"


def same(expected: Any, got: Any) -> bool:
    if expected == "<anything>":
        return True
    if expected == "<number>":
        return isinstance(got, (int, float)) and not isinstance(got, bool)
    if type(expected) is not type(got):
        return False
    return bool(re.fullmatch(pattern(expected), got)) if isinstance(expected, str) else bool(expected == got)


def pattern(text: str) -> str:
    """The regular expression of a text with placeholders."""
    pieces = re.split(f"({'|'.join(PLACEHOLDERS)})", text)
    return "".join(PLACEHOLDERS.get(piece) or re.escape(piece) for piece in pieces)

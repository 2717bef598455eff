"""Log lines, as JSON or as text for people, and the request id."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serving.settings import ROOT
from serving.telemetry import (
    REQUESTS,
    JsonFormatter,
    Request,
    RequestLog,
    TextFormatter,
    _pieces,
    formatter,
    request_id,
)

# What a program logs after log_to_stdout(level, format), one word for each line.
LOGS = """
import logging, sys, warnings
from serving.telemetry import log_to_stdout
log_to_stdout(*sys.argv[1:3])
log_to_stdout(*sys.argv[1:3])
logging.getLogger("serving.part").debug("ours-debug")
logging.getLogger("serving.part").info("ours-info")
logging.getLogger("gunicorn.error").info("gunicorn-info")
logging.getLogger("serving.part").error("ours-error")
logging.getLogger("library").info("library-info")
logging.getLogger("library").warning("library-warning")
warnings.warn("python-warning")
"""


class Output(io.StringIO):
    """A standard output that is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def record(message: str = "went well", exc_info: Any = None, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("serving.part").makeRecord(
        "serving.part", logging.INFO, __file__, 1, message, (), exc_info, extra=extra
    )


def failed(message: str) -> logging.LogRecord:
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        return record(message, exc_info=sys.exc_info())


def logged(level: str, log_format: str = "text") -> list[str]:
    command = [sys.executable, "-c", LOGS, level, log_format]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def words(level: str) -> list[str]:
    known = ("ours-", "gunicorn-", "library-", "python-warning")
    return [word.rstrip(":") for line in logged(level) for word in line.split() if word.startswith(known)]


def test_json_is_one_object_a_line() -> None:
    line = JsonFormatter().format(record("two\nlines"))
    assert "\n" not in line
    content = json.loads(line)
    assert sorted(content) == ["at", "level", "logger", "message", "pid"]
    assert (content["level"], content["logger"], content["message"]) == ("info", "serving.part", "two\nlines")


def test_json_has_extras_beside_the_message() -> None:
    content = json.loads(JsonFormatter().format(record(model="iris", status=200, where=ROOT)))
    assert (content["model"], content["status"], content["where"]) == ("iris", 200, str(ROOT))


def test_json_has_the_traceback_in_its_line() -> None:
    line = JsonFormatter().format(failed("no luck"))
    assert "\n" not in line
    assert "ValueError: broken\nin two" in json.loads(line)["traceback"]


def test_text_has_time_level_message_and_the_extras_that_say_something() -> None:
    line = TextFormatter().format(record(model="iris", version=None))
    assert line[8:] == " info    went well  model=iris"
    assert line[:8].replace(":", "").isdigit()


def test_text_has_the_traceback_below() -> None:
    first, *rest = TextFormatter().format(failed("no luck")).splitlines()
    assert first.endswith("no luck")
    assert rest[0].startswith("Traceback")


@pytest.mark.parametrize(
    ("log_format", "terminal", "kind"),
    [
        ("auto", True, TextFormatter),
        ("auto", False, JsonFormatter),
        ("json", True, JsonFormatter),
        ("text", False, TextFormatter),
    ],
)
def test_the_formatter(log_format: str, terminal: bool, kind: type) -> None:
    with contextlib.redirect_stdout(Output(terminal)):
        assert type(formatter(log_format)) is kind


@pytest.mark.parametrize("given", ["a", "order-7:part_2.b", "x" * 128])
def test_a_harmless_request_id_is_taken_over(given: str) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\n", "a\r\nSet-Cookie: b", "<b>", "ä", "٣", '"'])
def test_any_other_request_id_is_made_new(given: str | None) -> None:
    made = {request_id(given) for _ in range(3)}
    assert len(made) == 3
    assert all(len(one) == 32 and int(one, 16) for one in made)


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["ours-debug", "ours-info", "gunicorn-info", "ours-error", "library-warning", "python-warning"]),
        ("info", ["ours-info", "gunicorn-info", "ours-error", "library-warning"]),
        ("error", ["ours-error", "library-warning"]),
    ],
)
def test_levels_are_ours_and_what_libraries_warn_of_python_is_for_debug(level: str, seen: list[str]) -> None:
    assert list(dict.fromkeys(words(level))) == seen


def test_each_line_is_written_once_to_standard_output() -> None:
    assert [json.loads(line)["message"] for line in logged("error", "json")] == ["ours-error", "library-warning"]


# --- the request log -------------------------------------------------------------------------------------------------


def request(number: int = 1) -> Request:
    return Request(1e9 + 0.5, "POST", "/predict", 200, f"id-{number}", "iris", "1", 0.00025)


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_request_is_one_json_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = RequestLog("info", "json", dropped=lambda _: None, file=file.fileno())
        for number in range(500):
            log.write(request(number))
        assert log.flush()
    lines = read_lines(tmp_path / "log")
    assert [line["request_id"] for line in lines] == [f"id-{number}" for number in range(500)]
    assert (lines[0]["at"], lines[0]["message"]) == ("2001-09-09T01:46:40.500+00:00", "POST /predict 200")
    assert (lines[0]["logger"], lines[0]["duration_s"]) == (REQUESTS, 0.00025)


def test_a_request_is_one_line_of_text(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = RequestLog("debug", "text", dropped=lambda _: None, file=file.fileno())
        log.write(request())
        assert log.flush()
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line[8:].startswith(" info    POST /predict 200  request_id=id-1 model=iris version=1 status=200")


def test_above_info_requests_are_not_logged(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = RequestLog("warning", "json", dropped=lambda _: None, file=file.fileno())
        log.write(request())
        assert log.flush()
    assert (tmp_path / "log").read_bytes() == b""


def test_a_log_that_nobody_reads_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that is full: lines wait, then are dropped and counted; when it is read again, the log says so."""
    monkeypatch.setattr(RequestLog, "QUEUED_LINES", 1000)
    reader, writer = os.pipe()
    dropped: list[int] = []
    log = RequestLog("info", "json", dropped=dropped.append, file=writer)
    started = time.thread_time()
    for number in range(5000):
        log.write(request(number))
    assert time.thread_time() - started < 1.0
    assert not log.flush(0.1)
    seen = b""
    while b"dropped" not in seen:
        seen += os.read(reader, 1 << 16)
        log.write(request())
    assert sum(dropped) > 1000
    assert all(json.loads(line) for line in seen.splitlines()[:-1])


def test_a_log_that_is_gone_is_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    dropped: list[int] = []
    log = RequestLog("info", "json", dropped=dropped.append, file=writer)
    for number in range(30):
        log.write(request(number))
    assert log.flush()
    assert sum(dropped) == 30


def test_what_is_written_at_once_is_whole_lines_that_a_pipe_takes_in_one_piece(tmp_path: Path) -> None:
    lines = [b"x" * size + b"\n" for size in (10, 4000, 200, 5000, 1)]
    pieces = list(_pieces(lines))
    assert b"".join(pieces) == b"".join(lines)
    assert [len(piece) for piece in pieces] == [4012, 201, 5001, 2]

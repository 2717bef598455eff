"""Log lines, as JSON or as text for people, and the request id."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from serving.settings import ROOT
from serving.telemetry import JsonFormatter, TextFormatter, formatter, request_id

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

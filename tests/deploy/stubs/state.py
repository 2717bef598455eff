"""What the stub programs know and keep: the world that they share, the calls so far, and the faults to play."""

from __future__ import annotations

import sys
import threading
from typing import Any

WORLD: dict[str, Any] = {}
CALLS: list[list[str]] = []
HANGING = threading.Event()


class Hang(Exception):
    """This call never ends by itself."""


def call(tool: str, argv: list[str]) -> None:
    """Records the call, and plays the fault that is meant for it: an exit code with a message, or hanging."""
    CALLS.append([tool, *argv])
    line = " ".join(argv)
    fault = next((f for f in WORLD["faults"] if f["tool"] == tool and f["argv"] in line and f["times"] > 0), None)
    if not fault:
        return
    fault["times"] -= 1
    if fault.get("hang"):
        raise Hang
    print(fault.get("stdout", ""), end="")
    say(fault.get("stderr", ""))
    sys.exit(fault["code"])


def say(text: str) -> None:
    if text:
        print(text, file=sys.stderr)


def refuse(message: str, code: int = 1) -> None:
    """Ends the program as a failing one ends."""
    say(message)
    sys.exit(code)


def option(argv: list[str], name: str, default: str = "") -> str:
    """The value of ``--name value`` or ``--name=value``."""
    for i, word in enumerate(argv):
        if word == name:
            return argv[i + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return default

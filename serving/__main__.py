"""``python -m serving compare | promote | rollback MODEL``: decide between versions, and move an alias."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from serving.errors import ServingError, SettingError, UnknownModel
from serving.promotion import Done, Refused, Wish, promote, rollback
from serving.registry import DEFAULT_ALIAS, Auth, Ref, registry_at
from serving.registry.moves import Aliases, actor
from serving.routing import CHALLENGER
from serving.table import check_lines, side_by_side, version_lines

OK, FAILED, REFUSED = 0, 1, 3  # 2 is argparse's, for what it does not understand
CONNECT_S, ANSWER_S = 3.05, 30.0


class Options(Protocol):
    """What is read of the settings."""

    @property
    def url(self) -> str: ...

    @property
    def mlflow_tracking_uri(self) -> str: ...

    @property
    def mlflow_tracking_username(self) -> str: ...

    @property
    def mlflow_tracking_password(self) -> str: ...

    @property
    def mlflow_tracking_token(self) -> str: ...


class Answered(ServingError):
    """What a service answered that is no comparison, with its own status and code."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def main(arguments: Sequence[str], options: Options) -> int:
    """Do what ``arguments`` say, and give the exit code: 0 done, 1 failed, 3 refused or undecided; it is said why."""
    given = _parser().parse_args(arguments)
    do: Callable[[argparse.Namespace, Options], int] = {"compare": _compare, "promote": _promote}.get(
        given.command, _rollback
    )
    try:
        return do(given, options)
    except Refused as err:
        return _refused(err, given.json)
    except ServingError as err:
        if given.json:
            print(json.dumps({"error": {"code": err.code, "message": str(err)}}, indent=1))
        print(err, file=sys.stderr)
        return FAILED


def _compare(given: argparse.Namespace, options: Options) -> int:
    found = ask(given.url or options.url, given.model, given.margin)
    print(json.dumps(found, indent=1) if given.json else side_by_side(found))
    return OK if found["verdict"]["decision"] == "promote" else REFUSED


def _promote(given: argparse.Namespace, options: Options) -> int:
    aliases = connect(options, given.model)
    wish = Wish(
        given.model,
        by=given.by or actor(),
        why=given.why,
        source=given.source,
        alias=given.alias,
        version=given.version,
        force=given.force,
    )
    return _done(promote(aliases, wish, lambda: ask(given.url or options.url, given.model, given.margin)), given.json)


def _rollback(given: argparse.Namespace, options: Options) -> int:
    done = rollback(
        connect(options, given.model),
        given.model,
        by=given.by or actor(),
        why=given.why,
        alias=given.alias,
        to=given.to,
        only_from=given.only_from,
    )
    return _done(done, given.json)


# --- whom it asks ----------------------------------------------------------------------------------------------------


def ask(url: str, model: str, margin: float) -> Any:
    """What the service at ``url`` says of the model's champion and challenger. Raises `Answered`."""
    import requests

    where = f"{url.rstrip('/')}/models/{quote(model, safe='')}/compare"
    try:
        answer = requests.get(where, params={"margin": margin}, timeout=(CONNECT_S, ANSWER_S))
        content = answer.json()
    except requests.JSONDecodeError as err:
        raise Answered(
            f"{where} answered {answer.status_code} without JSON: no such service?", 502, "no_answer"
        ) from err
    except requests.RequestException as err:
        raise Answered(f"the service at {url} does not answer: {type(err).__name__}", 502, "no_answer") from err
    if answer.ok and isinstance(content, dict) and "verdict" in content:
        return content
    error = content.get("error") if isinstance(content, dict) else None
    said = error if isinstance(error, dict) else {}
    message = said.get("message", f"{where} answered {answer.status_code}")
    raise Answered(str(message), answer.status_code, str(said.get("code", "no_answer")))


def connect(options: Options, model: str) -> Aliases:
    """The aliases of the registry that ``options`` name.

    Looks first in a way that fails at once: MLflow's client tries for minutes, and makes an SQLite file where none is.
    """
    auth = Auth(options.mlflow_tracking_username, options.mlflow_tracking_password, options.mlflow_tracking_token)
    for name in ("username", "password", "token"):  # MLflow's client reads them there only
        if value := getattr(auth, name):
            os.environ[f"MLFLOW_TRACKING_{name.upper()}"] = value
    with contextlib.suppress(UnknownModel):
        registry_at(options.mlflow_tracking_uri, auth).resolve(Ref(model))
    return Aliases.at(options.mlflow_tracking_uri)


# --- what it says ----------------------------------------------------------------------------------------------------


def _done(done: Done, as_json: bool) -> int:
    if as_json:
        checks = [check.as_json() for check in done.checks]
        named = {"model": done.model, "alias": done.alias, "from": done.before, "to": done.to}
        print(json.dumps({**named, "changed": done.changed, "gate": done.gate, "checks": checks}, indent=1))
    elif not done.changed:
        print(f"nothing to do: version {done.to} of {done.model} is {done.alias} already")
    else:
        was = f", which was version {done.before}" if done.before else ""
        forced = [done.gate] if done.gate.startswith("forced") else []
        for line in (*_words(done.checks), *forced, f"version {done.to} of {done.model} is {done.alias} now{was}"):
            print(line)
    return OK


def _refused(err: Refused, as_json: bool) -> int:
    if as_json:
        versions = [vars(one) for one in err.versions]
        told = {"decision": err.decision, "labels_needed": err.labels_needed, "message": str(err)}
        print(json.dumps({**told, "checks": [check.as_json() for check in err.checks], "versions": versions}, indent=1))
        return REFUSED
    for line in (*_words(err.checks), *version_lines(err.versions)):
        print(line)
    print(err, file=sys.stderr)
    return REFUSED


def _words(checks: Sequence[Any]) -> list[str]:
    return check_lines([check.as_json() for check in checks])


# --- what it understands ---------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Decide between versions. Exit code 0: done; 1: failed; 2: usage; 3: refused or undecided.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="champion and challenger side by side, and the verdict")
    _add_asking(compare)
    promote = commands.add_parser("promote", help="make the challenger the champion, if the gate lets it")
    _add_asking(promote)
    promote.add_argument("--from", dest="source", default=CHALLENGER, metavar="ALIAS", help="default: challenger")
    promote.add_argument("--version", metavar="N", help="only if it is this one; any one with --force")
    promote.add_argument("--force", action="store_true", help="whatever the gate says, which is recorded")
    back = commands.add_parser("rollback", help="go back to the version that the champion replaced")
    back.add_argument("--to", metavar="VERSION", help="default: by the record of moves")
    back.add_argument("--only-from", metavar="VERSION", help=argparse.SUPPRESS)  # for the service itself
    for command in (promote, back):
        command.add_argument("--alias", default=DEFAULT_ALIAS, help=f"default: {DEFAULT_ALIAS}")
        command.add_argument("--why", default="", metavar="TEXT", help="goes on record")
        command.add_argument("--by", default="", help=argparse.SUPPRESS)
    for command in (compare, promote, back):
        command.add_argument("model", metavar="MODEL")
        command.add_argument("--json", action="store_true", help="for machines")
    return parser


def _add_asking(command: argparse.ArgumentParser) -> None:
    command.add_argument("--margin", type=_margin, default=0.0, metavar="X", help="by how much quality may be worse")
    command.add_argument("--url", metavar="URL", help="of the service; default: by HOST and PORT of the settings")


def _margin(text: str) -> float:
    if not 0 <= (margin := float(text)) < math.inf:
        raise ValueError(text)
    return margin


if __name__ == "__main__":
    from dotenv import load_dotenv

    from serving.settings import ROOT, Settings

    load_dotenv(ROOT / ".env")  # as the service reads it
    try:
        code = main(sys.argv[1:], Settings.from_env())
    except SettingError as err:
        print(err, file=sys.stderr)
        code = FAILED
    sys.stdout.flush()
    raise SystemExit(code)

"""Train a model family, register the version, and promote it if it passes the gate."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dotenv import load_dotenv

from serving.errors import SettingError
from serving.registry import DEFAULT_ALIAS
from serving.settings import ROOT, Settings
from training import FAMILIES, find
from training.options import PRECISIONS, Options, Unusable

if TYPE_CHECKING:
    from rich.console import Console

    from training.report import Outcome

PROMOTED, ERROR, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130

# Read by MLflow and by what it uses when they are imported; whoever sets one knows better.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that is gone is to be noticed in seconds; MLflow's own 7 retries of 120 s take minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Large files go through the server: whoever trains need not reach the store, which may be inside a cluster.
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "PGCONNECT_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "GIT_PYTHON_REFRESH": "quiet",  # where there is no git, nothing is to be said about it
}

FILE_WIDTH = 120  # characters of a table, where no terminal says how many it has

# What MLflow takes as an alias: it keeps `latest` and `v1`, `v2` … for itself.
ALIAS = re.compile(r"(?!(?:latest|v\d+)$)[\w-]+", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    if options.list:
        _list()
        return PROMOTED
    _prepare_surroundings()
    try:
        return _train_all(options)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except SettingError as err:
        return _fail(str(err))


def _list() -> None:
    for name, kind in FAMILIES.items():
        takes = "".join(f" --{option}" for option in kind.options)
        print(f"{name:<10} {kind.words}{';' if takes else ''}{takes}")


def _prepare_surroundings() -> None:
    """The environment as the service reads it, and MLflow quiet."""
    load_dotenv(ROOT / ".env")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # `python -W` shows them
        warnings.filterwarnings("ignore", module=r"mlflow\.")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="train_model.py",
        description=__doc__,
        epilog="Exit codes: 0 promoted (or, with --no-promote, fit to be), 1 error, 2 usage, 3 refused by the gate.",
    )
    add = parser.add_argument
    add("families", nargs="*", metavar="family", help=f"what to train: {', '.join(FAMILIES)}")
    add("--all", action="store_true", help="train all families")
    add("--list", action="store_true", help="list the families and end")
    add("--seed", type=int, default=42, help="makes the result reproducible (default: %(default)s)")
    add(
        "--alias",
        default=DEFAULT_ALIAS,
        help="what to move when the gate is passed, and whom to compare with (default: %(default)s); only the default "
        "one is also left under MODEL_DIR",
    )
    add("--no-promote", action="store_true", help="register and judge the version, but leave the alias alone")
    add("--force", action="store_true", help="promote even what the gate refuses")
    add(
        "--breaking-change",
        action="store_true",
        help="clients were told that the signature changes: neither the gate nor the service refuses it for that",
    )
    add("--data", type=Path, metavar="FILE", help=f"rows of your own, CSV or Parquet ({_takers('data')})")
    add("--weights", metavar="NAME|PATH|none", help=f"what to start from ({_takers('weights')})")
    add("--precision", choices=PRECISIONS, help=f"of the weights that are served ({_takers('precision')})")
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _takers(option: str) -> str:
    return ", ".join(name for name, kind in FAMILIES.items() if option in kind.options)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of families that are on the command line."""
    values = {field.name: getattr(options, field.name) for field in fields(Options)}
    return {name: value for name, value in values.items() if value is not None}


def _check(parser: Parser, options: argparse.Namespace) -> None:
    if options.all:
        options.families = list(FAMILIES)
    for name in options.families:
        if name not in FAMILIES:
            parser.error(f"unknown family {name!r}; there are: {', '.join(FAMILIES)}")
    if not (options.families or options.list):
        parser.error(f"name a family, one of: {', '.join(FAMILIES)}; or --all")
    for name in () if options.all else options.families:  # with --all, an option is for those that take it
        for option in sorted(_given(options).keys() - set(FAMILIES[name].options)):
            parser.error(f"{name} takes no --{option}; it is for: {_takers(option)}")
    if not 0 <= options.seed < 2**32:
        parser.error("--seed must be between 0 and 4294967295")
    if not ALIAS.fullmatch(options.alias):
        parser.error(f"--alias must be letters, digits, - and _, and neither 'latest' nor like 'v1': {options.alias!r}")


def _train_all(options: argparse.Namespace) -> int:
    """Train what was named, one after the other; returns the exit code. Raises `SettingError`."""
    settings = Settings.from_env()

    # Only now, because MLflow and scikit-learn take seconds that --help and --list need not wait for.
    from rich.console import Console

    from training.report import Report

    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    done = [_train(name, options, settings, console) for name in options.families]
    if options.all:
        Report.summary(console, [outcome for _, outcome in done])
    codes = [code for code, _ in done]
    return ERROR if ERROR in codes else max(codes)


def _train(name: str, options: argparse.Namespace, settings: Settings, console: Console) -> tuple[int, Outcome]:
    """Train one family; returns its exit code and how it ended."""
    from training import failure
    from training.pipeline import Plan, train
    from training.report import Outcome, Report

    kind = FAMILIES[name]
    console.print(f"[bold]{name}[/]: {kind.words}", soft_wrap=True, highlight=False)
    plan = Plan(options.seed, options.alias, not options.no_promote, options.force, options.breaking_change)
    given = {option: value for option, value in _given(options).items() if option in kind.options}
    try:
        if kind.missing:
            raise Unusable(f"{name} needs {', '.join(kind.missing)}, not installed here: make deep")
        chosen = find(name, Options(**given))
        outcome = train(chosen, plan, settings, Report(console, chosen))
    except failure.SURROUNDINGS as err:
        why = failure.brief(err)
        return _fail(why), Outcome(name, "", False, why, {}, 0.0)
    return PROMOTED if outcome.allowed else REFUSED, outcome


def _fail(why: str, code: int = ERROR) -> int:
    print(f"train_model.py: {why}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

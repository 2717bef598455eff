"""``python -m serving.ledger export | drain | upgrade | status``: the ledger by hand. Needs no service running."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from serving import notes
from serving.errors import SettingError
from serving.ledger.spool import waiting
from serving.state import LedgerState

OK, FAILED, NOTHING_FOUND = 0, 1, 3


class Options(Protocol):
    """What is read of the settings."""

    @property
    def database_url(self) -> str: ...

    @property
    def state_dir(self) -> Path: ...

    @property
    def ledger_keep_days(self) -> float: ...

    @property
    def ledger_max_rows(self) -> int: ...


def main(arguments: Sequence[str], options: Options) -> int:
    """Do what ``arguments`` say, and give the exit code: 0 done, 1 failed (standard error says why), 3 no such rows."""
    given = _parser().parse_args(arguments)
    state = LedgerState(options.state_dir)
    try:
        if given.command == "export":
            return _export(given, options, state)
        if given.command == "drain":
            return _drain(given.timeout, options, state)
        if given.command == "upgrade":
            return _upgrade(options, state)
        return _status(state)
    except SettingError as err:
        return _failed(str(err))


def _export(given: argparse.Namespace, options: Options, state: LedgerState) -> int:
    from serving.ledger.database import Database
    from serving.ledger.export import Selection, export

    database = Database(options.database_url or state.default_url)
    selection = Selection(given.model, given.version, given.since, given.until, given.all)
    try:
        rows = export(database, selection, given.out)
    except ImportError:
        return _failed("export needs pyarrow, which is among the requirements for training: pip install pyarrow")
    except Exception as err:
        return _failed(database.told(err))
    if not rows:
        hint = "" if given.all else "; --all takes rows without a label too"
        print(f"no such rows, so nothing was written{hint}", file=sys.stderr)
        return NOTHING_FOUND
    print(f"{rows} rows written to {given.out}")
    return OK


def _drain(timeout_s: float, options: Options, state: LedgerState) -> int:
    """In a thread, so that the process ends in time whatever the database does."""
    from serving.ledger.writer import Writer

    writer = Writer(options.database_url, state, keep_days=options.ledger_keep_days, max_rows=options.ledger_max_rows)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(writer.drain(timeout_s)), daemon=True)
    thread.start()
    thread.join(timeout_s + 0.5)
    if done == [True]:
        return OK
    left = len(waiting(state.spool)) + len(waiting(state.asks))
    return _failed(f"{left} files could not be written within {timeout_s:g} s; they wait in {state.path}")


def _upgrade(options: Options, state: LedgerState) -> int:
    from serving.ledger.database import Database

    database = Database(options.database_url or state.default_url)
    try:
        database.connect().close()
    except Exception as err:
        return _failed(database.told(err))
    print("the ledger's tables are up to date")
    return OK


def _status(state: LedgerState) -> int:
    note = notes.read(state.status)
    queue = {"pages": len(waiting(state.spool)), "asks": len(waiting(state.asks)), "refused": len(waiting(state.bad))}
    print(json.dumps({**(note or {"reachable": None}), "waiting": queue}, indent=1))
    return OK if note and note["reachable"] else FAILED


def _failed(why: str) -> int:
    print(why, file=sys.stderr)
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.ledger", description="The ledger, by hand.")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write predictions with their labels as Parquet")
    export.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    export.add_argument("--model")
    export.add_argument("--version")
    export.add_argument("--since", type=_moment, metavar="ISO", help="predictions made then or later")
    export.add_argument("--until", type=_moment, metavar="ISO", help="predictions made before")
    export.add_argument("--all", action="store_true", help="rows without a label too")
    drain = commands.add_parser("drain", help="write what waits on disk into the database, and end")
    drain.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS")
    commands.add_parser("upgrade", help="bring the tables up to date")
    commands.add_parser("status", help="whether the database answers, what waits, and live quality")
    return parser


def _moment(text: str) -> datetime:
    """ISO 8601; without a zone it is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


if __name__ == "__main__":
    from dotenv import load_dotenv

    from serving.settings import ROOT, Settings

    load_dotenv(ROOT / ".env")  # as the service reads it
    try:
        code = main(sys.argv[1:], Settings.from_env())
    except SettingError as err:
        code = _failed(str(err))
    sys.stdout.flush()
    os._exit(code)  # a call that hangs keeps nobody

"""The package from outside: light where workers import it, and what it does by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ledgers import KINDS, Ledger, new_url, taken

from serving.ledger import Feedback, Label
from serving.ledger.__main__ import main
from serving.settings import ROOT


@pytest.fixture(params=KINDS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return Ledger(new_url(request.param, tmp_path), tmp_path / "state")


def run(ledger: Ledger, *arguments: str | Path, url: str | None = None) -> int:
    """The command, in this process."""
    state_dir = ledger.state.path.parent
    database_url = ledger.url if url is None else url
    options = SimpleNamespace(database_url=database_url, state_dir=state_dir, ledger_keep_days=30.0, ledger_max_rows=0)
    return main([str(argument) for argument in arguments], options)


def fill(ledger: Ledger, count: int = 10) -> None:
    rng = np.random.default_rng(0)
    predictions = [taken(rng) for _ in range(count)]
    ledger.put(predictions)
    Feedback(ledger.state, wait_s=0.0).send([Label(one.prediction_id, 0, 1, None) for one in predictions[1:]])


def test_a_worker_imports_no_database() -> None:
    heavy = {"sqlalchemy", "alembic", "psycopg2", "pyarrow"}
    code = f"import sys, serving.ledger; print(*({heavy} & set(sys.modules)))"
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert got.stdout.split() == []


def test_drain_writes_what_waits(ledger: Ledger) -> None:
    fill(ledger)
    assert run(ledger, "drain") == 0
    assert len(ledger.ids()) == 10
    assert ledger.rows("SELECT count(*) FROM ledger_labels") == [(9,)]


def test_drain_says_what_is_left(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    fill(ledger)
    assert run(ledger, "drain", "--timeout", "0.2", url="postgresql://u:hunter2@127.0.0.1:1/d") == 1
    said = capsys.readouterr().err
    assert "2 files could not be written" in said
    assert "hunter2" not in said
    assert len(ledger.spool.pages()) == 1


def test_export_writes_a_training_set(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(ledger)
    assert ledger.drain()
    out = tmp_path / "out.parquet"
    assert run(ledger, "export", "--out", out, "--model", "iris", "--since", "2026-01-01") == 0
    assert pq.read_table(out).num_rows == 9
    assert run(ledger, "export", "--out", out, "--all") == 0
    assert pq.read_table(out).num_rows == 10
    assert "10 rows" in capsys.readouterr().out


def test_export_without_rows_writes_nothing(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "export", "--out", tmp_path / "out.parquet") == 3
    assert "no such rows" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_export_without_pyarrow_says_so(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(ledger, "export", "--out", tmp_path / "out.parquet") == 1
    assert "pyarrow" in capsys.readouterr().err


def test_export_from_a_database_that_is_away_says_so(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "postgresql://u:hunter2@127.0.0.1:1/d"
    assert run(ledger, "export", "--out", tmp_path / "out.parquet", url=url) == 1
    said = capsys.readouterr().err
    assert "refused" in said
    assert "hunter2" not in said
    assert run(ledger, "upgrade", url=url) == 1
    assert run(ledger, "upgrade", url="nonsense") == 1


def test_a_time_that_is_none_is_refused(ledger: Ledger) -> None:
    with pytest.raises(SystemExit):
        run(ledger, "export", "--out", "x", "--since", "yesterday")


def test_upgrade_makes_the_tables(ledger: Ledger) -> None:
    assert run(ledger, "upgrade") == 0
    assert ledger.ids() == []


def test_status_says_whether_the_database_answers(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    fill(ledger)
    assert run(ledger, "status") == 1
    assert json.loads(capsys.readouterr().out) == {"reachable": None, "waiting": {"pages": 1, "asks": 1, "refused": 0}}
    ledger.state.status.write_text('{"reachable": true}')
    assert run(ledger, "status") == 0


def command(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """The command as people call it."""
    process = [sys.executable, "-m", "serving.ledger", *arguments]
    environment = {**os.environ, **settings}
    return subprocess.run(process, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_command_reads_the_settings(tmp_path: Path) -> None:
    ledger = Ledger(new_url("sqlite", tmp_path), tmp_path)
    fill(ledger)
    done = command("drain", STATE_DIR=str(tmp_path), DATABASE_URL=ledger.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(ledger.ids()) == 10
    done = command("drain", STATE_DIR=str(tmp_path), LEDGER_MAX_ROWS="many")
    assert done.returncode == 1
    assert done.stderr.startswith("LEDGER_MAX_ROWS must be")

"""SQLite registries that MLflow need not set up first, which takes it five seconds each."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import mlflow


def empty_registry(file: Path) -> str:
    """The URI of a registry with nothing in it at ``file``; MLflow set up what that is a copy of, once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_pattern(), file)
    return f"sqlite:///{file}"


def _pattern() -> Path:
    folder = Path(tempfile.gettempdir()) / f"mlflow-live-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    made = folder / f"mlflow-{mlflow.__version__}.db"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            part = folder / "part.db"
            part.unlink(missing_ok=True)
            client = mlflow.MlflowClient(f"sqlite:///{part}", f"sqlite:///{part}")
            client.search_experiments()
            with contextlib.closing(sqlite3.connect(part)) as database, database:
                database.execute("DELETE FROM experiments")  # whose artifacts would lie beside this file
            part.rename(made)
    return made

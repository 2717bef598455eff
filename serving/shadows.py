"""Shadows, as the agent keeps them: started where a challenger sees copies, ended when it no longer does, or hangs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

from serving import copies, notes
from serving.exposition import fold_if_possible
from serving.metrics import Metrics
from serving.routing import SHADOW
from serving.shadow import AT_WORK, Task, command, left_at_work
from serving.state import ModelState

TICK_S = 0.25
HUNG_S = 10.0  # for one page; the processor time that it was not given counts too, which only makes it slower
PAUSE_S = (1.0, 60.0)  # first and longest, after a shadow that died
END_S = 2.0

log = logging.getLogger("serving.agent")


class ShadowKeeper:
    """Keeps the shadow of one model as its challenger's note wants it."""

    def __init__(self, task: Task, metrics: Metrics, *, hung_s: float = HUNG_S) -> None:
        """``task`` says everything but the bundle."""
        self._task = task
        self._metrics = metrics
        self._hung_s = hung_s
        self._state = ModelState(Path(task.state_dir), task.model, ModelState.CHALLENGER)
        self._child: subprocess.Popen[bytes] | None = None
        self._bundle: str | None = None
        self._version = ""
        self._retry_at, self._retry_s = 0.0, PAUSE_S[0]
        self._seen: object = None
        self._known: tuple[str | None, str] = (None, "")

    def keep(self, stop: threading.Event) -> None:
        """Until ``stop``."""
        try:
            while not stop.wait(TICK_S):
                try:
                    self._look()
                except OSError as err:
                    log.error("%s: its shadow cannot be kept: %s", self._task.model, err.strerror)
                    stop.wait(PAUSE_S[0])
        finally:
            self._end()

    def _look(self) -> None:
        wanted, version = self._wanted()
        if wanted != self._bundle:
            self._end()
            self._throw_away(keep_new=wanted is not None)
            self._bundle, self._version, self._retry_at, self._retry_s = wanted, version, 0.0, PAUSE_S[0]
        if wanted is None:
            return
        if self._child is None:
            if time.monotonic() >= self._retry_at:
                self._start(wanted)
        elif self._child.poll() is not None:
            self._bury(f"ended with code {self._child.returncode}")
        elif (page := left_at_work(self._state)) and time.time() - page["since"] > self._hung_s:
            self._bury(f"was at one page for more than {self._hung_s:g} s")

    def _throw_away(self, *, keep_new: bool) -> None:
        """Copies for another version or for none: those that were made before this one was desired."""
        if not keep_new:
            shutil.rmtree(self._state.shadow, ignore_errors=True)
            return
        since = self._state.desired.stat().st_mtime_ns
        for path in self._state.shadow.iterdir() if self._state.shadow.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns < since:
                    path.unlink()

    def _wanted(self) -> tuple[str | None, str]:
        """The bundle that is to see copies, and its version."""
        stamp = notes.stamp(self._state.desired)
        if stamp != self._seen:
            self._seen, desired = stamp, notes.read(self._state.desired)
            wanted = desired is not None and desired["bundle"] is not None and desired["part"] == SHADOW
            self._known = (desired["bundle"], desired["version"]) if desired is not None and wanted else (None, "")
        return self._known

    def _start(self, bundle: str) -> None:
        # What it serves is no secret of the agent's, whose environment has what opens the registry.
        secret = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        environment = {name: value for name, value in os.environ.items() if name not in secret}
        self._child = subprocess.Popen(
            command(replace(self._task, bundle=bundle)), stdin=subprocess.PIPE, env=environment, start_new_session=True
        )

    def _bury(self, how: str) -> None:
        """The shadow is dead or hung: what it was at goes with it, and the next one starts after a pause."""
        self._end()
        page = left_at_work(self._state)
        if page is not None:
            rows = self._rows(self._state.shadow / page["page"])
            self._metrics.shadow_rows.labels(self._task.model, self._version, "failed").inc(rows)
            (self._state.shadow / page["page"]).unlink(missing_ok=True)
            (self._state.shadow / AT_WORK).unlink(missing_ok=True)
        who = self._task.model, self._version
        log.warning("%s: the shadow of version %s %s; the next starts in %g s", *who, how, self._retry_s)
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, PAUSE_S[1])

    @staticmethod
    def _rows(page: Path) -> int:
        try:
            return copies.decode(page.read_bytes()).batch.rows
        except (OSError, ValueError, KeyError):
            return 1

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            fold_if_possible(Path(shared), child.pid)

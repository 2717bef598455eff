"""Probation: a new version that fails or is slow goes back to the one before it, without anybody being there.

It is derived from notes, so an agent that starts anew goes on where the last one was. The registry has the last word:
the alias is moved only while it names the version in question, and never twice for the same one, whichever pod asks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import Metric

from serving import bundle as bundles
from serving import notes
from serving.bundle import Bundle, BundleUnreadable
from serving.counts import Counts, quantile
from serving.registry.moves import SERVICE
from serving.state import ModelState

ERROR_RATIO, LATENCY, FAILED = "error_ratio", "latency", "failed"
P95, SLACK_S = 0.95, 0.001
TICK_S, LOOK_S = 0.25, 1.0  # to see that a version is new, and between two looks at what was counted
PAUSE_S = (5.0, 60.0)  # first and longest, after a rollback that failed
CHILD_S = 60.0
OK, REFUSED = 0, 3  # what ``python -m serving`` ends with

log = logging.getLogger("serving.agent")

Collect = Callable[[], Iterable[Metric]]


@dataclass(frozen=True)
class Bounds:
    """How long a new version is watched, and what it may not do: `serving.settings` says it in words."""

    probation_s: float
    error_ratio: float
    latency_ratio: float
    min_rows: int


@dataclass(frozen=True)
class Back:
    """A way back: ``model``'s alias is to name ``to``, if it still names ``only_from``."""

    model: str
    alias: str
    to: str
    only_from: str
    why: str


@dataclass(frozen=True)
class Came:
    """What came of a rollback: the command's exit code and last line."""

    code: int
    said: str


class Probation:
    """Watches the new versions of one model."""

    def __init__(
        self,
        model: str,
        alias: str,
        state_dir: Path,
        bounds: Bounds,
        collect: Collect,
        roll_back: Callable[[Back, threading.Event], Came],
        *,
        on_rollback: Callable[[str], object] = lambda _reason: None,
        look: Callable[[], object] = lambda: None,
    ) -> None:
        """``collect`` gives what this pod counted, ``look`` has the agent look at the registry now.

        ``on_rollback`` is told why: `ERROR_RATIO` or `LATENCY`, or `FAILED` where the alias could not be moved.
        """
        self._model, self._alias = model, alias
        self._state = ModelState(state_dir, model)
        self._service = state_dir / "service.json"
        self._bounds = bounds
        self._collect = collect
        self._roll_back = roll_back
        self._on_rollback = on_rollback
        self._ask_to_look = look
        self._stop = threading.Event()
        self._seen: object = None
        self._trial: dict[str, Any] | None = None  # the note of the probation that goes on
        self._look_at, self._pause_s = 0.0, PAUSE_S[0]

    def watch(self, stop: threading.Event) -> None:
        """Until ``stop``."""
        self._stop = stop
        while not stop.wait(TICK_S):
            try:
                self.look()
            except OSError as err:
                log.error("%s: its probation cannot be kept: %s", self._model, err.strerror)
                stop.wait(LOOK_S)

    def look(self) -> None:
        """Begin a probation where a version is new, and judge the one that goes on. Raises OSError."""
        stamp = notes.stamp(self._state.desired)
        if stamp != self._seen:
            self._trial = self._begin(notes.read(self._state.desired))
            self._seen, self._look_at, self._pause_s = stamp, 0.0, PAUSE_S[0]
        if self._trial is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        if _age_s(self._trial["since"]) > self._bounds.probation_s:
            log.info("%s: version %s has passed its probation", self._model, self._trial["version"])
            self._trial = None
        elif (found := judge(self._trial, Counts(self._collect(), self._model), self._bounds)) is not None:
            self._go_back(self._trial, *found)

    # --- the note ---

    def _begin(self, desired: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The note of the probation of what is desired; None where it has none to pass."""
        previous = self._previous(desired)
        if desired is None or previous is None or _age_s(desired["since"]) > self._bounds.probation_s:
            return None
        gone = (notes.read(self._state.rolled_back) or {}).get("from")
        if gone in (desired["version"], previous.version):
            return None  # it has been judged, or is what came back
        service = (notes.read(self._service) or {}).get("started_at")
        known = notes.read(self._state.probation) or {}
        if known.get("since") == desired["since"] and known.get("service") == service:
            return known
        note = {"service": service, "since": desired["since"], "version": desired["version"]}
        note |= {"previous": previous.version, **self._before(known, note, previous.version)}
        notes.write(self._state.probation, note)
        log.info(
            "%s: version %s is on probation for %g s; else version %s comes back",
            *(self._model, note["version"], self._bounds.probation_s, previous.version),
        )
        return note

    def _previous(self, desired: Mapping[str, Any] | None) -> Bundle | None:
        """The version that was live before; None where there was none, or where either is not the registry's."""
        if desired is None or desired["source"] != "registry" or not desired["previous"]:
            return None
        with contextlib.suppress(BundleUnreadable):
            previous = bundles.read(self._state.home / desired["previous"])
            if previous.source == "registry" and previous.version != desired["version"]:
                return previous
        return None

    def _before(self, known: Mapping[str, Any], note: Mapping[str, Any], previous: str) -> dict[str, Any]:
        """What was counted before the version was live: of itself, as a challenger say, and how fast the other was."""
        if known.get("since") == note["since"]:  # the service began anew, and counts from zero
            return {"previous_p95_s": known["previous_p95_s"], "rows": {}, "calls": {}}
        counts = Counts(self._collect(), self._model)
        calls = counts.calls(previous)
        enough = bool(calls) and calls[-1][1] >= self._bounds.min_rows
        return {
            "previous_p95_s": quantile(calls, P95) if enough else None,
            "rows": counts.rows(note["version"]),
            "calls": {str(edge): count for edge, count in counts.calls(note["version"])},
        }

    # --- the way back ---

    def _go_back(self, trial: Mapping[str, Any], reason: str, why: str) -> None:
        back = Back(self._model, self._alias, trial["previous"], trial["version"], why)
        came = self._roll_back(back, self._stop)
        if came.code == REFUSED:
            log.warning("%s: version %s is not rolled back: %s; %s", self._model, back.only_from, came.said, why)
            self._trial = None
        elif came.code == OK:
            log.error("%s: version %s is rolled back to %s: %s", self._model, back.only_from, back.to, why)
            note = {"from": back.only_from, "to": back.to, "at": _now().isoformat(timespec="milliseconds"), "why": why}
            self._on_rollback(reason)
            self._trial = None
            notes.write(self._state.rolled_back, note)
            self._ask_to_look()
        elif not self._stop.is_set():
            log.error(
                "%s: version %s cannot be rolled back, though %s: %s", self._model, back.only_from, why, came.said
            )
            self._on_rollback(FAILED)
            self._look_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, PAUSE_S[1])


def judge(trial: Mapping[str, Any], counts: Counts, bounds: Bounds) -> tuple[str, str] | None:
    """Why the version on trial must go, as a reason and in words; None where nothing speaks against it so far."""
    rows = {outcome: count - trial["rows"].get(outcome, 0) for outcome, count in counts.rows(trial["version"]).items()}
    failed = rows.get("error", 0.0)
    total = failed + rows.get("ok", 0.0)
    if total >= bounds.min_rows and failed / total > bounds.error_ratio:
        return ERROR_RATIO, f"{failed:.0f} of its {total:.0f} rows failed, more than {bounds.error_ratio:.3g} of them"
    calls = [(edge, count - trial["calls"].get(str(edge), 0)) for edge, count in counts.calls(trial["version"])]
    before, now = trial["previous_p95_s"], quantile(calls, P95)
    if before is None or now is None or calls[-1][1] < bounds.min_rows:
        return None
    if now > bounds.latency_ratio * before + SLACK_S:
        said = f"95 % of its calls take {1000 * now:.3g} ms, of version {trial['previous']} {1000 * before:.3g} ms"
        return LATENCY, said
    return None


def roll_back_in_child(tracking_uri: str, back: Back, stop: threading.Event) -> Came:
    """Run ``python -m serving rollback``: MLflow's client is not for a process that stays.

    The child is gone when this returns: at its own end, at ``stop``, or after a minute.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    options = [f"--to={back.to}", f"--only-from={back.only_from}", f"--alias={back.alias}", f"--by={SERVICE}"]
    child = subprocess.Popen(
        [sys.executable, "-m", "serving", "rollback", *options, f"--why={back.why}", "--", back.model],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment, "MLFLOW_TRACKING_URI": tracking_uri},
        start_new_session=True,
    )
    deadline = time.monotonic() + CHILD_S
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, _ = child.communicate(timeout=TICK_S)
            lines = said.decode(errors="replace").strip().splitlines() or [f"it ended with code {child.returncode}"]
            return Came(child.returncode, lines[-1][:300])
        if stop.is_set() or time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return Came(-signal.SIGKILL, f"it was not done after {CHILD_S:g} s")


def _now() -> datetime:
    return datetime.now(UTC)


def _age_s(since: str) -> float:
    return (_now() - datetime.fromisoformat(since)).total_seconds()

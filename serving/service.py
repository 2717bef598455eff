"""Predict, reload, info, ready: the protocol-neutral core."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving import agent, drift, notes
from serving.comparison import compare
from serving.entropy import random_id
from serving.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    ModelNotReady,
    ServingError,
    TooManyRows,
    UnknownModel,
)
from serving.exposition import Counted, Exposition
from serving.ledger import Feedback, validated
from serving.live import Live
from serving.metrics import Metrics, Series
from serving.observer import Observer, Seen
from serving.state import LedgerState, ModelState
from serving.store import Acknowledged, Store
from serving.tensors import Batch, Prediction
from serving.transforms.tabular import Reader

if TYPE_CHECKING:
    from serving.tracing.spans import Tracer

ACKNOWLEDGE_CHECK_S = 0.01
MODEL_NAME = re.compile(r"[^\W_][\w .-]{0,127}")  # that may be added: it becomes the name of a folder

log = logging.getLogger("serving.service")

# What a protocol hands in: its payload, read as a batch by the reader of the version that will answer.
Read = Callable[[Reader], Batch]


@dataclass(frozen=True, eq=False)
class Answer:
    """A prediction of ``rows`` rows, and what it is called."""

    prediction: Prediction
    rows: int
    prediction_id: str


@dataclass(frozen=True)
class Reloaded:
    """What came of a reload."""

    name: str
    version: str | None
    alias: str | None
    changed: bool
    previous_version: str | None
    workers: Acknowledged
    duration_s: float


@dataclass(frozen=True)
class Known:
    """What this worker knows of a model: the live version or None, and why there is none, or no newer one."""

    version: str | None
    unloaded: bool
    refused: dict[str, Any] | None
    error: str | None  # the registry's


@dataclass(frozen=True)
class Build:
    """Which service this is; empty where nobody said."""

    version: str = ""
    commit: str = ""


class AgentError(ServingError):
    """What the agent answered, with the agent's own status and code."""

    def __init__(self, outcome: dict[str, Any]) -> None:
        super().__init__(outcome["message"])
        self.status, self.code = outcome["status"], outcome["code"]
        self._details = {"reason": outcome["reason"]} if "reason" in outcome else {}

    def details(self) -> dict[str, object]:
        return dict(self._details)


class LoadFailed(ServingError):
    """A worker cannot load what the agent prepared; its log says why."""

    code = "load_failed"


class NoLedger(ServingError):
    """This service keeps none."""

    status = 404
    code = "no_ledger"


class Service:
    """One for each worker; protocols and operations hold it."""

    def __init__(
        self,
        store: Store,
        keeper: agent.Keeper | None,
        observer: Observer,
        feedback: Feedback | None,
        metrics: Metrics,
        exposition: Exposition,
        state_dir: Path,
        *,
        reload_timeout_s: float,
        max_rows: int,
        build: Build,
        tracer: Tracer | None = None,
    ) -> None:
        self.store = store
        self.observer = observer
        self._feedback = feedback
        self.metrics = metrics
        self._exposition = exposition
        self._keeper = keeper
        self._state_dir = state_dir
        self._reload_timeout_s = reload_timeout_s
        self._max_rows = max_rows
        self.build = build
        self._tracer = tracer
        self._inference_s = Series(metrics.inference_s)
        self._predictions = Series(metrics.predictions)
        self.draining = False

    def start(self) -> None:
        """Load what is there, and begin to follow."""
        self.store.start()
        if self._keeper is not None:
            self._keeper.start()

    def close(self) -> None:
        """End what `start` began."""
        if self._keeper is not None:
            self._keeper.close()
        self.store.close()
        self.observer.close()
        if self._tracer is not None:
            self._tracer.close()

    def ready(self) -> bool:
        """Whether this worker has every model warm and is not about to stop."""
        return self.store.ready() and not self.draining

    def predict(self, live: Live, read: Read, request_id: str) -> Answer:
        """Read a batch with ``read`` and answer it with ``live``.

        Raises `InvalidInput`, `TooManyRows` or `ModelFailed`. ``request_id`` is what the ledger knows the request by.
        """
        try:
            batch = read(live.reader)
            if batch.rows > self._max_rows:
                raise TooManyRows(f"{batch.rows} rows; at most {self._max_rows} are answered at once (MAX_ROWS)")
            prediction = self._infer(live, batch)
        except InvalidInput as err:
            self.metrics.count_invalid(live.bundle.name, err.column, live.bundle.signature.names)
            raise
        at = time.time()
        answer = Answer(prediction, batch.rows, prediction_id(at))
        self.observer.observe(Seen(live, batch, prediction, answer.prediction_id, request_id, at))
        return answer

    def _infer(self, live: Live, batch: Batch) -> Prediction:
        model, version = live.bundle.name, live.bundle.version
        outcome, started = "error", time.perf_counter()
        try:
            prediction = live.predictor(batch) if self._tracer is None else self._tracer.inference(live, batch)
            if len(prediction.values) != batch.rows:
                raise ModelFailed(f"the model answered {len(prediction.values)} rows for {batch.rows}")
            outcome = "ok"
            return prediction
        except ServingError as err:
            outcome = "invalid" if isinstance(err, InvalidInput) else "error"
            raise
        except Exception as err:
            log.exception("%s version %s failed", model, version)
            raise ModelFailed("the model failed on this input") from err
        finally:
            self._inference_s[model, version].observe(time.perf_counter() - started)
            self._predictions[model, version, outcome].inc(batch.rows)

    def compare(self, name: str | None, margin: float = 0.0) -> dict[str, Any]:
        """Champion and challenger side by side: see `serving.comparison`. Raises `UnknownModel` or `NoChallenger`."""
        return compare(self.store.name(name), self._state_dir, self._exposition, margin=margin)

    def reload(self, name: str | None) -> Reloaded:
        """Look at the registry now, and wait until every living worker serves what it names.

        Raises what the look raised (`UnknownModel`, refused, unreachable) or `DeadlineExceeded`.
        """
        name, started = self.store.name(name), time.perf_counter()
        outcome_word = "failed"
        try:
            reloaded = self._reload(name, started)
            outcome_word = "changed" if reloaded.changed else "unchanged"
            return reloaded
        except ServingError as err:
            outcome_word = {409: "refused", 502: "unreachable"}.get(err.status, "failed")
            raise
        finally:
            if self.store.counts(name):
                self.metrics.reloads.labels(name, outcome_word).inc()

    def _reload(self, name: str, started: float) -> Reloaded:
        deadline = started + self._reload_timeout_s
        state = ModelState(self._state_dir, name)
        challenger = ModelState(self._state_dir, name, ModelState.CHALLENGER)
        if challenger.asks.is_dir():  # somebody follows one
            agent.look(challenger)
        outcome = agent.ask(state, self._reload_timeout_s)
        if outcome is None:
            raise DeadlineExceeded(
                f"the registry was not looked at, or the version not prepared, within {self._reload_timeout_s:g} s; "
                "it may still go live"
            )
        if outcome["status"] != 200:
            raise AgentError(outcome)
        workers = self._await_workers(name, outcome["generation"], deadline)
        desired = notes.read(state.desired) or {}
        return Reloaded(
            name,
            outcome["version"],
            desired.get("alias"),
            outcome["changed"],
            outcome["previous_version"],
            workers,
            time.perf_counter() - started,
        )

    def _await_workers(self, name: str, generation: int, deadline: float) -> Acknowledged:
        while True:
            workers = self.store.acknowledged(name, generation)
            if workers.settled or time.perf_counter() > deadline:
                return workers
            time.sleep(ACKNOWLEDGE_CHECK_S)

    def load(self, name: str) -> None:
        """`reload`, after `unload` is taken back: then the last good copy will do where the registry fails.

        A model that is not served yet is added. Raises what `reload` raises, `DeadlineExceeded` or `LoadFailed` where
        not every worker serves it, and `UnknownModel` where the registry has none of that name.
        """
        if name not in self.store.names:
            self._add(name)
            return
        was_unloaded, started = self.store.load(name), time.perf_counter()
        try:
            workers = self.reload(name).workers
        except ServingError as err:
            desired = notes.read(ModelState(self._state_dir, name).desired)
            if not was_unloaded or desired is None:
                raise
            workers = self._await_workers(name, desired["generation"], started + self._reload_timeout_s)
            if err.status == 409:
                raise
        if workers.failed:
            raise LoadFailed(f"{workers.failed} of {workers.total} workers cannot load what is desired of {name!r}")
        if not workers.settled:
            raise DeadlineExceeded(f"{workers.acknowledged} of {workers.total} workers serve it so far")

    def _add(self, name: str) -> None:
        """Serve a model that nobody named at the start, in every process, until the service starts anew."""
        if not MODEL_NAME.fullmatch(name):
            raise UnknownModel(f"{name[:80]!r} is no name of a model")
        ours = self.store.add(name)
        try:
            self.load(name)
        except ServingError as err:
            if ours:  # else somebody else's attempt is under way
                self.store.remove(name)
            if err.status == UnknownModel.status:
                raise UnknownModel(f"no model {name!r} here, and none to serve in the registry") from err
            raise

    def unload(self, name: str) -> None:
        """Have the model answer nothing, in any worker, until `load` or until the service starts anew.

        Raises `DeadlineExceeded` where not every worker let go of it in time.
        """
        name, deadline = self.store.name(name), time.perf_counter() + self._reload_timeout_s
        self.store.unload(name)
        while left := self.store.holding(name):
            if time.perf_counter() > deadline:
                raise DeadlineExceeded(f"{left} workers have not let go of {name!r} so far")
            time.sleep(ACKNOWLEDGE_CHECK_S)

    def known(self, name: str) -> Known:
        """What this worker knows of the model called ``name``."""
        status, version = self._status(name), None
        with contextlib.suppress(ModelNotReady):
            version = self.store.live(name).bundle.version
        return Known(version, self.store.unloaded(name), status["refused"], status["registry"]["error"])

    def info(self, name: str | None) -> dict[str, Any]:
        """What is live, and what is known of the registry. Raises `UnknownModel` or `ModelNotReady`."""
        name = self.store.name(name)
        live = self.store.live(name)
        bundle = live.bundle
        workers = self.store.acknowledged(name)
        status = self._status(name)
        return {
            "name": name,
            "version": bundle.version,
            "alias": live.alias,
            "source": live.source,
            "fallback": self._fallback(live, status),
            "run_id": bundle.run_id,
            "digest": bundle.digest,
            "digest_recorded": bundle.digest_recorded,
            "runtime": bundle.runtime,
            "variant": bundle.variant,
            "proof": bundle.proof_as_json(),
            "batching": live.batcher is not None,
            "cost": bundle.cost,
            "signature": bundle.signature.as_json(),
            "classes": list(bundle.classes.names) if bundle.classes else None,
            "example": bundle.example["features"] if bundle.example else None,
            "loaded_at": live.loaded_at,
            "costs": self._costs(live),
            "challenger": self._challenger(name),
            "rolled_back": notes.read(ModelState(self._state_dir, name).rolled_back),
            "workers": {"acknowledged": workers.acknowledged, "total": workers.total},
            "quality": self._quality(name, bundle.version),
            "service": {"version": self.build.version or None, "commit": self.build.commit or None},
            **status,
        }

    def _costs(self, live: Live) -> dict[str, Any]:
        """What a version costs a worker: the memory it grew by and the time it took to load it, and time for a row."""
        disk = sum(path.stat().st_size for path in live.bundle.folder.rglob("*") if path.is_file())
        row_s = live.warm_s if math.isfinite(live.warm_s) else None
        return {"memory_bytes": live.memory_bytes, "disk_bytes": disk, "load_s": live.load_s, "row_s": row_s}

    def _challenger(self, name: str) -> dict[str, Any] | None:
        """Who challenges the live version, and how; or why the version behind the alias does not."""
        state = ModelState(self._state_dir, name, ModelState.CHALLENGER)
        desired, refused = notes.read(state.desired) or {}, (notes.read(state.status) or {}).get("refused")
        if desired.get("bundle"):
            return {key: desired[key] for key in ("version", "part", "since")}
        return {key: refused[key] for key in ("version", "reason", "message")} if refused else None

    def _quality(self, name: str, version: str) -> dict[str, Any] | None:
        """How right the live version's answers were, as far as labels came."""
        known = (notes.read(LedgerState(self._state_dir).status) or {}).get("quality") or []
        found = [one for one in known if (one["model"], one["version"]) == (name, version)]
        about = ("model", "version")
        return {key: value for key, value in found[0].items() if key not in about} if found else None

    def feedback(self, body: Any) -> dict[str, Any]:
        """What turned out to be true, for the ledger: see `serving.ledger.Feedback.send`.

        Raises `InvalidInput`, `NoLedger` or `LedgerFull`.
        """
        if self._feedback is None:
            raise NoLedger("this service keeps no ledger (LEDGER_SAMPLE=0)")
        return self._feedback.send(validated(body))

    def drift(self, name: str | None) -> dict[str, Any]:
        """How far what the live version is asked, and answers, lies from its training: see `serving.drift.report`.

        Over all rows since this service began, or since the version is live. Raises `UnknownModel` or `ModelNotReady`.
        """
        name = self.store.name(name)
        bundle = self.store.live(name).bundle
        head = {"name": name, "version": bundle.version, "since": self._counted_since(name)}
        try:
            profile = drift.Profile.from_json(notes.read(bundle.folder / drift.FILE_NAME) or {})
        except ValueError:
            return {**head, "verdict": "no profile", "drifted": [], "shifted": [], "features": [], "outputs": []}
        return {**head, **drift.report(profile, Counted(self._exposition.collect(), name, bundle.version))}

    def _counted_since(self, name: str) -> str | None:
        started = (notes.read(self._state_dir / "service.json") or {}).get("started_at", "")
        live = (notes.read(ModelState(self._state_dir, name).desired) or {}).get("since", "")
        return max(started, live) or None

    def _status(self, name: str) -> dict[str, Any]:
        seen = notes.read(ModelState(self._state_dir, name).status) or {}
        unseen = {"reachable": None, "checked_at": None, "answered_at": None, "error": None}
        registry = seen.get("registry") or unseen
        refused = seen.get("refused")
        shown = {key: refused[key] for key in ("version", "reason", "message", "at")} if refused else None
        return {"registry": registry, "refused": shown}

    def _fallback(self, live: Live, status: dict[str, Any]) -> str | None:
        """What the service lives on while the registry gives nothing: its last good copy, or local files."""
        if live.source == "local":
            return "local files"
        registry = status["registry"]
        return "last good copy" if registry["error"] and registry["reachable"] is not None else None

    def overview(self) -> list[dict[str, Any]]:
        """Every model in one line each: what is live, or why nothing is."""
        lines = []
        for name in self.store.names:
            try:
                info = self.info(name)
                keys = ("name", "version", "alias", "source", "fallback", "runtime", "loaded_at", "costs", "workers")
                lines.append({"ready": True, **{key: info[key] for key in keys}})
            except ServingError as err:
                lines.append({"ready": False, "name": name, "error": str(err), **self._status(name)})
        return lines


def prediction_id(at: float) -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of milliseconds first, so that ids sort by time; the rest is random.

    ``at`` is that time, in seconds since 1970.
    """
    random = int.from_bytes(random_id()[:10], "big")
    value = (int(at * 1000) & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

"""A follower keeps one model, or a model's challenger, at what the registry names.

Level-triggered: whatever happened meanwhile, a look compares what the registry says with what is desired and acts on
the difference. An ask only makes the next look happen now.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving import bundle as bundles
from serving import notes
from serving.bundle import Bundle, BundleUnreadable
from serving.errors import PrepareFailed, RegistryUnreachable, ServingError, UnknownModel, VersionRefused
from serving.registry import LocalFiles, Ref, Registry, Version
from serving.routing import OFF, Part
from serving.state import ModelState
from serving.tensors import Signature

TICK_S = 0.25  # who asks rings, and is not kept waiting
ANSWER_KEPT_S = 600.0  # an answer nobody fetched (its worker died) is removed after this
RETRY_S = (1.0, 60.0)  # first and longest pause after a preparation that failed through no fault of the version
MAY_COME = ("missing_files",)  # an upload may not be through, a bucket may be restored

log = logging.getLogger("serving.agent")

Prepare = Callable[[Version, Path], Bundle]


@dataclass(frozen=True)
class Challenge:
    """What makes a follower one of challengers: whom they challenge, and the part of those whose tag says none."""

    champion: ModelState
    part: Part


class Follower:
    """Follows one model: looks at the registry, and makes what it names the desired bundle."""

    def __init__(
        self,
        ref: Ref,
        registry: Registry,
        local: LocalFiles,
        state: ModelState,
        prepare: Prepare,
        *,
        keep_bundles: int,
        url: str = "",
        on_failure: Callable[[str], object] = lambda _reason: None,
        others: Path | None = None,
        challenge: Challenge | None = None,
    ) -> None:
        """``url`` is where this model is predicted with, for the line that says how to try it.

        ``on_failure`` is told why a version does not go live: the reason of its refusal, or ``prepare_failed``.
        ``others`` are the bundles of the model's other follower, where a version may be prepared already.
        With ``challenge`` it follows a challenger, of which there may be none, and never one from local files.
        """
        self.ref = ref
        self._registry = registry
        self._local = local
        self._state = state
        self._prepare = prepare
        self._keep_bundles = keep_bundles
        self._refused: dict[str, Any] | None = None  # not kept over a restart: what failed then may work now
        self._failed: list[Any] | None = None  # what could not be prepared last, through no fault of its own
        self._retry_at, self._retry_s = 0.0, RETRY_S[0]
        self._rung = threading.Event()
        self._said = ""
        self._url = url
        self._on_failure = on_failure
        self._others = others
        self._challenge = challenge
        state.asks.mkdir(parents=True, exist_ok=True)

    def wake(self) -> None:
        """See at once what is asked, or that it is to stop."""
        self._rung.set()

    def follow(self, stop: threading.Event, poll_interval_s: float) -> None:
        """Look at every interval, when the registry's files changed, and when asked; until ``stop``."""
        seen: object | None = None
        due = 0.0
        while not stop.is_set():
            self._rung.clear()
            asks = [path.name for path in self._state.asks.iterdir()]
            fingerprint = self._registry.fingerprint(), self._rival()
            if asks or time.monotonic() >= due or fingerprint != seen:
                seen = fingerprint
                # Spread over the last tenth of the interval, so that a hundred pods do not ask at once.
                due = time.monotonic() + poll_interval_s * random.uniform(0.9, 1.0)
                outcome = self.look(asked=bool(asks))
                self._answer(asks, outcome)
            self._rung.wait(TICK_S)

    def _rival(self) -> object | None:
        """Differs whenever a challenger has another version to be compared with."""
        return notes.stamp(self._challenge.champion.desired) if self._challenge else None

    def look(self, *, asked: bool = False) -> dict[str, Any]:
        """Compare and act once. The outcome is what an ask is answered with; it never raises."""
        desired = notes.read(self._state.desired)
        try:
            changed = self._take_part(desired, asked) if self._challenge else self._take_over(desired, asked)
            outcome: dict[str, Any] = {"status": 200, "changed": changed}
        except ServingError as err:
            outcome = {"status": err.status, "code": err.code, "message": str(err), **err.details()}
        except Exception as err:
            log.exception("looking at %s failed", self.ref)
            outcome = {"status": 500, "code": "internal", "message": f"the agent failed: {type(err).__name__}"}
        now = notes.read(self._state.desired) or {}
        self._say(outcome, live=bool(now) or self._challenge is not None)
        self._say_how_to_try(now)
        return {
            **outcome,
            "generation": now.get("generation", 0),
            "version": now.get("version"),
            "previous_version": (desired or {}).get("version"),
        }

    def _take_over(self, desired: dict[str, Any] | None, asked: bool) -> bool:
        return self._follow_to(self._resolve(desired), desired, asked=asked)

    def _take_part(self, desired: dict[str, Any] | None, asked: bool) -> bool:
        """The challenger that the registry names takes its part; where there is none, or none that may, nobody does."""
        try:
            version = self._registry.resolve(self.ref)
        except UnknownModel:
            self._write_status(reachable=True, error=None)
            self._forget_refusal()
            return self._withdraw(desired)
        except RegistryUnreachable as err:
            self._write_status(reachable=False, error=str(err))
            raise
        self._write_status(reachable=True, error=None)
        try:
            if self._part(version) is None:
                self._forget_refusal()
                return self._withdraw(desired)
            return self._follow_to(version, desired, asked=asked)
        except VersionRefused:
            self._withdraw(desired)
            raise

    def _part(self, version: Version) -> Part | None:
        """What ``version`` does beside the champion; None where it does nothing, or is the champion itself."""
        assert self._challenge is not None
        champion = notes.read(self._challenge.champion.desired)
        if champion is None or champion["version"] == version.version:
            return None
        try:
            part = Part.parse(version.route) if version.route is not None else self._challenge.part
        except ValueError as err:
            raise VersionRefused(f"its tag route: {err}", reason="bad_route") from err
        return None if part.kind == OFF else part

    def _withdraw(self, desired: dict[str, Any] | None) -> bool:
        """Nobody challenges; whether somebody did."""
        if desired is None or desired["bundle"] is None:
            return False
        note = {"generation": desired["generation"] + 1, "bundle": None, "version": None, "since": _now()}
        self._write_desired(note)
        log.info("%s: version %s challenges no longer", self.ref, desired["version"])
        return True

    def _say_how_to_try(self, desired: dict[str, Any]) -> None:
        """Once, when the first version is there: a line to paste."""
        if not (self._url and desired):
            return
        try:
            bundle = bundles.read(self._state.home / desired["bundle"])
        except BundleUnreadable:
            return
        if bundle.example is not None:
            row = bundle.example["features"][0]
            features = [row.get(name) for name in bundle.signature.names] if isinstance(row, dict) else row
            body = json.dumps({"features": features}).replace("'", "'\\''")
            # The workers are about to load it: curl tries again until they have.
            log.info("try it: curl -s --retry 9 %s -H 'Content-Type: application/json' -d '%s'", self._url, body)
        self._url = ""

    def _what_to_do(self) -> str:
        return (
            f"nothing is live, answers are 503. Train it (python train_model.py {self.ref.name}), or name another "
            "model (MODELS) or registry (MLFLOW_TRACKING_URI); it is picked up by itself"
        )

    def _resolve(self, desired: dict[str, Any] | None) -> Version:
        """What the registry names; local files while nothing else was ever live. The status says how it went."""
        try:
            version = self._registry.resolve(self.ref)
        except (RegistryUnreachable, UnknownModel) as err:
            self._write_status(reachable=isinstance(err, UnknownModel), error=str(err))
            if desired is not None and desired["source"] == "registry" and self._is_whole(desired):
                raise
            self._fall_back(desired, err)
            raise
        self._write_status(reachable=True, error=None)
        return version

    def _fall_back(self, desired: dict[str, Any] | None, cause: ServingError) -> None:
        try:
            version = self._local.resolve(self.ref)
        except UnknownModel:
            return
        try:
            if self._follow_to(version, desired, asked=False):
                log.warning("%s: %s; serving version %s from local files", self.ref, cause, version.version)
        except Waiting:
            return  # why was said when it failed
        except ServingError as err:
            log.error("%s: the local files cannot serve either: %s", self.ref, err)

    def _is_whole(self, desired: dict[str, Any]) -> bool:
        try:
            bundles.read(self._state.home / desired["bundle"])
        except BundleUnreadable:
            return False
        return True

    def _follow_to(self, version: Version, desired: dict[str, Any] | None, *, asked: bool) -> bool:
        """Make ``version`` the desired one. False when it is already. Raises what `prepare` raises."""
        key, aside = bundle_key(version), self._aside(version)
        if desired is not None and desired["bundle"] == f"bundles/{key}" and self._is_whole(desired):
            self._forget_refusal()
            if desired["alias"] == version.alias and all(desired[name] == value for name, value in aside.items()):
                return False
        identity = [key, version.digest, version.breaking, *aside.values()]
        if self._refused and self._refused["identity"] == identity and not asked and not self._may_have_changed():
            raise VersionRefused(self._refused["message"], reason=self._refused["reason"])
        if self._failed == identity and time.monotonic() < self._retry_at and not asked:
            raise Waiting("the last attempt failed; the next one is due in a moment")
        try:
            bundle = self._bundle(version, self._state.bundles / key)
            self._check_signature(version, bundle, desired)
        except VersionRefused as err:
            self._on_failure(err.reason)
            if err.reason in MAY_COME:
                self._wait_longer(identity)
            self._refuse(version, identity, err)
            raise VersionRefused(f"{version.name} version {version.version} refused: {err}", reason=err.reason) from err
        except ServingError as err:
            if isinstance(err, PrepareFailed):
                self._on_failure(err.code)
            self._wait_longer(identity)
            raise
        self._failed = None
        self._desire(version, bundle, desired, aside)
        return True

    def _aside(self, version: Version) -> dict[str, str]:
        """What a challenger's note says beside: its part, and the champion's bundle that it was compared with."""
        if self._challenge is None:
            return {}
        champion = notes.read(self._challenge.champion.desired) or {}
        return {"part": str(self._part(version)), "against": str(champion.get("bundle"))}

    def _may_have_changed(self) -> bool:
        """Whether it is time to look again at a version that was refused for the store's sake, not for its own."""
        return self._refused is not None and self._refused["reason"] in MAY_COME and time.monotonic() >= self._retry_at

    def _wait_longer(self, identity: list[Any]) -> None:
        """Twice as long after each failure of the same version."""
        self._retry_s = min(self._retry_s * 2, RETRY_S[1]) if self._failed == identity else RETRY_S[0]
        self._retry_at = time.monotonic() + self._retry_s
        self._failed = identity

    def _bundle(self, version: Version, place: Path) -> Bundle:
        """The prepared version: the one on disk if it is whole and fits what is recorded, else a new one."""
        for ready in (place, *([self._others / place.name] if self._others else [])):
            with contextlib.suppress(BundleUnreadable, OSError):
                found = bundles.read(ready, verify=True)
                if version.digest in (None, found.digest):
                    return found if ready == place else bundles.copy(found, place)
        started = time.monotonic()
        made = self._prepare(version, place)
        log.info("%s: version %s prepared in %.2f s", self.ref, version.version, time.monotonic() - started)
        return made

    def _check_signature(self, version: Version, bundle: Bundle, desired: dict[str, Any] | None) -> None:
        """Clients of the live version must not break, unless the break is declared on either version.

        What local files bridged is not held against the registry, which has the say. A challenger must fit the
        clients of the champion, also where the break is declared: it answers the same callers.
        """
        if self._challenge is not None:
            desired = notes.read(self._challenge.champion.desired)
        if desired is None or desired["source"] != "registry" or version.source != "registry":
            return
        if self._challenge is None and (version.breaking or desired["breaking"]):
            return
        live = Signature.from_json(desired["signature"])
        classes = list(bundle.classes.names) if bundle.classes else None
        if bundle.signature.accepts(live) and classes == desired["classes"]:
            return
        what = "inputs" if not bundle.signature.accepts(live) else "classes"
        raise VersionRefused(
            f"its {what} differ from those of the live version {desired['version']}"
            + ("" if self._challenge else "; if that is meant, set the tag breaking_change=true on the version"),
            reason="signature_changed",
        )

    def _desire(self, version: Version, bundle: Bundle, desired: dict[str, Any] | None, aside: dict[str, str]) -> None:
        generation = (desired or {}).get("generation", 0) + 1
        note = {
            "generation": generation,
            "bundle": f"bundles/{bundle.folder.name}",
            "version": version.version,
            "alias": version.alias,
            "source": version.source,
            "breaking": version.breaking,
            "signature": bundle.signature.as_json(),
            "classes": list(bundle.classes.names) if bundle.classes else None,
            "previous": (desired or {}).get("bundle"),
            "since": _since(desired, bundle, aside),
            **aside,
        }
        self._write_desired(note)
        self._forget_refusal()
        log.info("%s: version %s is desired (generation %d, %s)", self.ref, version.version, generation, version.source)
        self._prune(note)

    def _write_desired(self, note: dict[str, Any]) -> None:
        try:
            notes.write(self._state.desired, note)
        except OSError as err:
            raise PrepareFailed(f"cannot write under {self._state.home}: {err.strerror}") from err

    def _prune(self, desired: dict[str, Any]) -> None:
        """Keep the newest bundles; the live one and the one before it always, for workers still on their way."""
        kept = {Path(desired["bundle"]).name, Path(desired["previous"] or "").name}
        stamped = [(notes.stamp(path / "bundle.json"), path) for path in self._state.bundles.iterdir()]
        others = sorted(((stamp[1], path) for stamp, path in stamped if stamp and path.name not in kept), reverse=True)
        for _, path in others[max(0, self._keep_bundles - len(kept)) :]:
            shutil.rmtree(path, ignore_errors=True)

    def _refuse(self, version: Version, identity: list[Any], err: VersionRefused) -> None:
        message = f"{version.name} version {version.version} refused: {err}"
        self._refused = {
            "identity": identity,
            "version": version.version,
            "reason": err.reason,
            "message": message,
            "at": _now(),
        }
        self._write_status()

    def _forget_refusal(self) -> None:
        if self._refused is not None:
            self._refused = None
            self._write_status()

    def _write_status(self, **seen: Any) -> None:
        """Note what was seen of the registry and which version is refused. A full disk must not stop the following."""
        status = notes.read(self._state.status) or {}
        registry = status.get("registry")
        if seen:
            now, before = _now(), registry or {}
            answered_at = now if seen["reachable"] else before.get("answered_at")
            registry = {**seen, "checked_at": now, "answered_at": answered_at}
        try:
            notes.write(self._state.status, {"registry": registry, "refused": self._refused})
        except OSError as err:
            log.error("%s: cannot write its status: %s", self.ref, err.strerror)

    def _answer(self, asks: list[str], outcome: dict[str, Any]) -> None:
        for ask in asks:
            try:
                notes.write(self._state.answers / ask, outcome)
            except OSError as err:
                log.error("%s: cannot answer: %s", self.ref, err.strerror)
            (self._state.asks / ask).unlink(missing_ok=True)
        _remove_old(self._state.answers, ANSWER_KEPT_S)

    def _say(self, outcome: dict[str, Any], *, live: bool) -> None:
        """Log what changed since the last look, not the same trouble every few seconds."""
        said = str(outcome.get("message", ""))
        if outcome.get("code") == Waiting.code:
            return
        if said and said != self._said:
            log.warning("%s: %s%s", self.ref, said, "" if live else f"; {self._what_to_do()}")
        if not said and self._said:
            log.info("%s: all is well again", self.ref)
        self._said = said


class Waiting(PrepareFailed):
    """The last attempt failed, and it is too early for another."""

    code = "waiting"


def bundle_key(version: Version) -> str:
    """The name of a version's bundle: its number, and what tells it from a like number of another registry."""
    told_apart = hashlib.sha256(f"{version.digest or version.location} {version.source}".encode()).hexdigest()[:12]
    return f"{version.version}-{told_apart}"


def _since(desired: dict[str, Any] | None, bundle: Bundle, aside: dict[str, str]) -> str:
    """Now; of a challenger that goes on against the same champion with another part, since it began."""
    same = desired is not None and desired["bundle"] == f"bundles/{bundle.folder.name}"
    if desired is not None and same and aside and desired.get("against") == aside["against"]:
        return str(desired["since"])
    return _now()


def _remove_old(folder: Path, age_s: float) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        stamp = notes.stamp(path)
        if stamp and time.time() - stamp[1] / 1e9 > age_s:
            path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

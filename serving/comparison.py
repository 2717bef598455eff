"""Champion and challenger side by side: traffic, errors, latency, agreement, quality, and what follows from it.

Traffic and latency are this pod's since it began; quality is that of the ledger, which pods may share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving import bundle as bundles
from serving import notes, verdict
from serving.bundle import BundleUnreadable
from serving.counts import Counts
from serving.errors import ServingError
from serving.exposition import MEASURES, Exposition
from serving.routing import CHALLENGER, CHAMPION, SPLIT, Part
from serving.state import LedgerState, ModelState


class NoChallenger(ServingError):
    """No version challenges this model."""

    status = 404
    code = "no_challenger"


def compare(name: str, state_dir: Path, exposition: Exposition, *, margin: float = 0.0) -> dict[str, Any]:
    """The two versions of the model ``name`` that are desired. Raises `NoChallenger`.

    ``margin`` is by how much the challenger's quality may be worse, in units of the metric that decides.
    """
    champion, challenger = ModelState(state_dir, name), ModelState(state_dir, name, ModelState.CHALLENGER)
    ours, theirs = notes.read(champion.desired) or {}, notes.read(challenger.desired) or {}
    if not ours.get("bundle") or not theirs.get("bundle"):
        refused = (notes.read(challenger.status) or {}).get("refused")
        raise NoChallenger(f"no version challenges {name!r}" + (f": {refused['message']}" if refused else ""))
    part, counts = Part.parse(theirs["part"]), Counts(exposition.collect(), name)
    standing = _standing(state_dir, name, ours["version"], theirs["version"])
    sides = {
        role: {
            "version": desired["version"],
            "alias": desired["alias"],
            **counts.traffic(desired["version"], shadow=role == CHALLENGER and part.kind != SPLIT),
            "latency": {**counts.latency(desired["version"]), **_prepared(state.home, desired)},
            "quality": _quality(standing["sides"][role] if standing else None),
        }
        for role, desired, state in ((CHAMPION, ours, champion), (CHALLENGER, theirs, challenger))
    }
    found = verdict.gain(standing) if standing else None
    checks = verdict.checks(sides[CHAMPION], sides[CHALLENGER], found, margin)
    return {
        "model": name,
        "since": theirs["since"],
        "part": str(part),
        **sides,
        "agreement": counts.agreement(theirs["version"]),
        "gain": found.as_json() if found else None,
        "verdict": {
            "decision": verdict.decision(checks),
            "labels_needed": verdict.labels_needed(found, margin),
            "checks": [check.as_json() for check in checks],
        },
    }


def _standing(state_dir: Path, name: str, champion: str, challenger: str) -> dict[str, Any] | None:
    """What the ledger says of just these two; None where it says nothing yet."""
    known = (notes.read(LedgerState(state_dir).status) or {}).get("contests") or []
    asked = name, champion, challenger
    return next((one for one in known if (one["model"], one["champion"], one["challenger"]) == asked), None)


def _prepared(home: Path, desired: dict[str, Any]) -> dict[str, float | None]:
    """What one row took when the version was prepared: both were measured the same way, and nobody else was served."""
    try:
        cost = bundles.read(home / desired["bundle"]).cost
    except BundleUnreadable:
        cost = None
    return {"row_s": cost["fixed_s"] + cost["per_row_s"] if cost else None}


def _quality(side: dict[str, Any] | None) -> dict[str, Any]:
    """Each measure's mean with bounds that hold at every look."""
    if side is None:
        return {"labelled_rows": 0}
    rows = side["labelled_rows"]
    measured = {called: verdict.interval(side[called], rows) for called in MEASURES}
    return {"labelled_rows": rows, **{called: one for called, one in measured.items() if one}}

"""Where a model comes from: the code and the data that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from serving.settings import ROOT


def tags(dataset_digest: str, checkout: Path = ROOT) -> dict[str, str]:
    """Tags for the run and the version; outside a git checkout the commit is ``unknown``."""
    commit = _git(checkout, "rev-parse", "--verify", "HEAD") or "unknown"
    changes = _git(checkout, "status", "--porcelain")
    return {
        "git_commit": commit,
        "git_dirty": "unknown" if changes is None else str(bool(changes)).lower(),
        "dataset_digest": dataset_digest,
    }


def _git(checkout: Path, *arguments: str) -> str | None:
    """What git answers about the checkout, or None when it cannot."""
    try:
        done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

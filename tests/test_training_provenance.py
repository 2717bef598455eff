from __future__ import annotations

import subprocess
from pathlib import Path

from training import provenance


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_and_whether_something_was_changed_since(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    clean = provenance.tags("d1", tmp_path)
    assert clean == {"git_commit": git(tmp_path, "rev-parse", "HEAD"), "git_dirty": "false", "dataset_digest": "d1"}
    (tmp_path / "code.py").write_text("2")
    assert provenance.tags("d1", tmp_path) == {**clean, "git_dirty": "true"}


def test_outside_a_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    tags = provenance.tags("d1", tmp_path / "nowhere")
    assert (tags["git_commit"], tags["git_dirty"]) == ("unknown", "unknown")

"""The digest of a folder: what a version is, whatever place its files came from."""

from __future__ import annotations

import hashlib
from pathlib import Path

# MLflow's client adds this file to what it downloads; it is not part of what was logged.
ADDED_BY_DOWNLOAD = {"registered_model_meta"}


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of one file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """``sha256:`` and the hex SHA-256 over the sorted lines ``<sha256> <size> <path>`` of all files in ``folder``.

    Paths are relative, with forward slashes. Raises FileNotFoundError when the folder has no files.
    """
    files = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ADDED_BY_DOWNLOAD
    )
    if not files:
        raise FileNotFoundError(f"no files in {folder}")
    lines = hashlib.sha256()
    for name, path in files:
        lines.update(f"{file_sha256(path)} {path.stat().st_size} {name}\n".encode())
    return f"sha256:{lines.hexdigest()}"

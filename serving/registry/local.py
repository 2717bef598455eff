"""Promoted versions as plain files beside the service."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from serving import notes
from serving.errors import UnknownModel
from serving.registry.versions import Ref, Version


class LocalFiles:
    """Promoted versions beside the service: ``<folder>/<name>/version.json`` and ``<folder>/<name>/<artifacts>/``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def resolve(self, ref: Ref) -> Version:
        """The version that lies here for ``ref.name``. Raises `UnknownModel`."""
        note = notes.read(self._folder / ref.name / "version.json")
        artifacts = self._folder / ref.name / str((note or {}).get("artifacts", ""))
        if note is None or "version" not in note or not (artifacts / "MLmodel").is_file():
            raise UnknownModel(f"no local files for {ref.name!r} in {self._folder}")
        if ref.version and str(note["version"]) != ref.version:
            raise UnknownModel(f"the local files of {ref.name!r} are version {note['version']}, not {ref.version}")
        return Version(
            ref.name, str(note["version"]), ref.alias, "local", str(artifacts), note.get("run_id"), note.get("digest")
        )

    def publish(self, version: Version, artifacts: Path) -> Path:
        """Leave a copy of ``artifacts`` as what `resolve` gives. A reader sees the old version or the new one."""
        home = self._folder / version.name
        home.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=f"version-{version.version}-", dir=home))
        target.chmod(0o755)
        told = {"version": version.version, "run_id": version.run_id, "digest": version.digest}
        note = {**told, "artifacts": target.name}
        try:
            shutil.copytree(artifacts, target, dirs_exist_ok=True)
            notes.write(home / "version.json", note)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        (home / "version.json").chmod(0o644)
        for old in home.glob("version-*"):
            if old.is_dir() and old != target:
                shutil.rmtree(old, ignore_errors=True)
        return target

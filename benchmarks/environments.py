"""A virtual environment for each peer, made once and kept."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

INSTALL_S = 900.0
# What reads the model file must be what wrote it, or it is not the same model.
SHARED = ("scikit-learn", "numpy", "joblib", "cloudpickle")


class NotInstalled(Exception):
    """Why a peer cannot be measured, in one line."""


@dataclass(frozen=True)
class Environment:
    """``folder`` holds the environment, ``packages`` are what it was asked for."""

    folder: Path
    packages: tuple[str, ...]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def program(self, name: str) -> str:
        """The path of an installed command."""
        return str(self.folder / "bin" / name)

    def install(self) -> None:
        """Make it unless it stands as asked for; peers may share one and call this at once. Raises `NotInstalled`."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._install()

    def _install(self) -> None:
        wanted = [*self.packages, *(f"{name}=={installed_version(name)}" for name in SHARED)]
        marker = self.folder / ".installed"
        if marker.exists() and json.loads(marker.read_text()) == wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        try:
            done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"not installed: pip took longer than {INSTALL_S:g} s") from None
        if done.returncode:
            raise NotInstalled(f"not installed: {_reason(done.stderr)}")
        marker.write_text(json.dumps(wanted))

    def versions(self, names: tuple[str, ...]) -> dict[str, str]:
        """The installed versions of ``names``."""
        code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        got = subprocess.run([str(self.python), "-c", code, *names], capture_output=True, text=True, check=True)
        return dict(json.loads(got.stdout))


def _reason(stderr: str) -> str:
    """pip says what went wrong in its last lines that begin with ERROR."""
    lines = [line.removeprefix("ERROR:").strip() for line in stderr.splitlines() if line.startswith("ERROR:")]
    return lines[-1] if lines else "pip failed and did not say why"

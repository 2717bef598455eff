"""Weights: a folder of pretrained ones, from a path, an installed package or the hub; and where they came from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from training.options import Unusable

NONE = "none"  # in place of a name: learn from nothing
FILE_NAME = "model.safetensors"  # nothing else is read: other formats are pickles
WANTED = ("*.json", "*.txt", FILE_NAME)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PATIENCE_S = 5.0  # until the hub says whether it has them

# Read by the hub's client and by transformers when they are imported; whoever sets one knows better.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True)
class Weights:
    """A folder with ``config.json`` and ``model.safetensors``; ``words`` say where it came from."""

    folder: Path
    words: str


def find(name: str) -> Weights:
    """What ``name`` says: a folder's path, or what the hub calls them. Raises `Unusable`, saying why in one line."""
    if Path(name).is_dir():
        return _checked(Path(name), f"{Path(name).resolve().name}, a folder")
    if Path(name).exists() or not HUB_NAME.fullmatch(name):
        raise Unusable(f"--weights {name}: there is no such folder")
    folder = cached(name) or _download(name)
    return _checked(folder, f"{name} from the hub, revision {folder.name[:12]}")


def packaged(package: str, folder: str, title: str) -> Weights:
    """What an installed ``package`` (its import name) has in ``folder``. Raises `Unusable`."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise Unusable(f"the package {package.replace('_', '-')} is not installed: make deep, or --weights NAME|PATH")
    words = f"{title} from the package {package.replace('_', '-')} {metadata.version(package)}"
    return _checked(Path(spec.origin).parent / folder, words)


def quiet() -> None:
    """Before transformers or the hub's client are imported: only errors, no bars."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def cached(name: str) -> Path | None:
    """Where an earlier download left them; None where there was none."""
    quiet()
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(WANTED), local_files_only=True))
    except Exception:  # whatever it is called this year: they are not here
        return None
    return folder if (folder / FILE_NAME).is_file() else None


def _download(name: str) -> Path:
    quiet()
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(name, timeout=PATIENCE_S)  # at once where there is no network, without its retries
        return Path(snapshot_download(name, revision=found.sha, allow_patterns=list(WANTED)))
    except Exception as err:  # of the client, its HTTP library, or the system
        why = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise Unusable(f"the weights {name} cannot be had from the hub ({why[:150]}): --weights PATH") from err


def _checked(folder: Path, words: str) -> Weights:
    for name in ("config.json", FILE_NAME):
        if not (folder / name).is_file():
            raise Unusable(f"there is no {name} in {folder}")
    content = sha256((folder / FILE_NAME).read_bytes()).hexdigest()
    return Weights(folder, f"{words} (SHA-256 {content[:12]})")

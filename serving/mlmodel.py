"""The MLmodel file: what MLflow says of a model that it logged."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.errors import VersionRefused
from serving.tensors import Classes


def read(folder: Path) -> Mapping[str, Any]:
    """The MLmodel file in ``folder``. Raises `VersionRefused` where there is none, or none that can be read."""
    import yaml

    try:
        model = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        if isinstance(model, dict) and isinstance(model.get("flavors"), dict):
            return model
    except FileNotFoundError:
        raise VersionRefused("it has no MLmodel file", reason="missing_files") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        pass
    raise VersionRefused("its MLmodel file cannot be read", reason="load_failed")


def only_output(model: Mapping[str, Any]) -> str | None:
    """How its signature calls its only output; None where it has several, or does not say."""
    specs = _schema(model, "outputs")
    name = specs[0].get("name") if len(specs) == 1 else None
    return str(name) if name not in (None, "") else None


def pyfunc(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """How MLflow itself would call it: the module that loads it, the method, and the parameters of a call.

    ``{"loader", "predict_fn", "params": [{"name", "type", "default", "shape"}]}``; None without a pyfunc flavor.
    """
    flavor = model["flavors"].get("python_function")
    if not isinstance(flavor, dict):
        return None
    return {
        "loader": flavor.get("loader_module"),
        "predict_fn": flavor.get("predict_fn"),
        "params": _schema(model, "params"),
    }


def threshold(model: Mapping[str, Any], classes: Classes | None) -> float | None:
    """The least probability at which it answers the second of its two ``classes``, where its metadata says so.

    ``{"threshold": number, "positive_class": name}``; None where they speak of anything else.
    """
    metadata = model.get("metadata") or {}
    found = metadata.get("threshold")
    if not isinstance(found, (int, float)) or isinstance(found, bool) or not math.isfinite(found):
        return None
    if classes is None or len(classes.names) != 2 or metadata.get("positive_class") != classes.names[1]:
        return None
    return float(found)


def _schema(model: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """A part of the signature, which MLflow writes as JSON inside YAML."""
    written = (model.get("signature") or {}).get(part)
    with contextlib.suppress(TypeError, ValueError):
        specs = json.loads(written or "[]")
        if isinstance(specs, list) and all(isinstance(spec, dict) for spec in specs):
            return specs
    return []

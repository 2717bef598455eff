"""A deep model's own folder among a version's files: a graph, and a JSON file that says how it is fed.

The MLmodel's metadata name the folder under the runtime's name: ``{"image": "artifacts/image"}``. Nothing else of the
version is read, and none of its code is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving import notes
from serving.errors import VersionRefused
from serving.runtimes.onnx import session
from serving.tensors import Field, Signature

GRAPH = "model.onnx"
TOLERANCES = {"fp32": 1e-4, "int8": 0.1}  # of the proof, by precision: other processors round int8 differently
SHOWN = ("precision", "agreement", "weights")  # of the JSON file, for people


def find(model: Mapping[str, Any], name: str, folder: Path) -> Path | None:
    """The folder that the version's metadata name under ``name``; None where there is none with ``<name>.json``."""
    metadata = model.get("metadata")
    path = metadata.get(name) if isinstance(metadata, dict) else None
    return folder / path if isinstance(path, str) and (folder / path / f"{name}.json").is_file() else None


def copy(model: Mapping[str, Any], name: str, folder: Path, into: Path) -> Path:
    """Copy that folder to ``into/<name>``, which is returned. Raises `VersionRefused` for one outside ``folder``."""
    source = find(model, name, folder)
    assert source is not None, "the runtime serves this version"
    if not source.resolve().is_relative_to(folder.resolve()):
        raise VersionRefused(f"its folder {name!r} lies outside its files", reason="bad_path")
    shutil.copytree(source, into / name)
    return into / name


def config(folder: Path, name: str) -> dict[str, Any]:
    """The folder's JSON file. Raises `VersionRefused` where it is none, or its precision is unknown."""
    content = notes.read(folder / f"{name}.json")
    if content is None:
        raise refused(f"its {name}.json cannot be read")
    if content.get("precision") not in TOLERANCES:
        raise refused(f"its {name}.json says no precision: expected {' or '.join(TOLERANCES)}")
    return content


def variant(content: Mapping[str, Any]) -> dict[str, Any]:
    """What people should know of how this version was made."""
    return {key: content.get(key) for key in SHOWN}


def graph(folder: Path, inputs: set[str], output: str) -> Any:
    """An ONNX Runtime session; the graph takes some of ``inputs`` and gives ``output``. Raises `VersionRefused`."""
    if not (folder / GRAPH).is_file():
        raise VersionRefused(f"it has no {GRAPH} in its folder {folder.name!r}", reason="missing_files")
    loaded = session(folder / GRAPH)
    if unknown := sorted({given.name for given in loaded.get_inputs()} - inputs):
        raise refused(f"its graph takes {unknown[0]!r}, expected {', '.join(sorted(inputs))}")
    if output not in [given.name for given in loaded.get_outputs()]:
        raise refused(f"its graph gives no {output!r}")
    return loaded


def signature(model: Mapping[str, Any], name: str, kind: str) -> Signature:
    """One required column of MLflow's type ``kind``, as the version calls it, or ``name``. Raises `VersionRefused`."""
    written = Signature.from_mlmodel(model.get("signature"))
    if written is None:
        return Signature("columns", (Field(name, kind),), "inferred")
    if written.layout != "columns" or [field.type for field in written.inputs] != [kind]:
        raise refused(f"its signature is not one column of type {kind}")
    return Signature("columns", (Field(written.inputs[0].name, kind),))


def refused(message: str) -> VersionRefused:
    """A version that does not load."""
    return VersionRefused(message, reason="load_failed")

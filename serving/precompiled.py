"""The compiled form that a version brings along: made and proven at training, where scikit-learn is at hand.

The folder ``compiled/`` among a version's files has the kernels, and ``compiled.json`` with what a server needs to know
of the model otherwise. Such a version is prepared without importing scikit-learn, and served where there is none. It
has to answer its reference rows here all the same, and is told from that of another model by the hash of its file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from serving import kernels, notes
from serving.bundle import Compilation
from serving.digest import file_sha256
from serving.runtimes import compiled
from serving.tensors import Classes, Description, Signature

FORMAT = 1  # counts up when older servers could not read it: with the fields of a kernel, too
NOTE = "compiled.json"
AT_TRAINING = "at training"


def write(bundle: Path, description: Description, compilation: Compilation, model_file: Path, into: Path) -> None:
    """Leave the kernels in ``bundle`` as a version brings them along, in ``into/compiled``."""
    folder = into / compiled.FOLDER
    shutil.copytree(bundle / compiled.FOLDER, folder)
    classes = description.classes
    content = {
        "format": FORMAT,
        "model": {"file": model_file.name, "sha256": file_sha256(model_file)},
        "signature": description.signature.as_json(),
        "classes": {"labels": list(classes.labels), "names": list(classes.names)} if classes else None,
        "compilation": asdict(replace(compilation, proven=AT_TRAINING)),
    }
    (folder / NOTE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read(artifacts: Path, model_file: Path | None, into: Path) -> tuple[Description, Compilation] | None:
    """Put the kernels among ``artifacts`` into the bundle ``into``; None where there are none that can be used here."""
    content = notes.read(artifacts / compiled.FOLDER / NOTE)
    if content is None or content.get("format") != FORMAT or model_file is None or not model_file.is_file():
        return None
    try:
        if content["model"]["sha256"] != file_sha256(model_file):
            return None
        found = _read(content)
        kernels.load(artifacts / compiled.FOLDER)
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None  # of another release: scikit-learn itself may still serve it
    (into / compiled.FOLDER).mkdir()
    for name in kernels.FILES:
        shutil.copyfile(artifacts / compiled.FOLDER / name, into / compiled.FOLDER / name)
    return found


def _read(content: Mapping[str, Any]) -> tuple[Description, Compilation]:
    classes = content["classes"]
    named = Classes(tuple(classes["labels"]), tuple(classes["names"])) if classes else None
    return Description(Signature.from_json(content["signature"]), named), Compilation(**content["compilation"])

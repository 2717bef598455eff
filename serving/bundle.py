"""The bundle: what prepare leaves behind and a worker loads in milliseconds.

A folder with ``bundle.json`` and the files of its runtime. It is written beside its place and renamed into it, so a
bundle that is there is whole; a reader checks the sizes all the same, because disks and restores lie.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from serving import notes
from serving.digest import file_sha256
from serving.tensors import Classes, Field, Signature

FORMAT = 7

installed_version = cache(version)  # what a process has imported does not change either


class BundleUnreadable(Exception):
    """There is no usable bundle here; prepare makes a new one."""


@dataclass(frozen=True)
class Proof:
    """How a version proved itself: over how many reference rows, the largest difference, and what was allowed."""

    rows: int
    largest_difference: float | None
    tolerance: float | None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        plain = {"rows": self.rows, "largest_difference": self.largest_difference, "tolerance": self.tolerance}
        return {**plain, "note": self.note} if self.note else plain


@dataclass(frozen=True)
class Compilation:
    """How the compiled form compares with scikit-learn: over how many rows, and seconds by rows a request."""

    rows: int
    largest_difference: float
    tolerance: float
    native_s: dict[str, float]
    compiled_s: dict[str, float]
    proven: str = "when it was prepared"

    @property
    def exact(self) -> bool:
        """Whether every answer had the same bits, and what it is computed from too."""
        return self.tolerance == 0.0


@dataclass(frozen=True)
class Bundle:
    """A prepared version. ``folder`` is where it lies; everything else is in its ``bundle.json``."""

    folder: Path
    name: str
    version: str
    source: str
    run_id: str | None
    digest: str
    digest_recorded: bool
    runtime: str
    signature: Signature
    classes: Classes | None
    example: dict[str, Any] | None  # {"columns": names, "rows": lists}: the input that warms a worker
    proof: Proof
    libraries: dict[str, str]  # distribution -> version that the files depend on
    compilation: Compilation | None = None
    native: str | None = None  # why scikit-learn itself serves it
    cost: dict[str, Any] | None = None  # what a call took when it was prepared: a `batching.Cost`
    batching: bool = False  # whether callers gain when they are answered together
    outputs: tuple[Field, ...] = ()  # of its answers, by `tensors.by_name`; empty where it had no rows to answer
    pyfunc: dict[str, Any] | None = None  # how MLflow itself would call it: {"loader", "predict_fn", "params"}
    variant: dict[str, Any] | None = None  # how a deep model was made: {"precision", "agreement", "weights", …}
    threshold: float | None = None  # the least probability at which the second of two classes is what it answers

    def proof_as_json(self) -> dict[str, Any]:
        """For people: of a compiled version the comparison with scikit-learn, else the one with its own record."""
        recorded = self.proof.as_json()
        if self.compilation is not None:
            return {"exact": self.compilation.exact, **asdict(self.compilation), "reference": recorded}
        return {**recorded, "native": self.native} if self.native else recorded


def write(bundle: Bundle, into: Path) -> Bundle:
    """Seal ``bundle.folder`` and move it to ``into`` in one step, replacing what an interrupted run left there."""
    files = {path.relative_to(bundle.folder).as_posix(): path for path in bundle.folder.rglob("*") if path.is_file()}
    content = {
        "format": FORMAT,
        "name": bundle.name,
        "version": bundle.version,
        "source": bundle.source,
        "run_id": bundle.run_id,
        "digest": bundle.digest,
        "digest_recorded": bundle.digest_recorded,
        "runtime": bundle.runtime,
        "signature": bundle.signature.as_json(),
        "classes": (
            {"labels": list(bundle.classes.labels), "names": list(bundle.classes.names)} if bundle.classes else None
        ),
        "example": bundle.example,
        "proof": bundle.proof.as_json(),
        "libraries": bundle.libraries,
        "compilation": asdict(bundle.compilation) if bundle.compilation else None,
        "native": bundle.native,
        "cost": bundle.cost,
        "batching": bundle.batching,
        "outputs": [field.as_json() for field in bundle.outputs],
        "pyfunc": bundle.pyfunc,
        "variant": bundle.variant,
        "threshold": bundle.threshold,
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for name, path in sorted(files.items())
        },
    }
    for path in files.values():
        _sync(path)
    notes.write(bundle.folder / "bundle.json", content)
    into.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(into, ignore_errors=True)
    bundle.folder.rename(into)
    _sync(into.parent)
    return read(into)


def copy(bundle: Bundle, into: Path) -> Bundle:
    """The same bundle at ``into``, on the same file system; its files are shared, because nobody ever writes to them.

    Raises OSError.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".prepare-", dir=into.parent))
    try:
        shutil.copytree(bundle.folder, work / "bundle", copy_function=os.link)
        shutil.rmtree(into, ignore_errors=True)
        (work / "bundle").rename(into)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _sync(into.parent)
    return read(into)


def read(folder: Path, *, verify: bool = False) -> Bundle:
    """The bundle in ``folder``; ``verify`` reads every file and compares its digest. Raises `BundleUnreadable`."""
    content = notes.read(folder / "bundle.json")
    if content is None or content.get("format") != FORMAT:
        raise BundleUnreadable(f"{folder} holds no bundle of format {FORMAT}")
    try:
        return _read(folder, content, verify)
    except (KeyError, TypeError, AttributeError) as err:
        raise BundleUnreadable(f"{folder / 'bundle.json'} is not as it was written") from err


def _read(folder: Path, content: dict[str, Any], verify: bool) -> Bundle:
    for name, written in content["files"].items():
        _check_file(folder / name, written, verify)
    for library, wanted in content["libraries"].items():
        _check_library(library, wanted)
    classes, proof, compilation = content["classes"], content["proof"], content["compilation"]
    return Bundle(
        folder=folder,
        name=content["name"],
        version=content["version"],
        source=content["source"],
        run_id=content["run_id"],
        digest=content["digest"],
        digest_recorded=content["digest_recorded"],
        runtime=content["runtime"],
        signature=Signature.from_json(content["signature"]),
        classes=Classes(tuple(classes["labels"]), tuple(classes["names"])) if classes else None,
        example=content["example"],
        proof=Proof(proof["rows"], proof["largest_difference"], proof["tolerance"], proof.get("note", "")),
        libraries=content["libraries"],
        compilation=Compilation(**compilation) if compilation else None,
        native=content["native"],
        cost=content["cost"],
        batching=content["batching"],
        outputs=tuple(map(Field.from_json, content["outputs"])),
        pyfunc=content["pyfunc"],
        variant=content["variant"],
        threshold=content["threshold"],
    )


def library_versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """The installed versions of ``libraries``."""
    return {library: installed_version(library) for library in libraries}


def _check_file(path: Path, written: dict[str, Any], verify: bool) -> None:
    try:
        whole = path.stat().st_size == written["bytes"] and (not verify or file_sha256(path) == written["sha256"])
    except OSError as err:
        raise BundleUnreadable(f"{path} cannot be read: {err.strerror}") from err
    if not whole:
        raise BundleUnreadable(f"{path} is not as it was written")


def _check_library(library: str, wanted: str) -> None:
    try:
        found = installed_version(library)
    except PackageNotFoundError:
        found = "not installed"
    if found != wanted:
        raise BundleUnreadable(f"the bundle was made with {library} {wanted}, here it is {found}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

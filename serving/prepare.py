"""A version becomes a bundle: fetch → check digest → convert → prove → seal, in a child process.

The child runs what the version brings along (its pickles, its code, its libraries). Whatever it does there - raise,
hang, crash, eat memory - ends with the child, and the service learns the reason.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import bundle as bundles
from serving import drift, kernels, mlmodel, notes, precompiled, reference, registry
from serving.batching.cost import Cost, measure, pays
from serving.bundle import Bundle, Compilation, Proof
from serving.compile import NotCompiled, build_model, check_release, converted, proof
from serving.difference import largest_difference
from serving.digest import folder_digest
from serving.errors import RegistryUnreachable, ServingError, VersionRefused
from serving.kernels.masks import Masks
from serving.registry import Auth, Version
from serving.runtimes import CONVERTING, Predictor, compiled, runtime
from serving.runtimes import sklearn as native_runtime
from serving.tensors import Batch, Classes, Description, Field, Prediction, Signature, by_name, described
from serving.transforms import tabular

TOLERANCE = 1e-6  # relative to the larger of 1 and the recorded value
NICENESS = 5  # below the workers, above starvation
WARM_UP_RUNS = 3
EXAMPLE_ROWS = 10  # at most
OUTPUT = "output"  # how an output is called that nobody named

# What goes wrong with our machine and not with the version.
OUR_TROUBLES = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),
}


@dataclass(frozen=True)
class Job:
    """What a prepare child is to do."""

    version: Version
    tracking_uri: str
    work: str  # a folder of its own, on the same file system as ``into``
    into: str  # where the bundle goes


@dataclass(frozen=True)
class Form:
    """How a version answers, and how it proved that."""

    runtime: str
    description: Description
    proof: Proof
    example: dict[str, Any] | None
    compilation: Compilation | None
    native: str | None
    cost: Cost | None
    outputs: tuple[Field, ...]
    pyfunc: dict[str, Any] | None
    threshold: float | None


def prepare(job: Job, auth: Auth) -> Bundle:
    """Make the bundle that ``job`` asks for. Raises `VersionRefused`, `RegistryUnreachable` or `PrepareFailed`."""
    work = Path(job.work)
    artifacts = registry.fetch(job.version, work / "artifacts", job.tracking_uri, auth)
    digest = _check_digest(job.version, artifacts)
    folder = work / "bundle"
    folder.mkdir()
    form = _form(artifacts, folder)
    _keep_profile(artifacts, folder)
    made = Bundle(
        folder=folder,
        name=job.version.name,
        version=job.version.version,
        source=job.version.source,
        run_id=job.version.run_id,
        digest=digest,
        digest_recorded=job.version.digest is not None,
        runtime=form.runtime,
        signature=form.description.signature,
        classes=form.description.classes,
        example=form.example,
        proof=form.proof,
        libraries=bundles.library_versions(compiled.LIBRARIES if form.compilation else form.description.libraries),
        compilation=form.compilation,
        native=form.native,
        cost=form.cost.as_json() if form.cost else None,
        batching=form.cost is not None and pays(form.cost) and form.runtime != "image",
        outputs=form.outputs,
        pyfunc=form.pyfunc,
        variant=None if form.description.variant is None else dict(form.description.variant),
        threshold=form.threshold,
    )
    return bundles.write(made, Path(job.into))


def precompile(artifacts: Path, into: Path) -> Compilation | str:
    """For training: leave the compiled form of the version in ``artifacts`` in ``into``, to be logged with it.

    Its proof, or why it has no such form. Raises `VersionRefused` for a version that no server would take.
    """
    with tempfile.TemporaryDirectory(prefix="precompile-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows made to hurt, of which scikit-learn warns
        form = _form(artifacts, Path(scratch))
        if form.compilation is None:
            return form.native or f"it is served by {form.runtime}"
        model_file = native_runtime.file_of(mlmodel.read(artifacts), artifacts)
        assert model_file is not None
        precompiled.write(Path(scratch), form.description, form.compilation, model_file, into)
    return form.compilation


def _form(artifacts: Path, folder: Path) -> Form:
    """Leave in ``folder`` what answers for the version in ``artifacts``, and have it prove itself."""
    model = mlmodel.read(artifacts)
    name, compilation, native = _choose_runtime(model, artifacts), None, None
    model_file = native_runtime.file_of(model, artifacts) if name == "sklearn" else None
    if brought := precompiled.read(artifacts, model_file, folder):
        name, (description, compilation) = "compiled", brought
        predictor: Predictor = compiled.load(folder)
    else:
        description, predictor = _convert(name, model, artifacts, folder)
    signature, classes = description.signature, description.classes
    proof, reference_rows = _prove(artifacts, signature, predictor, description.tolerance)
    example = _example(artifacts, signature) or ({"features": [description.example]} if description.example else None)
    example_rows = _answer(example, signature, classes, predictor)
    known = [batch for batch in (example_rows, reference_rows) if batch is not None]
    if name == "sklearn":
        compilation, native = _compile(folder, signature, predictor, known)
    if compilation is not None:
        name, predictor = "compiled", compiled.load(folder)
    outputs = _outputs(predictor, known, description.output or mlmodel.only_output(model) or OUTPUT)
    cost = _cost(predictor, known)
    called, threshold = mlmodel.pyfunc(model), mlmodel.threshold(model, classes)
    return Form(name, description, proof, example, compilation, native, cost, outputs, called, threshold)


def _check_digest(version: Version, artifacts: Path) -> str:
    try:
        found = folder_digest(artifacts)
    except FileNotFoundError as err:
        raise VersionRefused("it has no files", reason="missing_files") from err
    if version.digest and found != version.digest:
        raise VersionRefused(
            f"its files have the digest {found}, recorded is {version.digest}", reason="digest_mismatch"
        )
    return found


def _choose_runtime(model: Mapping[str, Any], artifacts: Path) -> str:
    for name in CONVERTING:
        if runtime(name).serves(model, artifacts):
            return name
    flavors = ", ".join(model["flavors"]) or "none"
    raise VersionRefused(f"no runtime serves its flavors ({flavors})", reason="unknown_flavor")


def _convert(name: str, model: Mapping[str, Any], artifacts: Path, folder: Path) -> tuple[Description, Predictor]:
    """What the runtime called ``name`` makes of the version, loaded from what it wrote into ``folder``."""
    module = runtime(name)
    try:
        return module.convert(model, artifacts, folder), module.load(folder)
    except ServingError:
        raise
    except Exception as err:  # the version's own code ran: whatever it raises is its refusal
        if isinstance(err, OSError) and err.errno in OUR_TROUBLES:
            raise
        raise VersionRefused(f"it does not load: {_words(err)}", reason="load_failed") from err


def _outputs(predictor: Predictor, known: list[Batch], name: str) -> tuple[Field, ...]:
    """What its answers are made of, as far as it has rows to answer; ``name`` is for one that has none of its own."""
    return described(by_name(_predict(predictor, known[0]), name)) if known else ()


def _cost(predictor: Predictor, known: list[Batch]) -> Cost | None:
    """What a call takes, where there are rows to try it with, and the model takes one as well as many."""
    with contextlib.suppress(Exception):  # such as a graph for a fixed number of rows
        return measure(predictor, known[0])
    return None


def _prove(
    artifacts: Path, signature: Signature, predictor: Predictor, rounding: float | None = None
) -> tuple[Proof, Batch | None]:
    """Compare the answers to the reference rows with those on record. Raises `VersionRefused` when they differ.

    With ``rounding``, the tolerance of a deep model, two classes that lie within it of each other may change places.
    """
    tolerance = TOLERANCE if rounding is None else rounding
    path = reference.find(artifacts)
    if path is None:
        return Proof(0, None, None, "the version has no reference rows"), None
    try:
        inputs, recorded = reference.read(path)
        batch = tabular.from_columns(signature, inputs)
    except ImportError:
        return Proof(0, None, None, "pyarrow is not installed, so the reference rows were not read"), None
    except Exception as err:
        raise VersionRefused(f"its reference rows cannot be used: {_words(err)}", reason="proof_failed") from err
    got = _predict(predictor, batch)
    if rounding is not None:
        recorded, got = _chances(recorded), _chances(got)
    difference = largest_difference(recorded, got)
    if difference > tolerance:
        raise VersionRefused(
            f"its answers differ from those on record by {difference:.3g}, allowed is {tolerance:g}",
            reason="proof_failed",
        )
    return Proof(batch.rows, difference, tolerance), batch


def _chances(prediction: Prediction) -> Prediction:
    """Probabilities, of which labels are only the largest; where there are none, the answer as it is."""
    return prediction if prediction.probabilities is None else Prediction(prediction.probabilities)


def _compile(
    folder: Path, signature: Signature, native: Predictor, known: list[Batch]
) -> tuple[Compilation | None, str | None]:
    """Leave kernels in place of the estimator where they answer as it does; else the reason why they do not serve."""
    into, no_kernel = folder / compiled.FOLDER, ""
    try:
        check_release()
        estimator = native_runtime.read(folder)
        try:
            root, tolerance = build_model(estimator, signature), proof.TOLERANCE
        except NotCompiled as err:
            no_kernel, tolerance = f"{err}; converted: ", converted.TOLERANCE
            root = converted.convert(estimator, signature)
        into.mkdir()
        kernels.save(root, into)
        root = kernels.load(into)  # what was written is what is proven
        routed = compiled.predictor(kernels.without(root, Masks))
        compilation = proof.compare(
            native, compiled.predictor(root), root, signature, known, tolerance=tolerance, others=(routed,)
        )
        if no_kernel:
            compilation = converted.accepted(compilation)
    except Exception as err:  # whatever goes wrong here, scikit-learn itself can serve the version
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(err, OSError) and err.errno in OUR_TROUBLES:
            raise
        why = str(err) if isinstance(err, NotCompiled) else f"it cannot be compiled: {_words(err)}"
        return None, no_kernel + why.removeprefix("compiled ") if no_kernel else why
    native_runtime.remove(folder)
    return compilation, None


def _keep_profile(artifacts: Path, folder: Path) -> None:
    """What live rows are compared with goes along; whether it can be used is seen where it is."""
    profile = artifacts / drift.FILE_NAME
    if profile.is_file():
        shutil.copyfile(profile, folder / drift.FILE_NAME)


def _example(artifacts: Path, signature: Signature) -> dict[str, Any] | None:
    """The version's own input example as ``{"features": list of rows}``, or None when it has none that fits."""
    content = notes.read(artifacts / "input_example.json")
    rows: Any = None
    if content is not None and "data" in content:
        columns, data = content.get("columns"), content["data"]
        rows = [dict(zip(map(str, columns), row, strict=False)) for row in data] if columns else data
    elif content is not None and "inputs" in content:
        rows = content["inputs"]
    elif (artifacts / "input_example.json").is_file():
        with contextlib.suppress(ValueError):
            rows = json.loads((artifacts / "input_example.json").read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not rows:
        return None
    for given in (rows, _without_nan(rows)):  # pandas writes the gap in a column of texts as NaN
        with contextlib.suppress(ServingError):
            _, many = tabular.parse(signature, given)
            return {"features": _without_nan(given[:EXAMPLE_ROWS] if many else [given])}
    return None  # examples may be params, raw text or an older shape: they warm a worker, they prove nothing


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: a gap in an example is null."""
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and value != value else value


def _answer(
    example: dict[str, Any] | None, signature: Signature, classes: Classes | None, predictor: Predictor
) -> Batch | None:
    """The version must answer its own example, with as many classes as it names; gives the example back as a batch."""
    if example is None:
        return None
    batch, _ = tabular.parse(signature, example["features"])
    for _ in range(WARM_UP_RUNS):
        prediction = _predict(predictor, batch)
    if len(prediction.values) != batch.rows:
        raise VersionRefused(
            f"it answered its example of {batch.rows} rows with {len(prediction.values)}", reason="proof_failed"
        )
    chances = prediction.probabilities
    if classes is not None and chances is not None and chances.shape[1] != len(classes.labels):
        raise VersionRefused(
            f"it gives {chances.shape[1]} probabilities for {len(classes.labels)} classes", reason="proof_failed"
        )
    return batch


def _predict(predictor: Predictor, batch: Batch) -> Prediction:
    try:
        return predictor(batch)
    except Exception as err:
        raise VersionRefused(f"it does not answer its own rows: {_words(err)}", reason="proof_failed") from err


def _words(err: BaseException) -> str:
    first = (str(err).strip().splitlines() or [""])[0]
    return f"{type(err).__name__}: {first[:300]}" if first else type(err).__name__


def main() -> None:
    """Read a job from the file named on the command line and leave ``result.json`` beside it."""
    path = Path(sys.argv[1])
    _end_with_parent()
    os.nice(NICENESS)
    plain = notes.read(path) or {}
    job = Job(Version(**plain.pop("version")), **plain)
    try:
        made = prepare(job, Auth.from_env())
        result = {"bundle": str(made.folder)}
    except VersionRefused as err:
        result = {"refused": str(err), "reason": err.reason}
    except RegistryUnreachable as err:
        result = {"unreachable": str(err)}
    except (ServingError, OSError) as err:
        result = {"failed": _words(err)}
    try:
        notes.write(path.with_name("result.json"), result)
    except OSError as err:
        print(_words(err))
        sys.exit(os.EX_IOERR)


def _end_with_parent() -> None:
    """The parent holds the other end of our standard input; when it dies, however it dies, so do we."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):  # not `sys.stdin.read`: its lock would abort us when we end first
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # what the version started in the background must not hold us up

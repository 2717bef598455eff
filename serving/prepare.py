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
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving import bundle as bundles
from serving import drift, kernels, notes, reference, registry
from serving.batching.cost import Cost, measure, pays
from serving.bundle import Bundle, BundleUnreadable, Compilation, Proof
from serving.compile import NotCompiled, build_model, check_release, converted, proof
from serving.difference import largest_difference
from serving.digest import folder_digest
from serving.errors import PrepareFailed, RegistryUnreachable, ServingError, VersionRefused
from serving.kernels.masks import Masks
from serving.registry import Auth, Version
from serving.runtimes import FLAVORS, Predictor, compiled, runtime
from serving.runtimes import sklearn as native_runtime
from serving.tensors import Batch, Classes, Description, Prediction, Signature
from serving.transforms import tabular

TOLERANCE = 1e-6  # relative to the larger of 1 and the recorded value
NICENESS = 5  # below the workers, above starvation
LAST_WORDS_BYTES = 2000  # of a crashed child's output that are kept
WARM_UP_RUNS = 3
EXAMPLE_ROWS = 10  # at most

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


# --- in the child ----------------------------------------------------------------------------------------------------


def prepare(job: Job, auth: Auth) -> Bundle:
    """Make the bundle that ``job`` asks for. Raises `VersionRefused`, `RegistryUnreachable` or `PrepareFailed`."""
    work = Path(job.work)
    artifacts = registry.fetch(job.version, work / "artifacts", job.tracking_uri, auth)
    digest = _check_digest(job.version, artifacts)
    model = _read_mlmodel(artifacts)
    name = _choose_runtime(model)
    folder = work / "bundle"
    folder.mkdir()
    description, predictor = _convert(name, model, artifacts, folder)
    signature, classes = description.signature, description.classes
    proof, reference_rows = _prove(artifacts, signature, predictor)
    example = _example(artifacts, signature)
    example_rows = _answer(example, signature, classes, predictor)
    _keep_profile(artifacts, folder)
    known = [batch for batch in (example_rows, reference_rows) if batch is not None]
    compilation, native = _compile(folder, signature, predictor, known) if name == "sklearn" else (None, None)
    cost = _cost(compiled.load(folder) if compilation else predictor, known)
    made = Bundle(
        folder=folder,
        name=job.version.name,
        version=job.version.version,
        source=job.version.source,
        run_id=job.version.run_id,
        digest=digest,
        digest_recorded=job.version.digest is not None,
        runtime="compiled" if compilation else name,
        signature=signature,
        classes=classes,
        example=example,
        proof=proof,
        libraries=bundles.library_versions(compiled.LIBRARIES if compilation else description.libraries),
        compilation=compilation,
        native=native,
        cost=cost.as_json() if cost else None,
        batching=cost is not None and pays(cost),
    )
    return bundles.write(made, Path(job.into))


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


def _read_mlmodel(artifacts: Path) -> Mapping[str, Any]:
    import yaml

    try:
        model = yaml.safe_load((artifacts / "MLmodel").read_text(encoding="utf-8"))
        if isinstance(model, dict) and isinstance(model.get("flavors"), dict):
            return model
    except FileNotFoundError:
        raise VersionRefused("it has no MLmodel file", reason="missing_files") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        pass
    raise VersionRefused("its MLmodel file cannot be read", reason="load_failed")


def _choose_runtime(model: Mapping[str, Any]) -> str:
    for name in FLAVORS:
        if runtime(name).FLAVOR in model["flavors"]:
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


def _cost(predictor: Predictor, known: list[Batch]) -> Cost | None:
    """What a call takes, where there are rows to try it with, and the model takes one as well as many."""
    with contextlib.suppress(Exception):  # such as a graph for a fixed number of rows
        return measure(predictor, known[0])
    return None


def _prove(artifacts: Path, signature: Signature, predictor: Predictor) -> tuple[Proof, Batch | None]:
    """Compare the answers to the reference rows with those on record. Raises `VersionRefused` when they differ."""
    path = artifacts / reference.FILE_NAME
    if not path.is_file():
        return Proof(0, None, None, "the version has no reference rows"), None
    try:
        inputs, recorded = reference.read(path)
        batch = tabular.from_columns(signature, inputs)
    except ImportError:
        return Proof(0, None, None, "pyarrow is not installed, so the reference rows were not read"), None
    except Exception as err:
        raise VersionRefused(f"its reference rows cannot be used: {_words(err)}", reason="proof_failed") from err
    difference = largest_difference(recorded, _predict(predictor, batch))
    if difference > TOLERANCE:
        raise VersionRefused(
            f"its answers differ from those on record by {difference:.3g}, allowed is {TOLERANCE:g}",
            reason="proof_failed",
        )
    return Proof(batch.rows, difference, TOLERANCE), batch


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
    try:
        _, many = tabular.parse(signature, rows)
    except ServingError:
        return None  # examples may be params, raw text or an older shape: they warm a worker, they prove nothing
    return {"features": _without_nan(rows[:EXAMPLE_ROWS] if many else [rows])}


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


# --- in the agent ----------------------------------------------------------------------------------------------------


def prepare_in_child(
    version: Version, tracking_uri: str, into: Path, timeout_s: float, stop: threading.Event | None = None
) -> Bundle:
    """Run `prepare` in a child process and return its bundle, read back from ``into``.

    Raises `VersionRefused` (also when the child crashes or is not done after ``timeout_s``), `RegistryUnreachable` or
    `PrepareFailed`. The child and all that it started are gone when this returns.
    """
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".prepare-", dir=into.parent))
        try:
            notes.write(work / "job.json", asdict(Job(version, tracking_uri, str(work), str(into))))
            code, last_words = _run(work, timeout_s, stop)
            return _result(version, work, into, code, last_words)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as err:
        raise PrepareFailed(f"cannot prepare {version.name} {version.version}: {err.strerror or err}") from err


def _run(work: Path, timeout_s: float, stop: threading.Event | None) -> tuple[int, str]:
    """The child's exit code and last words.

    Raises `VersionRefused` after ``timeout_s`` and `PrepareFailed` when told to stop.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "serving.prepare", str(work / "job.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    output = _Output(child.stdout)
    try:
        deadline = time.monotonic() + timeout_s
        while child.poll() is None:
            if time.monotonic() > deadline:
                raise VersionRefused(f"it was not ready after {timeout_s:g} s", reason="prepare_timeout")
            if stop is not None and stop.is_set():
                raise PrepareFailed("the service is stopping")
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdin:
            child.stdin.close()
    return child.returncode, output.last_words()


class _Output:
    """What a child says, of which only the end is kept: it may say more than the memory or the disk holds."""

    def __init__(self, pipe: Any) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="prepare-output", daemon=True)
        self._thread.start()

    def _read(self, pipe: Any) -> None:
        with pipe:
            while piece := pipe.read1(1 << 16):
                self._kept = (self._kept + piece)[-LAST_WORDS_BYTES:]

    def last_words(self) -> str:
        """The end of it, once the child has ended."""
        self._thread.join(timeout=1.0)  # something that it started may still hold the pipe
        return self._kept.decode(errors="replace").strip()


def _result(version: Version, work: Path, into: Path, code: int, words: str) -> Bundle:
    if code == os.EX_IOERR:
        raise PrepareFailed(f"what came of {version.name} {version.version} cannot be written: {words[-300:]}")
    result = notes.read(work / "result.json")
    if result is None:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last_line = words.splitlines()[-1][:300] if words else "it said nothing"
        raise VersionRefused(f"the process that loaded it {ended}: {last_line}", reason="load_crashed")
    if "refused" in result:
        raise VersionRefused(result["refused"], reason=result["reason"])
    if "unreachable" in result:
        raise RegistryUnreachable(result["unreachable"])
    if "failed" in result:
        raise PrepareFailed(f"cannot prepare {version.name} {version.version}: {result['failed']}")
    try:
        return bundles.read(into)
    except BundleUnreadable as err:
        raise VersionRefused(f"the process that loaded it left no bundle: {err}", reason="load_crashed") from err


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # what the version started in the background must not hold us up

"""Prepare: what comes of good versions, and of versions that do whatever versions do, in real child processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import yaml
from samples import CLASS_NAMES, column_signature, flowers, save_onnx, save_pyfunc, save_sklearn, write_sklearn
from served import free_port

from serving import bundle as bundles
from serving import reference
from serving.bundle import Bundle, Proof
from serving.child import prepare_in_child
from serving.digest import folder_digest
from serving.errors import PrepareFailed, RegistryUnreachable, VersionRefused
from serving.prepare import EXAMPLE_ROWS, TOLERANCE, Job, prepare
from serving.registry import Auth, Version
from serving.runtimes import runtime
from serving.settings import ROOT
from serving.tensors import Batch, Prediction, Signature
from serving.transforms import tabular

TIMEOUT_S = 60.0
SIGNATURE = column_signature(a="double", b="double")
EXAMPLE = {"columns": ["a", "b"], "data": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where the bundle goes. Afterwards nothing else is beside it, and no child is alive."""
    into = tmp_path / "bundles" / "1-abc"
    yield into
    if into.parent.is_dir():
        assert {path.name for path in into.parent.iterdir()} <= {into.name}
    assert processes_about(tmp_path) == []


def processes_about(folder: Path) -> list[int]:
    """The living processes that have ``folder`` on their command line."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and str(folder).encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def version_at(folder: Path, digest: str | None = None) -> Version:
    return Version("iris", "1", "champion", "registry", str(folder), "0123abcd", digest)


def in_child(folder: Path, into: Path, *, timeout_s: float = TIMEOUT_S, digest: str | None = None) -> Bundle:
    """Prepared by a child of this process."""
    return prepare_in_child(version_at(folder, digest), "http://127.0.0.1:1", into, timeout_s)


def here(folder: Path, into: Path) -> Bundle:
    """Prepared in this process: for the many cases in which the child itself is not the point."""
    work = into.parent.parent / "work"
    work.mkdir()
    return prepare(Job(version_at(folder), "http://127.0.0.1:1", str(work), str(into)), Auth())


def refusal(prepared: Callable[..., Bundle], *arguments: Any, **options: Any) -> VersionRefused:
    with pytest.raises(VersionRefused) as caught:
        prepared(*arguments, **options)
    return caught.value


# --- versions --------------------------------------------------------------------------------------------------------


class OnLoad:
    """A pickle that runs code when it is read."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return (exec, (self.code,))


def runs_on_load(tmp_path: Path, code: str) -> Path:
    """A version that runs ``code`` when it is loaded."""
    return write_sklearn(tmp_path / "model", OnLoad(code))


def model_that(predict: Callable[[np.ndarray], Any], **attributes: Any) -> Any:
    """An estimator that answers arrays of two columns with ``predict``; local, so that it is pickled by value."""

    class Estimator:
        n_features_in_ = 2

        def predict(self, rows: np.ndarray) -> Any:
            return predict(rows)

    for name, value in attributes.items():
        setattr(Estimator, name, value)
    return Estimator()


def summing(tmp_path: Path, predict: Callable[[np.ndarray], Any] | None = None, **attributes: Any) -> Path:
    """A version that sums its two columns, or answers with ``predict``, and has an input example."""
    estimator = model_that(predict or (lambda rows: rows.sum(axis=1)), **attributes)
    folder = write_sklearn(tmp_path / "model", estimator, dump=cloudpickle.dumps, signature=SIGNATURE)
    (folder / "input_example.json").write_text(json.dumps(EXAMPLE))
    return folder


ROWS = Batch(("a", "b"), block=np.arange(20.0).reshape(10, 2))
SUMS = ROWS.block.sum(axis=1) if ROWS.block is not None else np.zeros(0)


def with_reference(folder: Path, recorded: Prediction, batch: Batch = ROWS) -> Path:
    reference.write(folder / reference.FILE_NAME, batch, recorded)
    return folder


# --- good versions ---------------------------------------------------------------------------------------------------


def test_a_trained_model_becomes_a_bundle_that_answers_like_it(tmp_path: Path, place: Path) -> None:
    """From what MLflow saved to what a worker loads; the digest is right and the reference rows are met exactly."""
    from mlflow.models import infer_signature
    from sklearn.ensemble import RandomForestClassifier

    frame, labels = flowers()
    forest = RandomForestClassifier(3, random_state=0).fit(frame, labels)
    folder = save_sklearn(
        tmp_path / "model",
        forest,
        format="skops",
        signature=infer_signature(frame, labels),
        input_example=frame.head(30),
        metadata={"class_names": list(CLASS_NAMES)},
    )
    batch = Batch(tuple(frame.columns), block=frame.to_numpy())
    with_reference(folder, Prediction(forest.predict(frame), forest.predict_proba(frame)), batch)
    bundle = in_child(folder, place, digest=folder_digest(folder))

    assert bundle == bundles.read(place, verify=True)
    assert (bundle.name, bundle.version, bundle.run_id, bundle.source) == ("iris", "1", "0123abcd", "registry")
    assert (bundle.runtime, bundle.digest, bundle.digest_recorded) == ("compiled", folder_digest(folder), True)
    assert bundle.proof == Proof(150, 0.0, TOLERANCE)
    assert bundle.classes is not None
    assert bundle.classes.names == CLASS_NAMES
    assert bundle.example is not None
    assert len(bundle.example["features"]) == EXAMPLE_ROWS
    asked, _ = tabular.parse(bundle.signature, frame.to_numpy().tolist())
    assert np.array_equal(runtime("compiled").load(place)(asked).values, forest.predict(frame))


def test_an_onnx_graph_is_preferred_to_anything_else(tmp_path: Path, place: Path) -> None:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder = save_onnx(tmp_path / "model", model)
    assert set(yaml.safe_load((folder / "MLmodel").read_text())["flavors"]) == {"onnx", "python_function"}
    bundle = in_child(folder, place)
    assert (bundle.runtime, bundle.signature.origin, bundle.libraries) == ("onnx", "inferred", {})


def test_a_pyfunc_is_what_is_left(tmp_path: Path, place: Path) -> None:
    (tmp_path / "tripling.py").write_text(
        "from mlflow.models import set_model\nfrom mlflow.pyfunc import PythonModel\n"
        "class Tripling(PythonModel):\n    def predict(self, context, model_input, params=None):\n"
        "        return model_input['a'] * 3\nset_model(Tripling())\n"
    )
    folder = save_pyfunc(tmp_path / "model", str(tmp_path / "tripling.py"), input_example={"a": [1.0]})
    assert in_child(folder, place).runtime == "pyfunc"


def test_a_version_without_digest_reference_or_example_says_so(tmp_path: Path, place: Path) -> None:
    folder = summing(tmp_path)
    (folder / "input_example.json").unlink()
    bundle = in_child(folder, place)
    assert not bundle.digest_recorded
    assert bundle.digest == folder_digest(folder)
    assert bundle.proof == Proof(0, None, None, "the version has no reference rows")
    assert bundle.example is None


def test_a_version_without_a_signature_says_where_it_comes_from(tmp_path: Path, place: Path) -> None:
    estimator = model_that(lambda rows: rows.sum(axis=1))
    folder = write_sklearn(tmp_path / "model", estimator, dump=cloudpickle.dumps)
    assert here(folder, place).signature.origin == "inferred"


def test_the_versions_files_stay_as_they_are(tmp_path: Path, place: Path) -> None:
    folder = summing(tmp_path)
    before = folder_digest(folder)
    in_child(folder, place)
    assert folder_digest(folder) == before


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path, place: Path) -> None:
    place.mkdir(parents=True)
    (place / "half").write_text("x")
    in_child(summing(tmp_path), place)
    assert not (place / "half").exists()
    assert bundles.read(place, verify=True).version == "1"


def test_a_version_that_prints_is_prepared_all_the_same(tmp_path: Path, place: Path) -> None:
    class Chatty:
        n_features_in_ = 2

        def __setstate__(self, state: Any) -> None:
            os.write(1, b"\xff\x00 not text \x1b[31m\n" * 1000)
            os.write(2, b'{"refused": "no", "reason": "none"}\n')

        def __getstate__(self) -> Any:
            return {"some": "state"}

        def predict(self, rows: np.ndarray) -> Any:
            print("predicting", rows)
            return rows[:, 0]

    folder = write_sklearn(tmp_path / "model", Chatty(), dump=cloudpickle.dumps, signature=SIGNATURE)
    (folder / "input_example.json").write_text(json.dumps(EXAMPLE))
    assert in_child(folder, place).runtime == "sklearn"


def test_a_gap_in_an_example_is_a_gap_also_among_texts(tmp_path: Path, place: Path) -> None:
    folder = write_sklearn(
        tmp_path / "model",
        model_that(lambda rows: np.zeros(len(rows))),
        dump=cloudpickle.dumps,
        signature={"inputs": json.dumps([{"name": "t", "type": "string", "required": False}])},
    )
    written = {"columns": ["t"], "data": [[float("nan")], ["x"]]}  # as pandas writes it
    (folder / "input_example.json").write_text(json.dumps(written))
    assert in_child(folder, place).example == {"features": [{"t": None}, {"t": "x"}]}


def test_what_a_version_does_in_the_background_holds_nobody_up(tmp_path: Path, place: Path) -> None:
    class Busy:
        n_features_in_ = 2

        def __setstate__(self, state: Any) -> None:
            import threading
            import time

            threading.Thread(target=time.sleep, args=(600,)).start()

        def __getstate__(self) -> Any:
            return {"some": "state"}

        def predict(self, rows: np.ndarray) -> Any:
            return rows[:, 0]

    folder = write_sklearn(tmp_path / "model", Busy(), dump=cloudpickle.dumps, signature=SIGNATURE)
    assert in_child(folder, place).runtime == "sklearn"


# --- files that are not as they were logged --------------------------------------------------------------------------


def test_another_digest_than_the_recorded_one_is_refused(tmp_path: Path, place: Path) -> None:
    err = refusal(in_child, summing(tmp_path), place, digest="sha256:" + "0" * 64)
    assert err.reason == "digest_mismatch"
    assert "recorded is sha256:000" in str(err)
    assert not place.exists()


def test_a_file_that_was_cut_off_is_refused_by_its_digest(tmp_path: Path, place: Path) -> None:
    folder = runs_on_load(tmp_path, f"open({str(tmp_path / 'loaded')!r}, 'w')")
    digest = folder_digest(folder)
    (folder / "model.pkl").write_bytes((folder / "model.pkl").read_bytes()[:-10] + b" " * 10)
    assert refusal(in_child, folder, place, digest=digest).reason == "digest_mismatch"
    assert not (tmp_path / "loaded").exists(), "nothing of a version runs before its digest is right"


def test_a_file_that_was_cut_off_does_not_load_without_a_digest_either(tmp_path: Path, place: Path) -> None:
    folder = summing(tmp_path)
    (folder / "model.pkl").write_bytes((folder / "model.pkl").read_bytes()[:-50])
    err = refusal(in_child, folder, place)
    assert err.reason == "load_failed"
    assert str(err).startswith("it does not load: ")


def test_an_absent_mlmodel_is_refused(tmp_path: Path, place: Path) -> None:
    folder = summing(tmp_path)
    (folder / "MLmodel").unlink()
    err = refusal(in_child, folder, place)
    assert (err.reason, str(err)) == ("missing_files", "it has no MLmodel file")


@pytest.mark.parametrize("content", [b"", b"flavors", b"flavors: []", b"{flavors: {", b"\xff\xfe\x00", b"- 1"])
def test_an_mlmodel_that_is_none_is_refused(tmp_path: Path, place: Path, content: bytes) -> None:
    folder = summing(tmp_path)
    (folder / "MLmodel").write_bytes(content)
    err = refusal(here, folder, place)
    assert (err.reason, str(err)) == ("load_failed", "its MLmodel file cannot be read")


@pytest.mark.parametrize(("flavors", "named"), [("{}", "none"), ("{spark: {}, h2o: {}}", "spark, h2o")])
def test_a_flavor_that_nothing_serves_is_refused(tmp_path: Path, place: Path, flavors: str, named: str) -> None:
    folder = summing(tmp_path)
    (folder / "MLmodel").write_text(f"flavors: {flavors}")
    err = refusal(here, folder, place)
    assert (err.reason, str(err)) == ("unknown_flavor", f"no runtime serves its flavors ({named})")


@pytest.mark.parametrize("kind", ["absent", "empty"])
def test_a_folder_without_files_is_refused(tmp_path: Path, place: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(in_child, tmp_path / kind, place).reason == "missing_files"


def test_a_model_file_that_is_not_there_is_the_versions_fault(tmp_path: Path, place: Path) -> None:
    folder = summing(tmp_path)
    (folder / "model.pkl").unlink()
    err = refusal(in_child, folder, place)
    assert err.reason == "load_failed"
    assert "model.pkl" in str(err)


# --- versions that do not load ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no licence\\nfor this model')", "it does not load: RuntimeError: no licence"),
        ("raise KeyError", "it does not load: KeyError"),
        ("import not_installed_anywhere", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("open('/nonexistent/weights')", "FileNotFoundError"),
        ("raise MemoryError", "it does not load: MemoryError"),
        ("pass", "NoneType has no predict method"),
        ("raise ValueError('x' * 10_000)", "it does not load: ValueError: xxx"),
    ],
)
def test_a_version_that_raises_on_load_is_refused_in_its_own_words(
    tmp_path: Path, place: Path, code: str, message: str
) -> None:
    err = refusal(here, runs_on_load(tmp_path, code), place)
    assert err.reason == "load_failed"
    assert message in str(err)
    assert "\n" not in str(err)
    assert len(str(err)) < 500


def test_its_reason_comes_out_of_the_child(tmp_path: Path, place: Path) -> None:
    err = refusal(in_child, runs_on_load(tmp_path, "raise RuntimeError('no licence')"), place)
    assert (err.reason, str(err)) == ("load_failed", "it does not load: RuntimeError: no licence")


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("import os; os._exit(3)", "ended with exit code 3: it said nothing"),
        ("import os; os._exit(0)", "ended with exit code 0: it said nothing"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9"),
        ("import ctypes; ctypes.string_at(0)", "was killed by signal 11"),
        ("raise SystemExit('I give up')", "ended with exit code 1: I give up"),
        (
            r"import os; os.write(1, b'\xff first\n' * 9 + b'last \xff words\n'); os._exit(4)",
            "exit code 4: last \ufffd words",
        ),
    ],
    ids=["exit", "quiet exit", "killed", "segmentation fault", "sys.exit", "last words"],
)
def test_a_version_that_ends_the_process_is_refused_with_its_end(
    tmp_path: Path, place: Path, code: str, ended: str
) -> None:
    err = refusal(in_child, runs_on_load(tmp_path, code), place)
    assert err.reason == "load_crashed"
    assert str(err).startswith("the process that loaded it ")
    assert ended in str(err)


@pytest.mark.parametrize("code", ["import time; time.sleep(600)", "while True: pass"], ids=["asleep", "busy"])
def test_a_version_that_does_not_come_back_is_killed(tmp_path: Path, place: Path, code: str) -> None:
    started = time.monotonic()
    err = refusal(in_child, runs_on_load(tmp_path, code), place, timeout_s=1.5)
    assert (err.reason, str(err)) == ("prepare_timeout", "it was not ready after 1.5 s")
    assert time.monotonic() - started < 5


def test_a_version_that_says_more_than_anyone_keeps(tmp_path: Path, place: Path) -> None:
    """300 MB of it, which are neither in our memory nor on our disk."""
    code = "import os\nfor _ in range(300): os.write(1, b'x' * 1_000_000)\nos.write(1, b'\\nenough'); os._exit(1)"
    largest: list[int] = []
    ended = threading.Event()

    def measure() -> None:
        while not ended.wait(0.05):
            with contextlib.suppress(FileNotFoundError):  # the prepare removes files while we look
                largest.append(sum(path.stat().st_size for path in place.parent.rglob("*") if path.is_file()))

    folder = runs_on_load(tmp_path, code)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watcher = threading.Thread(target=measure)
    watcher.start()
    try:
        err = refusal(in_child, folder, place)
    finally:
        ended.set()
        watcher.join()
    assert str(err) == "the process that loaded it ended with exit code 1: enough"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert max(largest) < 1_000_000


def test_what_a_version_starts_ends_with_it(tmp_path: Path, place: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, time\n"
        f"open({str(pid_file)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\n"
        "time.sleep(600)"
    )
    assert refusal(in_child, runs_on_load(tmp_path, code), place, timeout_s=2.0).reason == "prepare_timeout"
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


# --- troubles that are ours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE])
def test_a_trouble_of_the_machine_is_not_held_against_the_version(tmp_path: Path, place: Path, code: int) -> None:
    with pytest.raises(OSError, match=os.strerror(code)):
        here(runs_on_load(tmp_path, f"import os; raise OSError({code}, os.strerror({code}))"), place)


def test_a_full_disk_is_not_held_against_the_version(tmp_path: Path, place: Path) -> None:
    """A limit on the size of files, which children inherit, stands in for the disk's end."""
    folder = summing(tmp_path)
    (folder / "weights.bin").write_bytes(bytes(200_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(PrepareFailed, match=r"cannot prepare iris 1: .*(File too large|cannot write the files)"):
            in_child(folder, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_result_that_cannot_be_written_is_not_held_against_the_version(tmp_path: Path, place: Path) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).with_name('result.json').mkdir()"
    with pytest.raises(PrepareFailed, match="what came of iris 1 cannot be written: IsADirectoryError"):
        in_child(runs_on_load(tmp_path, code), place)


def test_a_place_that_cannot_be_written_is_our_trouble(tmp_path: Path) -> None:
    folder = summing(tmp_path)
    (tmp_path / "file").write_text("in the way")
    for into in (tmp_path / "file" / "1-abc", tmp_path / "file" / "bundles" / "1-abc"):
        with pytest.raises(PrepareFailed, match="cannot prepare iris 1: "):
            in_child(folder, into)


def test_a_store_that_does_not_answer_is_told_apart(tmp_path: Path, place: Path) -> None:
    version = Version("iris", "1", "champion", "registry", "mlflow-artifacts:/0/model")
    with pytest.raises(RegistryUnreachable, match="connection refused"):
        prepare_in_child(version, f"http://127.0.0.1:{free_port()}", place, TIMEOUT_S)


def test_a_result_that_the_version_wrote_itself_is_no_bundle(tmp_path: Path, place: Path) -> None:
    code = (
        "import sys, os, pathlib\n"
        "pathlib.Path(sys.argv[1]).with_name('result.json').write_text('{\"bundle\": \"/etc\"}')\nos._exit(0)"
    )
    err = refusal(in_child, runs_on_load(tmp_path, code), place)
    assert err.reason == "load_crashed"
    assert "left no bundle" in str(err)


def test_who_stops_does_not_wait(tmp_path: Path, place: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    started = time.monotonic()
    with pytest.raises(PrepareFailed, match="the service is stopping"):
        prepare_in_child(version_at(runs_on_load(tmp_path, "import time; time.sleep(600)")), "", place, 60.0, stop)
    assert time.monotonic() - started < 5


PARENT = """
import sys
from pathlib import Path
from serving.child import prepare_in_child
from serving.registry import Version
print("here", flush=True)
prepare_in_child(Version("iris", "1", None, "registry", sys.argv[1]), "", Path(sys.argv[2]), 60.0)
"""


def test_a_child_ends_with_its_parent_however_that_dies(tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    folder = runs_on_load(tmp_path, f"import time; open({str(loading)!r}, 'w'); time.sleep(600)")
    into = tmp_path / "bundles" / "1-abc"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder), str(into)], cwd=ROOT)
    await_true(loading.exists)
    children = [pid for pid in processes_about(into.parent) if pid != parent.pid]
    assert len(children) == 1
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    await_true(lambda: not processes_about(into.parent))


def await_true(what: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- proof -----------------------------------------------------------------------------------------------------------


def proven(tmp_path: Path, place: Path, recorded: np.ndarray, got: np.ndarray | None = None) -> Bundle:
    """A version with ``recorded`` as the answers on record, which answers with ``got`` or else its sums."""
    answers = SUMS if got is None else got
    folder = summing(tmp_path, lambda rows: answers[: len(rows)])
    return here(with_reference(folder, Prediction(recorded)), place)


def test_the_same_answers_prove_it_exactly(tmp_path: Path, place: Path) -> None:
    assert proven(tmp_path, place, SUMS).proof == Proof(10, 0.0, TOLERANCE)


def test_a_small_difference_is_told_and_allowed(tmp_path: Path, place: Path) -> None:
    proof = proven(tmp_path, place, SUMS, SUMS * (1 + 1e-9)).proof
    assert proof.largest_difference == pytest.approx(1e-9, rel=1e-3)


def test_recorded_answers_that_differ_are_refused(tmp_path: Path, place: Path) -> None:
    """In a child, from one row of ten."""
    answers = SUMS.copy()
    answers[7] += 1e-3
    err = refusal(in_child, with_reference(summing(tmp_path), Prediction(answers)), place)
    assert err.reason == "proof_failed"
    assert str(err).startswith("its answers differ from those on record by 3.4")
    assert not place.exists()


def changed(values: np.ndarray, row: int, value: float) -> np.ndarray:
    other = values.astype(np.float64)
    other[row] = value
    return other


@pytest.mark.parametrize(
    ("recorded", "got"),
    [
        (SUMS, SUMS * (1 + 2e-6)),
        (SUMS, SUMS[:, None]),
        (SUMS, changed(SUMS, 3, np.nan)),
        (changed(SUMS, 3, np.nan), SUMS),
        (SUMS, changed(SUMS, 3, np.inf)),
        (changed(SUMS, 3, np.inf), SUMS),
        (changed(SUMS, 3, np.inf), changed(SUMS, 3, -np.inf)),
        (SUMS.astype(int), SUMS.astype(int) + 1),
        (np.array(["a", "b"] * 5), np.array(["b", "b"] * 5)),
        (np.array([True, False] * 5), np.array([False, False] * 5)),
        (np.array(["1", "2"] * 5), np.array([1, 2] * 5)[:, None]),
    ],
    ids=[
        "value",
        "shape",
        "nan",
        "no nan",
        "infinite",
        "finite",
        "sign",
        "whole",
        "text",
        "boolean",
        "text and number",
    ],
)
def test_every_kind_of_difference_is_found(tmp_path: Path, place: Path, recorded: np.ndarray, got: np.ndarray) -> None:
    with pytest.raises(VersionRefused, match="its answers differ from those on record") as caught:
        proven(tmp_path, place, recorded, got)
    assert caught.value.reason == "proof_failed"


@pytest.mark.parametrize(
    ("recorded", "got"),
    [
        (changed(SUMS, 3, np.nan), changed(SUMS, 3, np.nan)),
        (changed(SUMS, 3, np.inf), changed(SUMS, 3, np.inf)),
        (SUMS, SUMS.astype(np.float32)),
        (SUMS.astype(np.int32), SUMS.astype(np.int64)),
        (np.array(["a", "b"] * 5), np.array(["a", "b"] * 5, dtype=object)),
        (np.array([True, False] * 5), np.array([True, False] * 5)),
        (np.stack([SUMS, SUMS], axis=1), np.stack([SUMS, SUMS], axis=1)),
    ],
    ids=["nan", "infinite", "float32", "whole", "text", "boolean", "two outputs"],
)
def test_equal_answers_are_equal_in_every_kind(
    tmp_path: Path, place: Path, recorded: np.ndarray, got: np.ndarray
) -> None:
    assert proven(tmp_path, place, recorded, got).proof.largest_difference == 0.0


CHANCES = np.stack([SUMS / 100, 1 - SUMS / 100], axis=1)
CLASSIFIER = {"classes_": np.array([0, 1])}


@pytest.mark.parametrize("recorded", [CHANCES, CHANCES + 1e-12])
def test_probabilities_that_are_met_prove_it(tmp_path: Path, place: Path, recorded: np.ndarray) -> None:
    chances = CHANCES
    labels = (SUMS > 10).astype(int)
    attributes = {**CLASSIFIER, "predict_proba": lambda _, rows: chances[: len(rows)]}
    folder = summing(tmp_path, lambda rows: labels[: len(rows)], **attributes)
    assert here(with_reference(folder, Prediction(labels, recorded)), place).proof.rows == 10


@pytest.mark.parametrize("kind", ["differ", "lack", "fewer"])
def test_probabilities_that_are_not_met_are_refused(tmp_path: Path, place: Path, kind: str) -> None:
    chances = {"differ": CHANCES + 1e-3, "fewer": CHANCES[:, :1], "lack": None}[kind]
    labels = (SUMS > 10).astype(int)
    more = {} if chances is None else {"predict_proba": lambda _, rows: chances[: len(rows)]}
    folder = summing(tmp_path, lambda rows: labels[: len(rows)], **CLASSIFIER, **more)
    assert refusal(here, with_reference(folder, Prediction(labels, CHANCES)), place).reason == "proof_failed"


@pytest.mark.parametrize("kind", ["no parquet", "another table", "another column"])
def test_reference_rows_that_cannot_be_used_are_refused(tmp_path: Path, place: Path, kind: str) -> None:
    folder = summing(tmp_path)
    if kind == "another column":
        with_reference(folder, Prediction(SUMS), Batch(("a", "c"), block=ROWS.block))
    else:
        (folder / reference.FILE_NAME).write_bytes(b"PAR1" if kind == "no parquet" else b"x" * 100)
    err = refusal(here, folder, place)
    assert err.reason == "proof_failed"
    assert str(err).startswith("its reference rows cannot be used: ")


def test_gaps_in_reference_rows_of_whole_numbers_stay_gaps(tmp_path: Path, place: Path) -> None:
    """They come to the model as they do in a request."""
    inputs = '[{"name": "a", "type": "double", "required": true}, {"name": "b", "type": "long", "required": false}]'
    estimator = model_that(lambda rows: np.isnan(rows.astype(float)).sum(axis=1))
    folder = write_sklearn(tmp_path / "model", estimator, dump=cloudpickle.dumps, signature={"inputs": inputs})
    batch, _ = tabular.parse(
        Signature.from_mlmodel({"inputs": inputs}) or Signature("unknown", ()), [[1.0, 1], [2.0, None], [3.0, 3]]
    )
    with_reference(folder, Prediction(np.array([0, 1, 0])), batch)
    assert here(folder, place).proof == Proof(3, 0.0, TOLERANCE)


# --- the example -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "features"),
    [
        ({"columns": ["a", "b"], "data": [[1.0, 2.0]]}, [{"a": 1.0, "b": 2.0}]),
        ({"columns": ["b", "a"], "index": [0], "data": [[2.0, 1.0]]}, [{"b": 2.0, "a": 1.0}]),
        ({"data": [[1.0, 2.0]]}, [[1.0, 2.0]]),
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]]),
        ({"inputs": [[1.0, 2.0]]}, [[1.0, 2.0]]),
        ([1.0, 2.0], [[1.0, 2.0]]),
        ({"columns": ["a", "b"], "data": [[1.0, 2.0]] * 50}, [{"a": 1.0, "b": 2.0}] * EXAMPLE_ROWS),
    ],
)
def test_an_example_in_each_of_mlflows_shapes_warms_the_worker(
    tmp_path: Path, place: Path, written: Any, features: Any
) -> None:
    folder = summing(tmp_path)
    (folder / "input_example.json").write_text(json.dumps(written))
    assert here(folder, place).example == {"features": features}


@pytest.mark.parametrize(
    "written",
    ['{"columns": ["x"], "data": [[1]]}', "[]", "{}", '"text"', "{", "[[1]]", '{"a": 1}', '{"data": 5}', "[null]"],
)
def test_an_example_that_does_not_fit_is_left_alone(tmp_path: Path, place: Path, written: str) -> None:
    folder = summing(tmp_path)
    (folder / "input_example.json").write_text(written)
    assert here(folder, place).example is None


def test_a_gap_in_an_example_is_null(tmp_path: Path, place: Path) -> None:
    """Frames are written with null, arrays with NaN, which JSON does not have and clients could not send."""
    inputs = '[{"name": "a", "type": "double"}, {"name": "b", "type": "double", "required": false}]'
    folder = summing(tmp_path)
    written = yaml.safe_load((folder / "MLmodel").read_text())
    (folder / "MLmodel").write_text(yaml.safe_dump({**written, "signature": {"inputs": inputs}}))
    (folder / "input_example.json").write_text("[[1.0, NaN], [2.0, 3.0]]")
    assert here(folder, place).example == {"features": [[1.0, None], [2.0, 3.0]]}


def test_a_single_row_of_many_values_is_an_example_whole(tmp_path: Path, place: Path) -> None:
    names = [f"c{number}" for number in range(3 * EXAMPLE_ROWS)]
    estimator = model_that(lambda rows: rows.sum(axis=1))
    signature = column_signature(**dict.fromkeys(names, "double"))
    folder = write_sklearn(tmp_path / "model", estimator, dump=cloudpickle.dumps, signature=signature)
    (folder / "input_example.json").write_text(json.dumps([1.0] * len(names)))
    assert here(folder, place).example == {"features": [[1.0] * len(names)]}


def test_an_example_of_a_frame_without_names_is_understood(tmp_path: Path, place: Path) -> None:
    estimator = model_that(lambda rows: rows.sum(axis=1))
    signature = {"inputs": '[{"name": 0, "type": "double"}, {"name": 1, "type": "double"}]'}
    folder = write_sklearn(tmp_path / "model", estimator, dump=cloudpickle.dumps, signature=signature)
    (folder / "input_example.json").write_text(json.dumps({"columns": [0, 1], "data": [[1.0, 2.0]]}))
    assert here(folder, place).example == {"features": [{"0": 1.0, "1": 2.0}]}


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda rows: rows[:-1, 0], "it answered its example of 3 rows with 2"),
        (lambda _: np.zeros(0), "it answered its example of 3 rows with 0"),
        (lambda _: np.zeros((1, 3)), "it answered its example of 3 rows with 1"),
        (lambda rows: rows[:, 7], "it does not answer its own rows: IndexError"),
        (lambda _: 1 / 0, "it does not answer its own rows: ZeroDivisionError: division by zero"),
    ],
    ids=["fewer", "none", "flat", "raises", "divides"],
)
def test_a_version_must_answer_its_own_example_row_by_row(
    tmp_path: Path, place: Path, predict: Callable[[np.ndarray], Any], message: str
) -> None:
    err = refusal(here, summing(tmp_path, predict), place)
    assert err.reason == "proof_failed"
    assert str(err).startswith(message)


def test_wrong_rows_are_refused_from_the_child_too(tmp_path: Path, place: Path) -> None:
    err = refusal(in_child, summing(tmp_path, lambda rows: rows[:-1, 0]), place)
    assert (err.reason, str(err)) == ("proof_failed", "it answered its example of 3 rows with 2")
    assert not place.exists()


def test_a_version_must_give_as_many_probabilities_as_classes(tmp_path: Path, place: Path) -> None:
    attributes = {"classes_": np.array([0, 1, 2]), "predict_proba": lambda _, rows: np.ones((len(rows), 2)) / 2}
    err = refusal(here, summing(tmp_path, lambda rows: np.zeros(len(rows)), **attributes), place)
    assert (err.reason, str(err)) == ("proof_failed", "it gives 2 probabilities for 3 classes")


def test_a_version_that_ends_the_process_when_it_answers_is_refused(tmp_path: Path, place: Path) -> None:
    def end(rows: np.ndarray) -> Any:
        import os

        os._exit(7)

    err = refusal(in_child, summing(tmp_path, end), place)
    assert err.reason == "load_crashed"
    assert "ended with exit code 7" in str(err)

"""The compiled form that a version brings along: used where it fits the model, and passed over where it does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import CLASS_NAMES, flowers, save_sklearn
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier

from serving import kernels, notes, precompiled, reference
from serving.bundle import Bundle, Compilation
from serving.digest import folder_digest
from serving.prepare import Job, precompile, prepare
from serving.registry import Auth, Version
from serving.runtimes import runtime
from serving.settings import ROOT
from serving.tensors import Batch, Prediction

WITHOUT_SKLEARN = """
import sys
sys.modules["sklearn"] = None  # as if it were not installed
from pathlib import Path
from serving.prepare import Job, prepare
from serving.registry import Auth, Version
folder, work = sys.argv[1:]
made = prepare(Job(Version("iris", "1", "champion", "local", folder), "", work, work + "/made"), Auth())
print(made.runtime, made.compilation.proven, "sklearn.tree" in sys.modules, "pandas" in sys.modules)
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forest as training logs it: with reference rows and its compiled form."""
    from mlflow.models import infer_signature

    home = tmp_path_factory.mktemp("logged")
    X, y = flowers()
    forest = RandomForestClassifier(10, random_state=0).fit(X, y)
    signature = infer_signature(X, y)
    save_sklearn(home / "model", forest, signature=signature, metadata={"class_names": list(CLASS_NAMES)})
    batch = Batch(tuple(X.columns), tuple(X[name].to_numpy() for name in X.columns))
    reference.write(home / "model" / reference.FILE_NAME, batch, Prediction(forest.predict(X), forest.predict_proba(X)))
    assert isinstance(precompile(home / "model", home / "model"), Compilation)
    return home / "model"


@pytest.fixture
def version(logged: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(logged, tmp_path / "version"))


def prepared(folder: Path, tmp_path: Path) -> Bundle:
    work = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
    work.mkdir()
    version = Version("iris", "1", "champion", "local", str(folder), digest=folder_digest(folder))
    return prepare(Job(version, "", str(work), str(work / "made")), Auth())


def changed(folder: Path, **changes: Any) -> None:
    note = folder / "compiled" / precompiled.NOTE
    notes.write(note, {**json.loads(note.read_text()), **changes})


def test_it_is_what_serves(logged: Path, tmp_path: Path) -> None:
    made = prepared(logged, tmp_path)
    assert made.runtime == "compiled"
    assert made.compilation is not None
    assert (made.compilation.proven, made.compilation.exact) == ("at training", True)
    assert made.proof.rows == 150
    assert made.classes is not None
    assert made.classes.names == CLASS_NAMES
    assert sorted(path.name for path in (made.folder / "compiled").iterdir()) == sorted(kernels.FILES)
    X, _ = flowers()
    _, recorded = reference.read(logged / reference.FILE_NAME)
    answered = runtime("compiled").load(made.folder)(Batch(tuple(X.columns), block=X.to_numpy()))
    assert np.array_equal(answered.probabilities, recorded.probabilities)


def test_no_scikit_learn_is_needed(logged: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_SKLEARN, str(logged), str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert ran.stdout.split() == ["compiled", "at", "training", "False", "False"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: changed(folder, format=99),
        lambda folder: changed(folder, compilation={"rows": 1}),
        lambda folder: changed(folder, signature={}),
        lambda folder: (folder / "compiled" / precompiled.NOTE).write_text("{"),
        lambda folder: (folder / "compiled" / "kernels.json").write_text('{"kernel": "Unheard", "fields": {}}'),
        lambda folder: (folder / "compiled" / "arrays.bin").unlink(),
    ],
    ids=["another format", "another proof", "no signature", "no JSON", "an unknown kernel", "no arrays"],
)
def test_one_that_cannot_be_used_is_made_anew(version: Path, tmp_path: Path, spoil: Any) -> None:
    spoil(version)
    made = prepared(version, tmp_path)
    assert made.compilation is not None
    assert made.compilation.proven == "when it was prepared"


def test_that_of_another_model_is_passed_over(version: Path, tmp_path: Path) -> None:
    """Somebody put another model into the folder: its kernels would answer for the one before."""
    import yaml

    X, y = flowers()
    other = RandomForestClassifier(10, random_state=1).fit(X, y)
    save_sklearn(tmp_path / "other", other)
    file = yaml.safe_load((version / "MLmodel").read_text())["flavors"]["sklearn"]["pickled_model"]
    shutil.copyfile(tmp_path / "other" / file, version / file)
    (version / reference.FILE_NAME).unlink()
    made = prepared(version, tmp_path)
    assert made.compilation is not None
    assert made.compilation.proven == "when it was prepared"
    rows = Batch(tuple(X.columns), block=X.to_numpy())
    assert np.array_equal(runtime("compiled").load(made.folder)(rows).probabilities, other.predict_proba(X))


def test_what_has_no_kernel_says_so(tmp_path: Path) -> None:
    X, y = flowers()
    save_sklearn(tmp_path / "model", KNeighborsClassifier().fit(X, y))
    (tmp_path / "into").mkdir()
    why = precompile(tmp_path / "model", tmp_path / "into")
    assert isinstance(why, str)
    assert why
    assert list((tmp_path / "into").iterdir()) == []

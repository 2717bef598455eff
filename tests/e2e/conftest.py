"""One SQLite registry with small iris versions for all end-to-end tests of a process."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Running
from registered import Registered

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """A registry with two good versions of ``iris``, the first of them ``champion``."""
    registered = Registered(tmp_path_factory.mktemp("registry"))
    registered.add_graph(seed=1)
    registered.add_graph(seed=2)
    registered.point("1")
    return registered


@pytest.fixture
def service(registered: Registered, tmp_path: Path) -> Iterator[Running]:
    """A service that is not started yet; whatever is left of it afterwards is killed."""
    registered.point("1")
    running = Running(tmp_path / "service", registered.uri)
    yield running
    running.kill()


class Raises:
    """A pickle that raises when it is read."""

    def __reduce__(self) -> Any:
        return (exec, ("raise RuntimeError('no licence for this model')",))


class Hangs:
    """A pickle that does not come back."""

    def __reduce__(self) -> Any:
        return (exec, ("import time; time.sleep(600)",))


@pytest.fixture(scope="session")
def bad_versions(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Versions that must not go live, by the reason for which each is refused."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    home = tmp_path_factory.mktemp("bad")
    good = registered.folders[registered.add_forest(seed=3)]

    def folder(name: str) -> Path:
        return Path(shutil.copytree(good, home / name))

    def with_pickle(name: str, content: Any) -> Path:
        made = folder(name)
        (made / "model.pkl").write_bytes(pickle.dumps(content))
        model = yaml.safe_load((made / "MLmodel").read_text())
        model["flavors"]["sklearn"].update(pickled_model="model.pkl", serialization_format="pickle")
        (made / "MLmodel").write_text(yaml.safe_dump(model))
        return made

    truncated = folder("truncated")
    version = registered.add(truncated)
    model_file = next(truncated.glob("model.*"))
    model_file.write_bytes(model_file.read_bytes()[:1000])
    X, y = load_iris(return_X_y=True, as_frame=True)
    narrow = X.iloc[:, :3]
    return {
        "digest_mismatch": version,
        "digest_mismatch ": registered.add(folder("other-digest"), digest="sha256:" + "0" * 64),
        "load_failed": registered.add(with_pickle("raises", Raises())),
        "prepare_timeout": registered.add(with_pickle("hangs", Hangs())),
        "signature_changed": registered.add_model(LogisticRegression(max_iter=500).fit(narrow, y), narrow),
    }

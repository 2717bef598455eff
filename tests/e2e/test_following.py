"""The alias moves, and every worker follows, without one failed request."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from harness import Running, wait_for
from load import Load
from registered import Registered

FLIPS = 50
CHECKS = 20


def test_flips_under_load_lose_no_request_and_reach_every_worker(service: Running, registered: Registered) -> None:
    service.start()
    registered.point("2")
    assert service.reload().json["model"]["version"] == "2"
    load = Load(service.port, connections=16)
    stale = []
    for flip in range(FLIPS):
        version = str(flip % 2 + 1)
        registered.point(version)
        answer = service.reload()
        assert answer.status == 200
        assert answer.json["model"] == {"name": "iris", "version": version, "alias": "champion"}
        assert answer.json["workers"] == {"acknowledged": 4, "total": 4}
        answers = [service.predict() for _ in range(CHECKS)]
        stale += [got.text for got in answers if got.json["model"]["version"] != version]
    records = load.stop()
    assert stale == []
    assert Counter(record.status for record in records) == {200: len(records)}
    assert {record.version for record in records} == {"1", "2"}


def test_every_worker_follows_by_itself(service: Running, registered: Registered) -> None:
    service.start()
    registered.point("2")
    moved = time.monotonic()
    wait_for(lambda: _all_serve(service, "2"), 30, "version 2 is not served everywhere")
    print(f"followed after {time.monotonic() - moved:.2f} s")
    registered.point("1")
    moved = time.monotonic()
    wait_for(lambda: _all_serve(service, "1"), 30, "version 1 is not served everywhere")
    assert time.monotonic() - moved < 2 + 2  # POLL_INTERVAL_S + 2 s, for a version that was prepared before


def _all_serve(service: Running, version: str) -> bool:
    info = service.call("/model/info").json
    return bool(info["version"] == version and info["workers"] == {"acknowledged": 4, "total": 4})


def test_a_scikit_learn_version_follows_a_graph(service: Running, registered: Registered) -> None:
    service.settings["WEB_CONCURRENCY"] = "2"
    service.start()
    before = service.predict().json
    version = registered.add_forest(seed=1)  # the forest that the graph of version 1 was made of
    registered.point(version)
    assert service.reload().json["workers"] == {"acknowledged": 2, "total": 2}
    after = service.predict().json
    assert (after["model"]["version"], service.call("/model/info").json["runtime"]) == (version, "compiled")
    assert after["prediction"]["class_name"] == before["prediction"]["class_name"] == "setosa"


def test_bad_versions_are_refused_with_their_reason(
    service: Running, registered: Registered, bad_versions: dict[str, str]
) -> None:
    service.settings |= {"WEB_CONCURRENCY": "2", "PREPARE_TIMEOUT_S": "20", "POLL_INTERVAL_S": "60"}
    service.start()
    for reason, version in bad_versions.items():
        registered.point(version)
        answer = service.reload()
        assert (answer.status, answer.json["error"]["reason"]) == (409, reason.strip()), answer.text
        assert f"version {version}" in answer.json["error"]["message"]
        assert "Traceback" not in answer.text
        info = service.call("/model/info").json
        assert info["version"] == "1"
        assert (info["refused"]["version"], info["refused"]["reason"]) == (version, reason.strip())
        assert service.predict().status == 200
    assert list((service.folder / "state/models/iris/bundles").glob(".prepare-*")) == []
    registered.point("1")
    assert service.reload().json["changed"] is False
    assert service.call("/model/info").json["refused"] is None


def test_a_declared_break_goes_live_and_back(service: Running, registered: Registered) -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    X, y = load_iris(return_X_y=True, as_frame=True)
    narrow = X.iloc[:, :3]
    version = registered.add_model(
        LogisticRegression(max_iter=500).fit(narrow, y), narrow, tags={"breaking_change": "true"}
    )
    service.settings["WEB_CONCURRENCY"] = "1"
    service.start()
    registered.point(version)
    assert service.reload().status == 200
    assert service.call("/predict", {"features": [5.1, 3.5, 1.4]}).status == 200
    registered.point("1")
    assert service.reload().status == 200
    assert service.predict().status == 200


def test_two_services_do_not_disturb_each_other(service: Running, registered: Registered, tmp_path: Path) -> None:
    service.settings["WEB_CONCURRENCY"] = "1"
    other = Running(tmp_path / "other", registered.uri, {"WEB_CONCURRENCY": "2", "MODELS": "iris/2"})
    try:
        service.start()
        other.start()
        assert service.predict().headers["X-Model-Version"] == "1"
        assert other.predict().headers["X-Model-Version"] == "2"
        assert service.reload().json["workers"] == {"acknowledged": 1, "total": 1}
        assert other.reload().json["workers"] == {"acknowledged": 2, "total": 2}
        other.stop()
        assert service.predict().status == 200
    finally:
        other.kill()

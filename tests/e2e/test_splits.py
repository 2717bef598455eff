"""A challenger takes a share of the callers, each of whom keeps its version; or sees copies that change no answer."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import Running, wait_for
from load import IRIS_ROW, Load, percentile
from registered import Registered

HUGE_ROW = '{"features":[101.0,3.5,1.4,0.2]}'  # at which a version of `add_misbehaving` misbehaves
REQUESTS = 10_000
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.0, 2.9, 4.5, 1.5], [6.3, 3.3, 6.0, 2.5]]


@pytest.fixture
def rivals(registered: Registered, service: Running) -> Any:
    """The service with version 1 live, and nobody who challenges it."""
    registered.point("1")
    yield service
    registered.no_challenger()


def split(service: Running, part: str) -> bool:
    """Whether every worker gives the challenger this part."""
    notes = [json.loads(path.read_text()) for path in (service.folder / "state" / "workers").glob("*.json")]
    desired = service.call("/models/iris").json["challenger"] or {}
    share = float(part.rstrip("%")) / 100
    return desired.get("part") == part and all(
        note["challengers"].get("iris", {}).get("share") == share for note in notes
    )


def versions(service: Running, keys: list[str]) -> list[str]:
    """Which version answers each caller."""

    def ask(some: list[str]) -> list[str]:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        got = []
        for key in some:
            headers = {"Content-Type": "application/json", "X-Routing-Key": key}
            connection.request("POST", "/predict", IRIS_ROW, headers)
            answer = connection.getresponse()
            body = json.loads(answer.read())
            assert answer.status == 200, body
            assert body["model"]["version"] == answer.headers["X-Model-Version"]
            got.append(body["model"]["version"])
        connection.close()
        return got

    parts = [keys[start::8] for start in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, parts))
    by_key = {
        key: version for part, got in zip(parts, answers, strict=True) for key, version in zip(part, got, strict=True)
    }
    return [by_key[key] for key in keys]


def test_a_share_of_callers_each_of_whom_keeps_its_version(rivals: Running, registered: Registered) -> None:
    service = rivals
    registered.point("2", "challenger", route="10%")
    service.start()
    wait_for(lambda: split(service, "10%"), 30, "nobody challenges")
    keys = [f"caller-{number}" for number in range(REQUESTS)]
    first = versions(service, keys)
    challenged = Counter(first)["2"]
    assert abs(challenged - 1000) <= 3 * (REQUESTS * 0.1 * 0.9) ** 0.5, challenged  # three standard deviations
    registered.point("2", "challenger", route="30%")
    wait_for(lambda: split(service, "30%"), 30, "the share does not grow")
    second = versions(service, keys)
    assert abs(Counter(second)["2"] - 3000) <= 3 * (REQUESTS * 0.3 * 0.7) ** 0.5
    assert all(after == "2" for before, after in zip(first, second, strict=True) if before == "2")
    assert service.reload().status == 200
    assert versions(service, keys) == second
    print(f"10 %: {challenged} of {REQUESTS}; 30 %: {Counter(second)['2']}")


def test_who_names_a_version_gets_it(rivals: Running, registered: Registered) -> None:
    service = rivals
    service.settings["WEB_CONCURRENCY"] = "1"
    registered.point("2", "challenger", route="50%")
    service.start()
    wait_for(lambda: split(service, "50%"), 30, "nobody challenges")
    for version in ("1", "2"):
        for _ in range(5):
            answer = service.call(f"/models/iris/versions/{version}/predict", {"features": ROWS[0]})
            assert answer.json["model"]["version"] == version
    registered.no_challenger()
    wait_for(
        lambda: service.call("/models/iris/versions/2/predict", {"features": ROWS[0]}).status == 404, 30, "it stays"
    )


def compared(service: Running) -> dict[str, Any]:
    answer = service.call("/models/iris/compare")
    return answer.json if answer.status == 200 else {}


def test_a_shadow_sees_what_is_asked_and_answers_nobody(rivals: Running, registered: Registered) -> None:
    service = rivals
    service.settings["WEB_CONCURRENCY"] = "2"
    registered.point("2", "challenger", route="shadow")
    service.start()
    wait_for(lambda: compared(service), 30, "nobody challenges")
    got = [service.call("/predict", {"features": ROWS}) for _ in range(20)]
    assert {answer.headers["X-Model-Version"] for answer in got} == {"1"}
    wait_for(lambda: (compared(service)["agreement"] or {}).get("rows") == 60, 180, "the shadow has not seen all")
    agreement = compared(service)["agreement"]
    assert agreement["failed_rows"] == agreement["dropped_rows"] == 0
    assert agreement["agreed_ratio"] == 1.0
    assert 0.0 <= agreement["mean_difference"] < 0.3
    labels = [
        {"prediction_id": answer.json["prediction_id"], "label": name, "row": row}
        for answer in got
        for row, name in enumerate(("setosa", "versicolor", "virginica"))
    ]
    assert service.call("/feedback", labels).status in (200, 202)
    wait_for(
        lambda: compared(service)["challenger"]["quality"]["labelled_rows"] == 60, 180, "labels do not count for it"
    )
    assert compared(service)["champion"]["quality"]["labelled_rows"] == 60
    assert compared(service)["gain"]["paired"]


@pytest.mark.parametrize("how", ["raises", "hangs", "is slow"])
def test_a_shadow_that_misbehaves_changes_no_answer(
    how: str, rivals: Running, registered: Registered, tmp_path: Path
) -> None:
    service = rivals
    service.settings["WEB_CONCURRENCY"] = "1"
    version = registered.add_misbehaving(how)
    service.start()
    quiet = latencies(service, 3.0)
    registered.point(version, "challenger", route="shadow")
    wait_for(lambda: compared(service), 60, "nobody challenges")
    beside = latencies(service, 3.0)
    counts = compared(service)["agreement"]
    assert counts["rows"] + counts["failed_rows"] + counts["dropped_rows"] > 0
    print(how, {share: (percentile(quiet, share), percentile(beside, share)) for share in (0.5, 0.95, 0.99)}, counts)


def latencies(service: Running, seconds: float) -> list[float]:
    """Of requests that are all answered well, by version 1."""
    load = Load(service.port, connections=4, pause_s=0.002, body=HUGE_ROW)
    time.sleep(seconds)
    records = load.stop()
    assert {(record.status, record.version) for record in records} == {(200, "1")}
    return [record.latency_s for record in records]

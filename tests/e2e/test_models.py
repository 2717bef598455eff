"""Several models in one service: each by itself, and more of them while it runs."""

from __future__ import annotations

from harness import Running, wait_for
from registered import Registered

ROW = {"features": [5.1, 3.5, 1.4, 0.2]}
LOAD = "/v2/repository/models/{}/load"


def test_a_model_comes_and_goes_while_the_service_runs(service: Running, registered: Registered) -> None:
    registered.add_as("flowers", "2")
    service.settings["WEB_CONCURRENCY"] = "2"
    service.start()
    assert service.call("/models/flowers/predict", ROW).status == 404
    assert service.call(LOAD.format("flowers"), b"", method="POST").status == 200
    for _ in range(20):  # both workers
        assert service.call("/models/flowers/predict", ROW).json["model"]["name"] == "flowers"
        assert service.predict().json["model"]["name"] == "iris"
    known = {line["name"]: line for line in service.call("/models").json["models"]}
    assert known.keys() == {"iris", "flowers"}
    assert known["flowers"]["workers"] == {"acknowledged": 2, "total": 2}
    assert known["flowers"]["costs"]["disk_bytes"] > 0
    assert 'ml_model_loaded{model="flowers"} 1.0' in service.call("/metrics").text
    assert service.call("/v2/repository/models/flowers/unload", b"", method="POST").status == 200
    assert service.call("/models/flowers/predict", ROW).status == 503
    assert service.predict().status == 200
    service.stop()
    service.start()
    assert service.call("/models/flowers/predict", ROW).status == 404  # what it serves for good, its settings say


def test_what_nobody_registered_is_not_added(service: Running) -> None:
    service.settings["WEB_CONCURRENCY"] = "2"
    service.start()
    for name in ("nothing", "a%2Fb", "..", "%00", "x" * 200, "iris@other"):
        assert service.call(LOAD.format(name), b"", method="POST").status == 404, name
    assert [line["name"] for line in service.call("/models").json["models"]] == ["iris"]
    assert '"nothing"' not in service.call("/metrics").text


def test_one_that_cannot_load_leaves_the_others_alone(service: Running, registered: Registered) -> None:
    service.settings.update(MODELS="iris,missing", READY_WHEN="any", WEB_CONCURRENCY="1")
    service.start()
    assert service.call("/readyz").status == 200
    assert service.predict().status == 200
    assert service.call("/models/missing/predict", ROW).status == 503
    lines = {line["name"]: line["ready"] for line in service.call("/models").json["models"]}
    assert lines == {"iris": True, "missing": False}
    service.stop()
    service.settings["READY_WHEN"] = "all"
    service.start(ready=False)
    wait_for(lambda: service.predict().status == 200, 60, "iris is not served")
    assert service.call("/readyz").status == 503

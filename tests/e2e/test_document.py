"""``/openapi.json`` follows what is live, in every worker."""

from __future__ import annotations

import time

from harness import Running
from registered import Registered
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

ASKED = 40  # more often than there are workers


def test_a_reload_that_changes_the_signature_changes_the_document(service: Running, registered: Registered) -> None:
    service.settings["WEB_CONCURRENCY"] = "2"
    service.start()
    before = documents(service)
    assert len(before) == 1
    rows, species = load_iris(return_X_y=True, as_frame=True)
    narrow = rows.iloc[:, :3]
    model = LogisticRegression(max_iter=500).fit(narrow, species)
    registered.point(registered.add_model(model, narrow, tags={"breaking_change": "true"}))
    assert service.reload().status == 200
    time.sleep(0.1)
    after = documents(service)
    assert len(after) == 1
    assert before.keys().isdisjoint(after)
    assert "petal width (cm)" in next(iter(before.values()))
    assert "petal width (cm)" not in next(iter(after.values()))


def documents(service: Running) -> dict[str, str]:
    """All that the workers answer, by their tags."""
    answers = [service.call("/openapi.json") for _ in range(ASKED)]
    return {answer.headers["ETag"]: answer.text for answer in answers}

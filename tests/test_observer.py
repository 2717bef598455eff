"""The observer: everything that was answered is looked at, and nothing that goes wrong there reaches a caller."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving.bundle import Bundle, Proof
from serving.drift import Bins, Counter, Profile, smoothed
from serving.ledger import Spool
from serving.live import Live
from serving.metrics import Metrics
from serving.observer import Observer, Recorder, Seen
from serving.tensors import Batch, Classes, Field, Prediction, Signature
from serving.transforms.tabular import Reader

CLASSES = Classes((0, 1), ("no", "yes"))
SIGNATURE = Signature("columns", (Field("width", "double"), Field("town", "string")))
WIDTH = Bins("width", "numeric", ("<= 1", "> 1"), tuple(smoothed([1, 1])), edges=(1.0,), threshold=0.2)
ID = "019aa6f0-5b5e-7c1e-9d3c-0f4f6f2f9a{:02x}"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def serving(metrics: Metrics, version: str = "1", *, watched: bool = True) -> Live:
    """A live version with a profile and without a model."""
    bundle = Bundle(
        *(Path(), "houses", version, "registry", None, "sha256:1", True, "compiled", SIGNATURE, CLASSES),
        *(None, Proof(0, None, None), {}),
    )
    profile = Profile(2, (WIDTH,), (), {}, {})
    counter = Counter(profile, CLASSES, metrics.drift("houses", version)) if watched else None
    return Live(bundle, lambda _: None, "champion", "registry", 1, "now", Reader(SIGNATURE), drift=counter)  # type: ignore[arg-type, return-value]


def seen(live: Live, widths: list[Any], *, number: int = 0) -> Seen:
    towns = np.array(["Ulm"] * len(widths), dtype=object)
    batch = Batch(SIGNATURE.names, (np.array(widths), towns))
    chances = np.tile([0.25, 0.75], (len(widths), 1))
    return Seen(live, batch, Prediction(np.ones(len(widths), int), chances), ID.format(number), "me", 1.5)


@pytest.fixture
def observers() -> Iterator[list[Observer]]:
    made: list[Observer] = []
    yield made
    for observer in made:
        observer.close()


def counted(registry: CollectorRegistry, label: str) -> float | None:
    labels = {"model": "houses", "version": "1", "feature": "width", "bin": label}
    return registry.get_sample_value("ml_feature_bin_rows_total", labels)


def test_all_is_looked_at_before_the_end(metrics: Metrics, registry: CollectorRegistry) -> None:
    live = serving(metrics)
    observer = Observer(metrics)
    for number in range(50):
        observer.observe(seen(live, [0.5, 2.0, 3.0], number=number))
    observer.close()
    assert (counted(registry, "<= 1"), counted(registry, "> 1")) == (50, 100)


def test_it_is_looked_at_soon(metrics: Metrics, registry: CollectorRegistry, observers: list[Observer]) -> None:
    observers.append(Observer(metrics))
    live = serving(metrics)
    for turn in (1, 2):
        observers[0].observe(seen(live, [0.5]))
        deadline = time.monotonic() + 5
        while counted(registry, "<= 1") != turn and time.monotonic() < deadline:
            time.sleep(0.01)
        assert counted(registry, "<= 1") == turn


def test_columns_of_different_types_are_counted_apart(metrics: Metrics, registry: CollectorRegistry) -> None:
    live = serving(metrics)
    observer = Observer(metrics)
    for widths in ([0.5, 2.0], [1, 2], [None, 2.0]):
        observer.observe(seen(live, widths))
    observer.close()
    assert (counted(registry, "<= 1"), counted(registry, "> 1")) == (2, 3)


def test_what_fails_is_said_once_and_stops_nothing(
    metrics: Metrics, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    live, other = serving(metrics), serving(metrics, "2", watched=False)

    class Broken(Observer):
        PAUSE_S = 0.01

    def record(of: Live, together: list[Seen]) -> None:
        raise RuntimeError("no room")

    observer = Broken(metrics, record)
    with caplog.at_level(logging.ERROR, "serving.observer"):
        for _ in range(3):
            observer.observe(seen(live, [0.5]))
            observer.observe(seen(other, [0.5]))
            time.sleep(0.05)
        observer.close()
    assert counted(registry, "<= 1") == 3
    assert sorted(record.getMessage() for record in caplog.records) == [
        "houses: ledger of version 1 fails",
        "houses: ledger of version 2 fails",
    ]


def test_what_comes_too_fast_is_skipped_and_counted(metrics: Metrics, registry: CollectorRegistry) -> None:
    class Small(Observer):
        WAITING_ROWS = 5

    observer = Small(metrics)
    live = serving(metrics)
    for _ in range(4):
        observer.observe(seen(live, [0.5, 0.5]))
    observer.close()
    assert counted(registry, "<= 1") == 4
    assert registry.get_sample_value("ml_unobserved_rows_total", {"model": "houses"}) == 4


def test_of_a_picture_nothing_is_kept_but_its_answer(metrics: Metrics) -> None:
    kept: list[Seen] = []
    observer = Observer(metrics, lambda _live, together: kept.extend(together))
    picture = Batch(("input",), (np.zeros((2, 3, 224, 224), np.float32),))
    live = serving(metrics, watched=False)
    observer.observe(Seen(live, picture, Prediction(np.array([0, 1])), ID.format(0), "me", 1.5))
    observer.close()
    assert (kept[0].batch.names, kept[0].batch.rows, kept[0].batch.bytes) == ((), 2, 0)


def test_many_threads_lose_nothing(metrics: Metrics, registry: CollectorRegistry) -> None:
    live = serving(metrics)
    observer = Observer(metrics)

    def work() -> None:
        for _ in range(200):
            observer.observe(seen(live, [0.5]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    observer.close()
    assert counted(registry, "<= 1") == 1600


# --- the ledger's pages ----------------------------------------------------------------------------------------------


def recorded(tmp_path: Path, metrics: Metrics, *given: Seen, **options: Any) -> list[dict[str, Any]]:
    """The lines that a recorder leaves on disk."""
    spool = Spool(tmp_path / "spool", options.pop("limit_bytes", 1_000_000))
    record = Recorder(spool, metrics.ledger, **{"sample": 1.0, "omit": (), **options})
    observer = Observer(metrics, record)
    for one in given:
        observer.observe(one)
    observer.close()
    return [json.loads(line) for path in spool.pages() for line in path.read_bytes().splitlines()]


def test_predictions_are_written_with_what_they_were_made_of(tmp_path: Path, metrics: Metrics) -> None:
    live = serving(metrics)
    (line,) = recorded(tmp_path, metrics, seen(live, [0.5]), seen(live, [2.5], number=1))
    assert (line["model"], line["version"], line["digest"]) == ("houses", "1", "sha256:1")
    assert (line["ids"], line["requests"], line["at"]) == ([ID.format(0), ID.format(1)], ["me", "me"], [1.5, 1.5])
    assert dict(zip(line["features"], line["columns"], strict=True)) == {"width": [0.5, 2.5], "town": ["Ulm", "Ulm"]}
    assert line["probabilities"] == [[0.25, 0.75]] * 2


def test_columns_that_must_not_be_kept_are_not_on_disk(tmp_path: Path, metrics: Metrics) -> None:
    (line,) = recorded(tmp_path, metrics, seen(serving(metrics), [0.5]), omit=("town", "unknown"))
    assert line["features"] == ["width"]
    assert not any(b"Ulm" in path.read_bytes() for path in (tmp_path / "spool").iterdir())


def test_the_same_share_is_kept_whoever_asks(tmp_path: Path, metrics: Metrics) -> None:
    live = serving(metrics)
    given = [
        Seen(*seen(live, [0.5])[:3], f"019aa6f0-5b5e-7c1e-9d3c-{k * 2654435761 % 2**48:012x}", "me", 1.5)
        for k in range(400)
    ]
    turns = [recorded(tmp_path / str(turn), metrics, *given, sample=0.25) for turn in (1, 2)]
    kept = [sorted(one for line in lines for one in line["ids"]) for lines in turns]
    assert kept[0] == kept[1]
    assert 60 <= len(kept[0]) <= 140


def test_a_full_spool_is_counted(tmp_path: Path, metrics: Metrics, registry: CollectorRegistry) -> None:
    assert recorded(tmp_path, metrics, seen(serving(metrics), [0.5, 2.0]), limit_bytes=10) == []
    assert registry.get_sample_value("ml_ledger_lost_rows_total", {"reason": "spool_full"}) == 2


def test_a_disk_that_takes_nothing_is_counted_and_said_once(
    tmp_path: Path, metrics: Metrics, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool", 1_000_000)
    record = Recorder(spool, metrics.ledger, sample=1.0, omit=())
    live = serving(metrics)
    spool.folder.rmdir()
    spool.folder.write_text("no folder any more")
    for _ in range(3):
        record(live, [seen(live, [0.5])])
    assert registry.get_sample_value("ml_ledger_lost_rows_total", {"reason": "unwritable"}) == 3
    assert len(caplog.records) == 1

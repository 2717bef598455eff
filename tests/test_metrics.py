"""Every metric by name, help and labels."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest

from serving.metrics import SECONDS, HttpMetrics, Metrics, Named, Series

NAME = re.compile(r"ml_[a-z]+(_[a-z]+)*")
UNITS = ("_total", "_seconds", "_rows", "_info")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def families(registry: CollectorRegistry) -> list[Metric]:
    return list(registry.collect())


def full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def test_every_name_has_the_prefix_and_a_unit(metrics: Metrics, registry: CollectorRegistry) -> None:
    names = [full_name(family) for family in families(registry)]
    assert names
    assert [name for name in names if not (NAME.fullmatch(name) and name.endswith(UNITS))] == []


def test_no_name_is_there_twice(metrics: Metrics, registry: CollectorRegistry) -> None:
    names = [full_name(family) for family in families(registry)]
    assert len(names) == len(set(names)) == len(vars(metrics))


def test_one_registry_takes_the_metrics_once(metrics: Metrics, registry: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(registry)


def test_every_metric_has_a_help(metrics: Metrics, registry: CollectorRegistry) -> None:
    assert [family.name for family in families(registry) if not family.documentation.endswith(".")] == []


def test_there_is_no_series_before_a_model_is_named(metrics: Metrics, registry: CollectorRegistry) -> None:
    assert [family.name for family in families(registry) if family.samples] == []


@pytest.mark.parametrize(
    "name",
    [
        "ml_inference_duration_seconds_count",
        "ml_model_load_duration_seconds_count",
        "ml_invalid_requests_total",
        "ml_model_load_failures_total",
    ],
)
def test_a_series_of_a_model_starts_at_zero(name: str, metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.start_at_zero("iris")
    assert registry.get_sample_value(name, {"model": "iris"}) == 0


@pytest.mark.parametrize("outcome", ["changed", "unchanged", "refused", "unreachable", "failed"])
def test_every_outcome_of_a_reload_starts_at_zero(outcome: str, metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.start_at_zero("iris")
    assert registry.get_sample_value("ml_model_reloads_total", {"model": "iris", "outcome": outcome}) == 0


def test_to_start_again_keeps_what_was_counted(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.start_at_zero("iris")
    metrics.invalid.labels("iris").inc()
    metrics.start_at_zero("iris")
    assert registry.get_sample_value("ml_invalid_requests_total", {"model": "iris"}) == 1


def test_the_edges_rise() -> None:
    assert list(SECONDS) == sorted(set(SECONDS))


def test_a_time_falls_in_its_bucket(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.inference_s.labels("iris").observe(0.003)
    below, above = (
        registry.get_sample_value("ml_inference_duration_seconds_bucket", {"model": "iris", "le": edge})
        for edge in ("0.0025", "0.005")
    )
    assert (below, above) == (0, 1)


def test_two_registries_count_apart(metrics: Metrics, registry: CollectorRegistry) -> None:
    other = CollectorRegistry()
    Metrics(other).predictions.labels("iris", "1", "ok").inc()
    assert b'model="iris"' in generate_latest(other)
    assert b'model="iris"' not in generate_latest(registry)


def test_a_series_is_looked_up_once(metrics: Metrics) -> None:
    series = Series(metrics.predictions)
    assert series["iris", "1", "ok"] is series["iris", "1", "ok"] is metrics.predictions.labels("iris", "1", "ok")


def test_what_somebody_else_registered_is_found_by_name() -> None:
    registry = Named()
    seconds = Histogram("ml_http_request_duration_seconds", "Time.", ("method", "route", "status"), registry=registry)
    total = Counter("ml_http_request_total", "Requests.", ("method", "status"), registry=registry)
    HttpMetrics(registry).count("POST", "/predict", 200, 0.25)
    assert registry.get_sample_value(f"{total._name}_total", {"method": "POST", "status": "200"}) == 1
    labels = {"method": "POST", "route": "/predict", "status": "200"}
    assert registry.get_sample_value(f"{seconds._name}_sum", labels) == 0.25

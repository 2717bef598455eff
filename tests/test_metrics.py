"""Every metric by name, help and labels."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest

from serving.metrics import (
    LABELLED,
    LOAD_FAILURES,
    LOST,
    OUTCOMES,
    REFUSALS,
    SECONDS,
    HttpMetrics,
    Metrics,
    Named,
    Series,
)
from serving.settings import ROOT

NAME = re.compile(r"ml_[a-z]+(_[a-z]+)*")
UNITS = ("_total", "_seconds", "_rows", "_requests")


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
    assert len(names) == len(set(names))


def test_one_registry_takes_the_metrics_once(metrics: Metrics, registry: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(registry)


def test_every_metric_has_a_help(metrics: Metrics, registry: CollectorRegistry) -> None:
    assert [family.name for family in families(registry) if not family.documentation.endswith(".")] == []


def test_there_is_no_series_before_a_model_is_named(metrics: Metrics, registry: CollectorRegistry) -> None:
    of_all = {"ml_in_flight_requests", "ml_ledger_queue_rows", "ml_ledger_written_rows"}
    assert {family.name for family in families(registry) if family.samples} == of_all


@pytest.mark.parametrize(
    "name",
    [
        "ml_model_load_duration_seconds_count",
        "ml_queue_duration_seconds_count",
        "ml_batch_rows_count",
        "ml_dropped_rows_total",
        "ml_unobserved_rows_total",
        "ml_waiting_rows",
        "ml_feedback_delay_seconds_count",
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
    metrics.dropped_rows.labels("iris").inc()
    metrics.start_at_zero("iris")
    assert registry.get_sample_value("ml_dropped_rows_total", {"model": "iris"}) == 1


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("ml_model_load_failures_total", "reason", LOAD_FAILURES),
        ("ml_feedback_labels_total", "outcome", LABELLED),
    ],
)
def test_every_known_reason_starts_at_zero(
    name: str, label: str, values: tuple[str, ...], metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.start_at_zero("iris")
    assert [registry.get_sample_value(name, {"model": "iris", label: value}) for value in values] == [0] * len(values)


@pytest.mark.parametrize("reason", LOST)
def test_every_way_to_lose_a_row_starts_at_zero(reason: str, metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.start_at_zero("iris")
    assert registry.get_sample_value("ml_ledger_lost_rows_total", {"reason": reason}) == 0


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_version_starts_at_zero(outcome: str, metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.start_version_at_zero("iris", "7")
    labels = {"model": "iris", "version": "7", "outcome": outcome}
    assert registry.get_sample_value("ml_predictions_total", labels) == 0


def test_every_refusal_has_a_series() -> None:
    """The words of `VersionRefused` all over the code, in one list."""
    said = set()
    for path in (ROOT / "serving").rglob("*.py"):
        said |= set(re.findall(r'reason="(\w+)"', path.read_text(encoding="utf-8")))
    assert said == set(REFUSALS)


@pytest.mark.parametrize(
    ("column", "label"),
    [("width", "width"), ("length", "length"), ("c99", "other"), ("'; drop table", "other"), (None, "")],
)
def test_what_a_caller_writes_never_becomes_a_label(
    column: str | None, label: str, metrics: Metrics, registry: CollectorRegistry
) -> None:
    known = ("width", "length", *(f"c{k}" for k in range(100)))
    metrics.count_invalid("iris", column, known)
    assert registry.get_sample_value("ml_invalid_requests_total", {"model": "iris", "column": label}) == 1


def test_only_what_is_turned_away_counts_as_rejected(metrics: Metrics, registry: CollectorRegistry) -> None:
    for code in ("queue_full", "invalid_input", "model_failed"):
        metrics.count_rejected(code)
    assert registry.get_sample_value("ml_rejected_requests_total", {"reason": "queue_full"}) == 1
    assert registry.get_sample_value("ml_rejected_requests_total", {"reason": "invalid_input"}) is None


def test_the_objective_is_an_edge() -> None:
    assert 0.1 in SECONDS


def test_the_edges_rise() -> None:
    assert list(SECONDS) == sorted(set(SECONDS))


def test_a_time_falls_in_its_bucket(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.inference_s.labels("iris", "1").observe(0.003)
    below, above = (
        registry.get_sample_value("ml_inference_duration_seconds_bucket", {"model": "iris", "version": "1", "le": edge})
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


def test_requests_that_will_come_start_at_zero() -> None:
    registry = Named()
    Histogram("ml_http_request_duration_seconds", "Time.", ("method", "route", "status"), registry=registry)
    Counter("ml_http_request_total", "Requests.", ("method", "status"), registry=registry)
    HttpMetrics(registry).start_at_zero("POST", ["/predict"], [200, 503])
    labels = {"method": "POST", "route": "/predict", "status": "503"}
    assert registry.get_sample_value("ml_http_request_duration_seconds_count", labels) == 0
    assert registry.get_sample_value("ml_http_request_total", {"method": "POST", "status": "200"}) == 0


def test_in_flight_is_written_when_there_is_time(metrics: Metrics, registry: CollectorRegistry) -> None:
    def written() -> float | None:
        metrics.in_flight.write()
        return registry.get_sample_value("ml_in_flight_requests")

    metrics.in_flight.begin()
    metrics.in_flight.begin()
    assert registry.get_sample_value("ml_in_flight_requests") == 0
    assert written() == 2
    metrics.in_flight.end()
    assert written() == 1


def test_what_somebody_else_registered_is_found_by_name() -> None:
    registry = Named()
    seconds = Histogram("ml_http_request_duration_seconds", "Time.", ("method", "route", "status"), registry=registry)
    total = Counter("ml_http_request_total", "Requests.", ("method", "status"), registry=registry)
    HttpMetrics(registry).count("POST", "/predict", 200, 0.25)
    assert registry.get_sample_value(f"{total._name}_total", {"method": "POST", "status": "200"}) == 1
    labels = {"method": "POST", "route": "/predict", "status": "200"}
    assert registry.get_sample_value(f"{seconds._name}_sum", labels) == 0.25

"""Every metric by name, help and labels. Label values are bounded; what a caller writes never becomes one.

A series is looked up by its labels in 2 µs, which is a tenth of what a small model takes: `Series` remembers them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

# Edges around what compiled (below 1 ms), native (5 to 10 ms) and deep (100 ms) models take.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Series(dict[Any, Any]):
    """The series of one metric by their label values, each looked up once: ``series["iris", "ok"]``."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[Any, ...]) -> Any:
        return self.setdefault(labels, self._metric.labels(*labels))


class Named(CollectorRegistry):
    """A registry that gives back what somebody else registered."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, Any] = {}

    def register(self, collector: Collector) -> None:
        super().register(collector)
        for family in getattr(collector, "describe", list)():
            self.by_name[family.name] = collector


class HttpMetrics:
    """What prometheus-flask-exporter counts of a request, for those that Flask does not see."""

    def __init__(self, registry: Named) -> None:
        """``registry`` holds the exporter's metrics."""
        self._duration_s = Series(registry.by_name["ml_http_request_duration_seconds"])
        self._total = Series(registry.by_name["ml_http_request"])

    def count(self, method: str, route: str, status: int, duration_s: float) -> None:
        """One request that was answered."""
        self._duration_s[method, route, status].observe(duration_s)
        self._total[method, status].inc()


class Metrics:
    """The service's own metrics in one registry; HTTP by route comes from prometheus-flask-exporter beside them."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        counter = partial(Counter, registry=registry)
        seconds = partial(Histogram, buckets=SECONDS, registry=registry)
        gauge = partial(Gauge, multiprocess_mode="livemax", registry=registry)

        self.predictions = counter("ml_predictions_total", "Rows predicted.", ("model", "version", "outcome"))
        self.inference_s = seconds("ml_inference_duration_seconds", "Time in the model for one batch.", ("model",))
        self.invalid = counter(
            "ml_invalid_requests_total", "Requests refused because their input did not fit.", ("model",)
        )
        rows = partial(Histogram, buckets=ROWS, registry=registry)
        self.batch_rows = rows("ml_batch_rows", "Rows answered together by one call of the model.", ("model",))
        self.dropped_rows = counter(
            "ml_dropped_rows_total", "Rows not run because their caller had gone or had no time left.", ("model",)
        )
        self.waiting_rows = gauge("ml_waiting_rows", "Rows that waited when the last batch was taken.", ("model",))
        self.model_info = gauge(
            "ml_model_info", "1 for the version that a worker serves.", ("model", "version", "source")
        )
        self.loaded_timestamp_s = gauge(
            "ml_model_loaded_timestamp_seconds", "When the live version was loaded, in seconds since 1970.", ("model",)
        )
        self.load_s = seconds(
            "ml_model_load_duration_seconds", "Time for a worker to load a bundle and warm it.", ("model",)
        )
        self.load_failures = counter(
            "ml_model_load_failures_total", "Bundles that a worker could not load.", ("model",)
        )
        self.reloads = counter(
            "ml_model_reloads_total", "Reloads asked for over HTTP, by what came of them.", ("model", "outcome")
        )

        self.log_lines_dropped = counter(
            "ml_log_lines_dropped_total", "Lines of requests that were not logged: nobody read the log.", ("log",)
        )

    def start_at_zero(self, model: str) -> None:
        """A series that does not exist cannot be seen to rise: make those whose labels are known."""
        self.inference_s.labels(model)
        self.load_s.labels(model)
        self.invalid.labels(model)
        self.load_failures.labels(model)
        for outcome in ("changed", "unchanged", "refused", "unreachable", "failed"):
            self.reloads.labels(model, outcome)

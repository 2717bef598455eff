"""Every metric by name, help and labels. Label values are bounded; what a caller writes never becomes one.

A series is looked up by its labels in 2 µs, which is a tenth of what a small model takes: `Series` remembers them.
Metrics that hold for the whole service, whichever process is asked, are in `serving.exposition`.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

# Edges around what compiled (below 1 ms), native (5 to 10 ms) and deep (100 ms) models take. One is at the objective
# for latency (0.1 s, see ml_rules.yml), so that the share of requests within it is known and not interpolated.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
DELAYS_S = (1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400)

OUTCOMES = ("ok", "invalid", "error")
REJECTED = ("queue_full", "deadline_exceeded", "model_not_ready", "body_too_large")
REFUSALS = (
    *("missing_files", "digest_mismatch", "bad_path", "unknown_flavor", "load_failed", "load_crashed"),
    *("prepare_timeout", "proof_failed", "signature_changed", "bad_route"),
)
LOAD_FAILURES = (*REFUSALS, "prepare_failed", "worker_load_failed")
SHADOWED = ("agreed", "disagreed", "failed", "dropped")
RELOADS = ("changed", "unchanged", "refused", "unreachable", "failed")
ROLLBACKS = ("error_ratio", "latency", "failed")
LABELLED = ("accepted", "corrected", "repeated", "stale", "unknown")
LOST = ("spool_full", "unwritable", "unreadable")

MAX_COLUMNS = 50  # that are told apart where input does not fit
OTHER_COLUMN, NO_COLUMN = "other", ""


class Series(dict[Any, Any]):
    """The series of one metric by their label values, each looked up once: ``series["iris", "ok"]``."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self._metric = metric

    def of(self, *labels: Any) -> Any:
        """The series of these label values, which is there from now on."""
        return self[labels]

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

    def start_at_zero(self, method: str, routes: Collection[str], statuses: Collection[int]) -> None:
        """Requests that will come: rules divide by their number, and see the first one only if there was none."""
        for status in statuses:
            self._total.of(method, status)
            for route in routes:
                self._duration_s.of(method, route, status)


class InFlight:
    """The requests that this process is answering.

    To set a gauge twice for each would take longer than to read its input: here a request only leaves a mark, and
    whoever has the time calls `write`.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._marks: list[None] = []  # appending and popping are atomic
        self._written = 0

    def begin(self) -> None:
        """A request is here."""
        self._marks.append(None)

    def end(self) -> None:
        """It is answered."""
        self._marks.pop()

    def write(self) -> None:
        """Set the gauge if it has changed."""
        if (now := len(self._marks)) != self._written:
            self._gauge.set(now)
            self._written = now


class Metrics:
    """The service's own metrics in one registry; HTTP by route comes from prometheus-flask-exporter beside them."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counter = partial(Counter, registry=registry)
        self._seconds = partial(Histogram, buckets=SECONDS, registry=registry)
        self._rows = partial(Histogram, buckets=ROWS, registry=registry)
        self._sum = partial(Gauge, multiprocess_mode="livesum", registry=registry)
        self._make_request_metrics()
        self._make_prediction_metrics()
        self._make_version_metrics()
        self._make_drift_metrics()
        self._make_shadow_metrics()
        self.ledger = LedgerMetrics(registry)

    def _make_request_metrics(self) -> None:
        self.in_flight = InFlight(self._sum("ml_in_flight_requests", "Requests that are being answered."))
        self.rejected = self._counter(
            "ml_rejected_requests_total", "Requests that were turned away, by the code of the answer.", ("reason",)
        )
        self.invalid = self._counter(
            "ml_invalid_requests_total",
            "Requests refused because their input did not fit, by the column that did not.",
            ("model", "column"),
        )
        self.log_lines_dropped = self._counter(
            "ml_log_lines_dropped_total", "Lines of requests that were not logged: nobody read the log.", ("log",)
        )

    def _make_prediction_metrics(self) -> None:
        self.predictions = self._counter("ml_predictions_total", "Rows predicted.", ("model", "version", "outcome"))
        self.inference_s = self._seconds(
            "ml_inference_duration_seconds", "Time in the model for one batch.", ("model", "version")
        )
        self.queue_s = self._seconds(
            "ml_queue_duration_seconds", "Time that a request waited to be answered with others.", ("model",)
        )
        self.batch_rows = self._rows("ml_batch_rows", "Rows answered together by one call of the model.", ("model",))
        self.dropped_rows = self._counter(
            "ml_dropped_rows_total", "Rows not run because their caller had gone or had no time left.", ("model",)
        )
        self.waiting_rows = self._sum("ml_waiting_rows", "Rows that wait to be answered with others.", ("model",))
        self.queue_limit_rows = self._sum("ml_queue_limit_rows", "Rows that may wait; beyond them 503.", ("model",))

    def _make_version_metrics(self) -> None:
        self.load_s = self._seconds(
            "ml_model_load_duration_seconds", "Time for a worker to load a bundle and warm it.", ("model",)
        )
        self.load_failures = self._counter(
            "ml_model_load_failures_total", "Versions refused, not prepared or not loaded.", ("model", "reason")
        )
        self.reloads = self._counter(
            "ml_model_reloads_total", "Reloads asked for over HTTP, by what came of them.", ("model", "outcome")
        )
        self.rollbacks = self._counter(
            "ml_rollbacks_total", "Versions that went back in their probation, or should have.", ("model", "reason")
        )

    def _make_drift_metrics(self) -> None:
        version = ("model", "version")
        self.feature_rows = self._counter(
            "ml_feature_bin_rows_total", "Rows whose value fell into a bin.", (*version, "feature", "bin")
        )
        self.missing_rows = self._counter(
            "ml_feature_missing_rows_total", "Rows without a value.", (*version, "feature")
        )
        self.output_rows = self._counter(
            "ml_prediction_bin_rows_total", "Rows whose answer fell into a bin.", (*version, "output", "bin")
        )
        self.unobserved_rows = self._counter(
            "ml_unobserved_rows_total", "Rows answered that drift and ledger had no room for.", ("model",)
        )

    def _make_shadow_metrics(self) -> None:
        version = ("model", "version")
        self.shadow_rows = self._counter(
            "ml_shadow_rows_total",
            "Rows that a challenger was shown behind the champion's answer.",
            (*version, "outcome"),
        )
        self.shadow_difference = self._counter(
            "ml_shadow_difference_total", "Sum over these rows of how far apart both answers are (0 to 1).", version
        )
        self.shadow_cpu_s = self._counter(
            "ml_shadow_cpu_seconds_total", "Processor time that the challenger took for them.", version
        )

    def start_at_zero(self, model: str) -> None:
        """A series that does not exist cannot be seen to rise: make those whose labels are known."""
        for metric in (self.queue_s, self.batch_rows, self.load_s, self.dropped_rows):
            metric.labels(model)
        self.unobserved_rows.labels(model)
        self.invalid.labels(model, NO_COLUMN)
        self.waiting_rows.labels(model)
        self.queue_limit_rows.labels(model)
        self.log_lines_dropped.labels("requests")
        for outcome in RELOADS:
            self.reloads.labels(model, outcome)
        for reason in LOAD_FAILURES:
            self.load_failures.labels(model, reason)
        for reason in ROLLBACKS:
            self.rollbacks.labels(model, reason)
        for reason in REJECTED:
            self.rejected.labels(reason)
        self.ledger.start_at_zero(model)

    def start_shadow_at_zero(self, model: str, version: str) -> None:
        """The same for one that is about to see copies."""
        for outcome in SHADOWED:
            self.shadow_rows.labels(model, version, outcome)
        self.shadow_difference.labels(model, version)
        self.shadow_cpu_s.labels(model, version)

    def start_version_at_zero(self, model: str, version: str) -> None:
        """The same for a version that goes live."""
        for outcome in OUTCOMES:
            self.predictions.labels(model, version, outcome)
        self.inference_s.labels(model, version)

    def drift(self, model: str, version: str) -> DriftSeries:
        """The series of one version's bins."""
        return DriftSeries(self, model, version)

    def count_invalid(self, model: str, column: str | None, known: tuple[str, ...]) -> None:
        """A request whose input did not fit; ``known`` are the columns of the signature."""
        named = NO_COLUMN if column is None else column if column in known[:MAX_COLUMNS] else OTHER_COLUMN
        self.invalid.labels(model, named).inc()

    def count_rejected(self, code: str) -> None:
        """An error that was answered; only those of `REJECTED` count."""
        if code in REJECTED:
            self.rejected.labels(code).inc()


class DriftSeries:
    """What counts the rows of one version's bins: each method gives an ``inc``."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._of = (model, version)

    def feature(self, name: str, label: str) -> Any:
        """Rows whose value of the feature fell into a bin."""
        return self._metrics.feature_rows.labels(*self._of, name, label).inc

    def missing(self, name: str) -> Any:
        """Rows without a value of the feature."""
        return self._metrics.missing_rows.labels(*self._of, name).inc

    def output(self, name: str, label: str) -> Any:
        """Rows whose answer fell into a bin."""
        return self._metrics.output_rows.labels(*self._of, name, label).inc


class LedgerMetrics:
    """What becomes of predictions and labels on their way into the ledger."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.queue_rows = Gauge(
            "ml_ledger_queue_rows",
            "Rows in memory that are not yet in the spool.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.written_rows = counter("ml_ledger_written_rows_total", "Rows written to the ledger's database.")
        self.lost_rows = counter("ml_ledger_lost_rows_total", "Rows that will not be in the ledger.", ("reason",))
        self.labels = counter(
            "ml_feedback_labels_total", "Labels that came as feedback, by what became of them.", ("model", "outcome")
        )
        self.delay_s = Histogram(
            "ml_feedback_delay_seconds",
            "Time from a prediction to what turned out to be true.",
            ("model",),
            buckets=DELAYS_S,
            registry=registry,
        )

    def start_at_zero(self, model: str) -> None:
        """The series whose labels are known."""
        for reason in LOST:
            self.lost_rows.labels(reason)
        for outcome in LABELLED:
            self.labels.labels(model, outcome)
        self.delay_s.labels(model)

"""Writes the dashboards: ``python -m grafana.generate`` (make dashboards).

A dashboard is rows of panels, a panel is a title, a unit and queries: a change is one line here, and the JSON is never
edited.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana.panels import Dashboard, Panel, Query, Row, dashboard_json, variable

FOLDER = Path(__file__).parent / "dashboards"

JOB = 'job=~"$job"'
MODEL = 'job=~"$job", model=~"$model"'
FEATURE = f'{MODEL}, feature=~"$feature"'
PREDICTING = f'{JOB}, route=~".*/(predict|invocations|infer|embeddings)"'
POD = 'namespace=~"$namespace", pod=~"$app-.*"'
CONTAINER = f'{POD}, container!="", container!="POD"'
OF_APP = 'namespace=~"$namespace"'

QUANTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def stat(title: str, unit: str, query: str, **more: Any) -> Panel:
    """A number as it is now."""
    return Panel(
        title, unit, [(query, more.pop("legend", ""))], kind="stat", width=more.pop("width", 4), height=4, **more
    )


def rate(metric: str, labels: str, by: str) -> str:
    """How fast a counter rises, a second."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def rises(metric: str, labels: str, by: str) -> str:
    """By how much a counter rose in each step of the graph."""
    return f"sum by ({by}) (increase({metric}{{{labels}}}[$__rate_interval]))"


def quantiles(metric: str, labels: str, by: str = "") -> list[Query]:
    """p50, p95 and p99 of a histogram."""
    of, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    buckets = f"sum by ({of}) (rate({metric}_bucket{{{labels}}}[$__rate_interval]))"
    return [(f"histogram_quantile({share}, {buckets})", f"{legend}{name}") for share, name in QUANTILES]


def mean(metric: str, labels: str, by: str) -> str:
    """The mean of what a histogram saw lately."""
    return f"{rate(f'{metric}_sum', labels, by)} / {rate(f'{metric}_count', labels, by)}"


# --- the service -----------------------------------------------------------------------------------------------------


def service() -> Dashboard:
    """Rate, errors, duration and saturation of the whole service."""
    rows = [_now(), _traffic(), _latency(), _saturation(), _objectives()]
    return Dashboard("mlflow-live-service", "Service", [_job()], rows)


def _now() -> Row:
    panels = [
        stat("Pods that answer", "short", f"sum(up{{{JOB}}})", limit=1, good=True),
        stat("Alerts", "short", 'count(ALERTS{alertstate="firing", severity=~"page|ticket"}) or vector(0)', limit=1),
        stat(
            "Predictions",
            "reqps",
            f"sum(rate(ml_http_request_duration_seconds_count{{{PREDICTING}}}[$__rate_interval]))",
        ),
        stat("Failed, 5 min", "percentunit", f"max(job:ml_predict_failures:ratio_rate5m{{{JOB}}})", limit=0.001),
        stat("Slower than 0.1 s, 5 min", "percentunit", f"max(job:ml_predict_slow:ratio_rate5m{{{JOB}}})", limit=0.01),
        stat(
            "Error budget left, 3 days",
            "percentunit",
            f"min(1 - job:ml_predict_failures:ratio_rate3d{{{JOB}}} / 0.001)",
            limit=0,
            good=True,
            help="1: nothing failed. 0: as much as the objective of 99.9 % allows.",
        ),
    ]
    return Row("Now", panels)


def _traffic() -> Row:
    count = "ml_http_request_duration_seconds_count"
    failed = [(f"job:ml_predict_failures:ratio_rate5m{{{JOB}}}", "{{job}}")]
    panels = [
        Panel("Requests by route", "reqps", [(rate(count, JOB, "route"), "{{route}}")], stacked=True),
        Panel(
            "Requests by status", "reqps", [(rate("ml_http_request_total", JOB, "status"), "{{status}}")], stacked=True
        ),
        Panel("Predictions that failed", "percentunit", failed, "5xx; the line is the objective.", limit=0.001),
        Panel("Rows by outcome", "rowsps", [(rate("ml_predictions_total", JOB, "outcome"), "{{outcome}}")]),
        Panel("Turned away", "reqps", [(rate("ml_rejected_requests_total", JOB, "reason"), "{{reason}}")]),
        Panel(
            "Input that did not fit, by column",
            "reqps",
            [(rate("ml_invalid_requests_total", JOB, "model, column"), "{{model}} {{column}}")],
            "Without a column: the request as a whole.",
        ),
    ]
    return Row("Traffic and errors", panels)


def _latency() -> Row:
    seconds = "ml_http_request_duration_seconds"
    buckets = f"sum by (le) (increase({seconds}_bucket{{{PREDICTING}}}[$__rate_interval]))"
    slow = [(f"job:ml_predict_slow:ratio_rate5m{{{JOB}}}", "{{job}}")]
    panels = [
        Panel(
            "Whole request", "s", quantiles(seconds, PREDICTING), "Predictions; the line is the objective.", limit=0.1
        ),
        Panel("In the model", "s", quantiles("ml_inference_duration_seconds", JOB, "model")),
        Panel("Waiting for others", "s", quantiles("ml_queue_duration_seconds", JOB, "model"), "Slow models only."),
        Panel("Whole request, all of them", "s", [(buckets, "{{le}}")], kind="heatmap", width=16),
        Panel("Predictions slower than 0.1 s", "percentunit", slow, "The line is the objective.", limit=0.01),
    ]
    return Row("Latency", panels)


def _saturation() -> Row:
    limit = f"sum by (model) (ml_queue_limit_rows{{{JOB}}})"
    panels = [
        Panel("In flight", "short", [(f"sum by (instance) (ml_in_flight_requests{{{JOB}}})", "{{instance}}")]),
        Panel("Workers", "short", [(f"sum by (instance) (ml_workers{{{JOB}}})", "{{instance}}")]),
        Panel(
            "Rows that wait",
            "short",
            [(f"sum by (model) (ml_waiting_rows{{{JOB}}})", "{{model}}"), (limit, "{{model}} limit")],
        ),
        Panel(
            "Rows a call",
            "short",
            [(mean("ml_batch_rows", JOB, "model"), "{{model}}")],
            "Answered together, mean. Slow models only.",
        ),
        Panel(
            "Rows dropped", "rowsps", [(rate("ml_dropped_rows_total", JOB, "model"), "{{model}}")], "Callers had gone."
        ),
        Panel("Log lines dropped", "cps", [(rate("ml_log_lines_dropped_total", JOB, "log"), "{{log}}")]),
    ]
    return Row("Saturation", panels)


def _objectives() -> Row:
    def burning(what: str, budget: float) -> list[Query]:
        ratio = f"job:ml_predict_{what}:ratio_rate"
        return [(f"max({ratio}{window}{{{JOB}}}) / {budget}", window) for window in ("1h", "6h", "1d", "3d")]

    text = "1: the budget of 30 days lasts 30 days. Alerts: 1h above 14.4, 6h above 6, 1d above 3, 3d above 1."
    panels = [
        Panel("Availability: how fast the budget burns", "none", burning("failures", 0.001), text, limit=1, width=12),
        Panel("Latency: how fast the budget burns", "none", burning("slow", 0.01), text, limit=1, width=12),
    ]
    return Row("Objectives", panels)


# --- the model -------------------------------------------------------------------------------------------------------


def model() -> Dashboard:
    """What is live, how right it is, and whether the data has moved."""
    rows = [_live(), _loads(), _answers(), _contest(), _drift(), _truth(), _ledger()]
    features = variable("feature", f"label_values(ml_reference_bin_ratio{{{MODEL}}}, feature)", "Feature")
    return Dashboard("mlflow-live-model", "Model", [_job(), _model(), features], rows)


def _live() -> Row:
    checked = f"time() - min(ml_alias_checked_timestamp_seconds{{{MODEL}}})"
    since = f"1000 * max by (model, version) (ml_model_loaded_timestamp_seconds{{{MODEL}}})"
    panels = [
        Panel(
            "Live versions",
            "none",
            [(f"sum by (model, version, alias, source, runtime, digest) (ml_model_info{{{MODEL}}})", "")],
            "How many pods serve each.",
            kind="table",
            width=12,
        ),
        Panel(
            "Workers by version",
            "short",
            [(f"sum by (version) (ml_model_workers{{{MODEL}}})", "{{version}}")],
            width=12,
        ),
        stat("Loaded everywhere", "bool_yes_no", f"min(ml_model_loaded{{{MODEL}}})", limit=1, good=True),
        stat("Live since", "dateTimeFromNow", since, legend="{{model}} {{version}}", width=8),
        stat("Registry answers", "bool_yes_no", f"min(ml_registry_reachable{{{MODEL}}})", limit=1, good=True),
        stat("Alias last checked", "s", checked, limit=300),
        stat("Fallback in use", "bool_yes_no", f"max(ml_fallback_in_use{{{MODEL}}})", limit=1),
    ]
    return Row("Live", panels)


def _loads() -> Row:
    failures = [(rises("ml_model_load_failures_total", MODEL, "model, reason"), "{{model}} {{reason}}")]
    seconds = "ml_model_load_duration_seconds"
    since_start = f"sum by (model) ({seconds}_sum{{{MODEL}}}) / sum by (model) ({seconds}_count{{{MODEL}}})"
    panels = [
        Panel("Refused or failed to load", "short", failures),
        Panel("Reloads asked for", "short", [(rises("ml_model_reloads_total", MODEL, "outcome"), "{{outcome}}")]),
        Panel("Time to load, mean", "s", [(since_start, "{{model}}")], "Since the pods began: loads are rare."),
    ]
    return Row("Loads", panels)


def _answers() -> Row:
    bins = "ml_prediction_bin_rows_total"
    shift = [
        (f"model_output:ml_prediction_bin_rows:psi1h{{{MODEL}}}", "{{model}} {{version}} {{output}}"),
        (f"model_output:ml_prediction_drift_threshold:max{{{MODEL}}}", "{{model}} {{version}} {{output}} threshold"),
    ]
    confidence = [(rate(bins, f'{MODEL}, output="confidence"', "bin"), "{{bin}}")]
    panels = [
        Panel(
            "Rows by version",
            "rowsps",
            [(rate("ml_predictions_total", MODEL, "model, version"), "{{model}} {{version}}")],
        ),
        Panel(
            "Predictions by class or value",
            "rowsps",
            [(rate(bins, f'{MODEL}, output!="confidence"', "model, bin"), "{{model}} {{bin}}")],
            stacked=True,
        ),
        Panel("Confidence", "rowsps", confidence, "How sure the model was of its class.", stacked=True),
        Panel("Shift of predictions, last hour", "none", shift, "PSI against training.", width=24),
    ]
    return Row("Predictions", panels)


def _contest() -> Row:
    """Champion and challenger: the share that each answers, and what a shadow makes of its copies."""
    of, legend, count = "model, version", "{{model}} {{version}}", "ml_predictions_total"

    def shown(outcomes: str, by: str = of) -> str:
        return rate("ml_shadow_rows_total", f"{MODEL}{outcomes}", by)

    share = f"{rate(count, MODEL, of)} / on (model) group_left () {rate(count, MODEL, 'model')}"
    buckets = rate("ml_inference_duration_seconds_bucket", MODEL, f"le, {of}")
    compared, each = shown(', outcome=~"agreed|disagreed"'), shown("", f"{of}, outcome")
    agreed = shown(', outcome="agreed"') + f" / {compared}"
    apart = f"{rate('ml_shadow_difference_total', MODEL, of)} / {compared}"
    failed = shown(', outcome="failed"') + " / " + shown(', outcome!="dropped"')
    quality = [(f"model_metric:ml_quality:avg{{{MODEL}}}", f"{legend} {{{{metric}}}}")]
    panels = [
        Panel("Share of the rows, by version", "percentunit", [(share, legend)], stacked=True),
        Panel("In the model, by version", "s", [(f"histogram_quantile(0.95, {buckets})", f"{legend} p95")]),
        Panel("Quality, by version", "none", quality, "On live rows whose truth is known."),
        Panel(
            "Rows that a shadow was shown",
            "rowsps",
            [(each, f"{legend} {{{{outcome}}}}")],
            "Dropped: it had no time for them.",
            stacked=True,
        ),
        Panel("Agrees with the champion", "percentunit", [(agreed, legend)], "Share of the rows that both answered."),
        Panel("How far apart they are, mean", "none", [(apart, legend)], "0: the same answer. 1: another one."),
        Panel(
            "Shadow rows that failed", "percentunit", [(failed, legend)], "Alerts above the line.", limit=0.05, width=12
        ),
        Panel(
            "Versions that went back in their probation",
            "short",
            [(rises("ml_rollbacks_total", MODEL, "model, reason"), "{{model}} {{reason}}")],
            width=12,
        ),
    ]
    return Row("Competing versions", panels)


def _drift() -> Row:
    psi, of = "model_feature:ml_feature_bin_rows:psi", "{{model}} {{version}} {{feature}}"
    threshold = f"model_feature:ml_drift_threshold:max{{{FEATURE}}}"
    judged = [(f"{psi}1h{{{FEATURE}}} / {threshold}", of)]
    scores = [(f"{psi}1h{{{FEATURE}}}", of), (threshold, f"{of} threshold")]
    shares = [
        (f"model_feature_bin:ml_feature_bin_rows:ratio1h{{{FEATURE}}}", "{{feature}} {{bin}}"),
        (f"model_feature_bin:ml_reference_bin:ratio{{{FEATURE}}}", "{{feature}} {{bin}}, training"),
    ]
    rows = [(f"model_feature:ml_feature_bin_rows:increase1h{{{FEATURE}}}", of)]
    missing = [(f"model_feature:ml_feature_missing_rows:ratio1h{{{FEATURE}}}", of)]
    change = [(f"model_feature:ml_feature_missing_rows:change1h{{{FEATURE}}}", of)]
    panels = [
        Panel("Drift, in thresholds", "none", judged, "Last hour. 1: at its threshold.", kind="bargauge", limit=1),
        Panel("Drift, last hour", "none", scores, "PSI against training; see FeatureDrift in TROUBLESHOOTING.md."),
        Panel("Drift, last day", "none", [(f"{psi}1d{{{FEATURE}}}", of)]),
        Panel(
            "Share of rows in each bin", "percentunit", shares, "Choose one feature above.", kind="bargauge", height=10
        ),
        Panel("Values missing", "percentunit", missing, height=10),
        Panel(
            "Missing, more than in training",
            "percentunit",
            change,
            "Alerts above the line.",
            height=10,
            limit=0.1,
            signed=True,
        ),
        Panel("Rows, last hour", "short", rows, "Below the line a score is mostly chance.", width=24, limit=500),
    ]
    return Row("Drift", panels)


def _truth() -> Row:
    quality = [
        (f"model_metric:ml_quality:avg{{{MODEL}}}", "{{model}} {{version}} {{metric}}"),
        (f"model_metric:ml_quality_gate:max{{{MODEL}}}", "{{model}} {{version}} {{metric}} gate"),
    ]
    rows = [
        (f"model:ml_quality_labelled_rows:max{{{MODEL}}}", "{{model}} {{version}} with a label"),
        (f"max by (model, version) (ml_quality_predicted_rows{{{MODEL}}})", "{{model}} {{version}} predicted"),
    ]
    delay = f"max by (model, version) (ml_quality_label_delay_seconds{{{MODEL}}})"
    panels = [
        Panel("Quality on live rows", "none", quality, "Accuracy is good above its gate, errors below.", width=12),
        Panel(
            "Coverage",
            "percentunit",
            [(f"model:ml_quality_coverage:ratio{{{MODEL}}}", "{{model}} {{version}}")],
            width=6,
        ),
        Panel("Rows", "short", rows, width=6),
        Panel("Labels", "cps", [(rate("ml_feedback_labels_total", MODEL, "outcome"), "{{outcome}}")]),
        Panel("Time to a label", "s", quantiles("ml_feedback_delay_seconds", MODEL)),
        Panel("Time to a label, mean of the window", "s", [(delay, "{{model}} {{version}}")]),
    ]
    return Row("Truth", panels)


def _ledger() -> Row:
    spool = f"max by (instance) (ml_ledger_spool_bytes{{{JOB}}} / ml_ledger_spool_limit_bytes{{{JOB}}})"
    panels = [
        stat("Database answers", "bool_yes_no", f"min(ml_ledger_reachable{{{JOB}}})", limit=1, good=True),
        stat("Rows in memory", "short", f"sum(ml_ledger_queue_rows{{{JOB}}})"),
        Panel(
            "Spool, of its limit",
            "percentunit",
            [(spool, "{{instance}}")],
            "Waits on disk for the database.",
            limit=0.5,
        ),
        Panel(
            "Rows written", "rowsps", [(f"sum(rate(ml_ledger_written_rows_total{{{JOB}}}[$__rate_interval]))", "rows")]
        ),
        Panel("Rows lost", "short", [(rises("ml_ledger_lost_rows_total", JOB, "reason"), "{{reason}}")], width=12),
        Panel(
            "Rows not observed", "rowsps", [(rate("ml_unobserved_rows_total", MODEL, "model"), "{{model}}")], width=12
        ),
    ]
    return Row("Ledger", panels)


# --- resources -------------------------------------------------------------------------------------------------------

KUBERNETES = "Kubernetes (kube-state-metrics and cAdvisor)"


def resources() -> Dashboard:
    """CPU, memory, pods and the autoscaler."""
    namespace = variable("namespace", "label_values(kube_pod_info, namespace)", "Namespace")
    app: dict[str, Any] = {"name": "app", "label": "Deployment", "type": "textbox", "query": "mlflow-live"}
    app["current"] = {"text": "mlflow-live", "value": "mlflow-live"}
    return Dashboard("mlflow-live-resources", "Resources", [_job(), namespace, app], [_processes(), _pods()])


def _processes() -> Row:
    cpu = [("rate(process_cpu_seconds_total[$__rate_interval])", "{{job}} {{instance}}")]
    memory = [("process_resident_memory_bytes", "{{job}} {{instance}}")]
    panels = [
        Panel("CPU", "short", cpu, "Cores. Of a pod of the service: all its processes."),
        Panel("Memory", "bytes", memory, "Resident. Of a pod of the service: all its processes, shared pages once."),
        Panel("Workers", "short", [(f"sum by (instance) (ml_workers{{{JOB}}})", "{{instance}}")]),
    ]
    return Row("Processes", panels)


def _pods() -> Row:
    usage = f"sum by (pod) (rate(container_cpu_usage_seconds_total{{{CONTAINER}}}[$__rate_interval]))"
    throttled = f"sum by (pod) (rate(container_cpu_cfs_throttled_periods_total{{{CONTAINER}}}[$__rate_interval]))"
    periods = f"sum by (pod) (rate(container_cpu_cfs_periods_total{{{CONTAINER}}}[$__rate_interval]))"
    memory = f"sum by (pod) (container_memory_working_set_bytes{{{CONTAINER}}})"
    limits = f'sum by (pod) (kube_pod_container_resource_limits{{{POD}, resource="memory"}})'
    ready = f'sum(kube_pod_status_ready{{{POD}, condition="true"}})'
    autoscaler = f'{OF_APP}, horizontalpodautoscaler=~"$app.*"'
    replicas = [
        (f"max(kube_horizontalpodautoscaler_status_current_replicas{{{autoscaler}}})", "current"),
        (f"max(kube_horizontalpodautoscaler_status_desired_replicas{{{autoscaler}}})", "desired"),
        (f"max(kube_horizontalpodautoscaler_spec_min_replicas{{{autoscaler}}})", "least"),
        (f"max(kube_horizontalpodautoscaler_spec_max_replicas{{{autoscaler}}})", "most"),
    ]
    restarts = f"sum by (pod) (increase(kube_pod_container_status_restarts_total{{{POD}}}[$__rate_interval]))"
    killed = f'sum by (pod) (kube_pod_container_status_last_terminated_reason{{{POD}, reason="OOMKilled"}})'
    panels = [
        Panel("CPU by pod", "short", [(usage, "{{pod}}")], "Cores."),
        Panel(
            "CPU throttled", "percentunit", [(f"{throttled} / {periods}", "{{pod}}")], "A cause of slow predictions."
        ),
        Panel("Memory by pod", "bytes", [(memory, "{{pod}}"), (limits, "{{pod}} limit")]),
        Panel("Autoscaler", "short", replicas),
        Panel("Pods ready", "short", [(ready, "ready")]),
        Panel("Restarts", "short", [(restarts, "{{pod}}"), (killed, "{{pod}} last ended for memory")]),
    ]
    return Row(KUBERNETES, panels)


def _job() -> dict[str, Any]:
    return variable("job", "label_values(ml_workers, job)", "Service")


def _model() -> dict[str, Any]:
    return variable("model", f"label_values(ml_model_loaded{{{JOB}}}, model)", "Model")


def files() -> dict[str, str]:
    """The text of every file of `FOLDER` by its name."""
    return {
        f"{dashboard.title.lower()}.json": json.dumps(dashboard_json(dashboard), indent=2, ensure_ascii=False) + "\n"
        for dashboard in (service(), model(), resources())
    }


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What the processes of a pod counted of one model, by version."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import Metric

QUANTILES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}

Edges = list[tuple[float, float]]  # of a histogram: up to how many seconds, and how many calls took no longer


class Counts:
    """What was counted of one model, by version."""

    def __init__(self, families: Iterable[Metric], model: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in families:
            for sample in family.samples:
                if sample.labels.get("model") == model:
                    self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def traffic(self, version: str, *, shadow: bool) -> dict[str, Any]:
        """Rows that were asked of the version, and the share of them in which it failed; None without any."""
        rows = self._by("ml_shadow_rows_total" if shadow else "ml_predictions_total", version, "outcome")
        failed = rows.pop("failed", 0.0) + rows.pop("error", 0.0)
        answered = sum(rows.get(outcome, 0.0) for outcome in ("ok", "agreed", "disagreed"))
        total = answered + failed
        return {"rows": int(total), "error_ratio": failed / total if total else None}

    def rows(self, version: str) -> dict[str, float]:
        """Rows that callers asked of the version, by what became of them: `serving.metrics.OUTCOMES`."""
        return self._by("ml_predictions_total", version, "outcome")

    def latency(self, version: str) -> dict[str, float | None]:
        """Quantiles of a call of the model, in seconds, as far as its histogram tells them apart."""
        calls = self.calls(version)
        return {name: quantile(calls, share) for name, share in QUANTILES.items()}

    def calls(self, version: str) -> Edges:
        """How long the calls of the version took."""
        buckets = self._by("ml_inference_duration_seconds_bucket", version, "le")
        return sorted((float(edge), count) for edge, count in buckets.items())

    def agreement(self, version: str) -> dict[str, Any] | None:
        """Of the rows that a shadow answered: the share in which it agrees, and how far apart the answers are."""
        rows = self._by("ml_shadow_rows_total", version, "outcome")
        if not rows:
            return None
        both = rows.get("agreed", 0.0) + rows.get("disagreed", 0.0)
        apart = sum(value for labels, value in self._of("ml_shadow_difference_total", version))
        return {
            "rows": int(both),
            "agreed_ratio": rows.get("agreed", 0.0) / both if both else None,
            "mean_difference": apart / both if both else None,
            "failed_rows": int(rows.get("failed", 0.0)),
            "dropped_rows": int(rows.get("dropped", 0.0)),
        }

    def _of(self, name: str, version: str) -> list[tuple[dict[str, str], float]]:
        return [one for one in self._samples.get(name, ()) if one[0].get("version") == version]

    def _by(self, name: str, version: str, label: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for labels, value in self._of(name, version):
            found[labels[label]] = found.get(labels[label], 0.0) + value
        return found


def quantile(edges: Edges, share: float) -> float | None:
    """As PromQL's histogram_quantile does it: the bucket in which it falls, and evenly within; None without a call."""
    if not edges or not edges[-1][1]:
        return None
    wanted, below, counted = share * edges[-1][1], 0.0, 0.0
    for edge, count in edges:
        if count >= wanted:
            if edge == float("inf"):
                return below
            return below + (edge - below) * (wanted - counted) / max(count - counted, 1e-12)
        below, counted = edge, count
    return below

"""Panels, rows and dashboards, and the JSON that Grafana reads them from: places, ids and looks are made here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS = 24  # of Grafana's grid
NOW = ("stat", "bargauge", "table")  # kinds of panels that show one moment
RED, GREEN = "red", "green"

Query = tuple[str, str]  # PromQL, and how its series are called


@dataclass(frozen=True)
class Panel:
    """One panel; ``options`` and ``custom`` are Grafana's own, by the panel's type."""

    title: str
    unit: str
    queries: Sequence[Query]
    help: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    limit: float | None = None  # drawn as a line; in a stat, the value from which it is red
    stacked: bool = False
    signed: bool = False  # may be below 0
    good: bool = False  # of a stat: values from ``limit`` on are good, not bad


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    """One file of `FOLDER`."""

    uid: str
    title: str
    variables: Sequence[dict[str, Any]]
    rows: Sequence[Row]


def variable(name: str, query: str, label: str) -> dict[str, Any]:
    """A choice of one, many or all values that ``query`` finds."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel at its place."""
    now = panel.kind in NOW
    targets = [
        {
            "refId": chr(ord("A") + position),
            "datasource": DATASOURCE,
            "expr": expr,
            "legendFormat": legend or "__auto",
            "instant": now,
            "range": not now,
            "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
        }
        for position, (expr, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "targets": targets,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel.kind),
        "transformations": _transformations(panel.kind),
    }


def _field(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": RED if panel.good else GREEN, "value": None}]
    if panel.limit is not None:
        steps.append({"color": GREEN if panel.good else RED, "value": panel.limit})
    field: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        field["min"] = None if panel.signed else 0
        field["custom"] = {
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "dashed"},
        }
    else:
        field["color"] = {"mode": "thresholds"}
    return field


def _options(kind: str) -> dict[str, Any]:
    if kind == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if kind == "heatmap":
        return {
            "calculate": False,
            "yAxis": {"unit": "s"},
            "cellGap": 0,
            "color": {"mode": "scheme", "scheme": "Blues"},
        }
    if kind == "table":
        return {"showHeader": True}
    shown = {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}}
    return {**shown, "colorMode": "value"} if kind == "stat" else {**shown, "orientation": "horizontal"}


def _transformations(kind: str) -> list[dict[str, Any]]:
    if kind != "table":
        return []
    return [{"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": {"Value": "pods"}}}]


def _placed(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Every row and panel, from left to right and from top to bottom."""
    number, y = 0, 0
    for row in rows:
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            yield panel_json(panel, number, x, y)
            x, height = x + panel.width, max(height, panel.height)
        y += height


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": "Made by grafana/generate.py: change it there.",
        "tags": ["mlflow-live"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": list(dashboard.variables)},
        "links": [{"type": "dashboards", "tags": ["mlflow-live"], "title": "mlflow-live", "keepTime": True}],
        "panels": list(_placed(dashboard.rows)),
    }

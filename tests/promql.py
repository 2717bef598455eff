"""What rules, dashboards and scrapes name: metrics by their names, as text."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

# What a family of each type is sampled as.
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
# All of an expression that can hold names of labels, or anything: strings, matchers, ranges, groupings.
_NO_METRICS = (
    re.compile(r'"[^"]*"'),
    re.compile(r"\{[^{}]*\}"),
    re.compile(r"\[[^\[\]]*\]"),
    re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)"),
)
_NAME = re.compile(r"\b[A-Za-z_:][\w:]*\b(?!\s*\()")  # a name before ( is a function
_WORDS = {"and", "or", "unless", "bool", "offset"}


def metrics_in(expr: str) -> set[str]:
    """The metrics that a PromQL expression reads, recorded ones too."""
    for pattern in _NO_METRICS:
        expr = pattern.sub(" ", expr)
    return set(_NAME.findall(expr)) - _WORDS


def exposed(scrape: str) -> set[str]:
    """The names of all series that a scrape (text format) has, or would have once something was counted."""
    return {
        family.name + ending
        for family in text_string_to_metric_families(scrape)
        for ending in ENDINGS.get(family.type, ("",))
    }

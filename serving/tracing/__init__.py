"""Traces, where OpenTelemetry's standard variables ask for them. Where they do not, nothing of it is imported."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from serving.tracing.spans import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")  # the first counts more
PROTOCOL = "http/protobuf"
EXPORTERS = {"otlp", "console"}

log = logging.getLogger("serving.tracing")


def start(app: Flask) -> Tracer | None:
    """The tracer of this process, after its fork, with a span for each request of ``app``, and its logs marked.

    None where no traces are wanted, or none can be made, which is logged.
    """
    names = exporters(os.environ)
    if not names:
        return None
    # Flask's instrumentation writes names of before 2023 unless it is told to write today's.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    try:
        from serving.tracing.spans import Tracer, exporter

        tracer = Tracer([exporter(name) for name in names])
    except Exception as err:  # a variable that the SDK cannot read, or a package that is not there
        log.error("there will be no traces: %s", err)
        return None
    tracer.instrument(app)
    tracer.mark_logs()
    return tracer


def exporters(environ: Mapping[str, str]) -> list[str]:
    """Where spans shall go, of `EXPORTERS`; empty where the variables want no traces. What is not known is logged."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = [name.strip().lower() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if not named and any(environ.get(name) for name in ENDPOINTS):
        named = ["otlp"]
    if unknown := sorted(set(named) - EXPORTERS - {"none"}):
        log.warning("OTEL_TRACES_EXPORTER: no %s here; there is otlp, console, none", ", ".join(unknown))
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    if "otlp" in named and protocol != PROTOCOL:
        log.warning("%s: no %s here; there is %s", PROTOCOLS[1], protocol, PROTOCOL)
        named.remove("otlp")
    return [] if "none" in named else sorted(EXPORTERS.intersection(named))

"""The service: settings in, parts wired, blueprints registered. ``python app.py`` serves it under gunicorn."""

from __future__ import annotations

import atexit
import errno
import os
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import SettingError
from serving.roster import Roster
from serving.settings import ROOT, Settings
from serving.state import LedgerState

if TYPE_CHECKING:
    from flask import Flask
    from prometheus_client import CollectorRegistry

    from serving.agent import Keeper, Ledger
    from serving.exposition import Exposition
    from serving.metrics import HttpMetrics, Metrics
    from serving.observer import Recorder
    from serving.probation import Bounds
    from serving.protocols import Protocol
    from serving.service import Service
    from serving.telemetry import RequestLog
    from serving.tracing.spans import Tracer


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application of one worker, loaded and following. ``app.extensions["service"].close()`` ends it."""
    from flask import Flask

    from serving import openapi, ops, pages, telemetry, tracing, web
    from serving.lane import Lane
    from serving.protocols import openai

    settings = settings or Settings.from_env()
    telemetry.log_to_stdout(settings.log_level, settings.log_format)
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # a path that is not ours is a 404, not a redirect
    app.config["MAX_CONTENT_LENGTH"] = limit = settings.max_body_bytes
    app.config["ROUTING_HEADER"] = settings.routing_header
    tracer = tracing.start(app)
    metrics, http_metrics, registry = web.install_metrics(app)
    roster = Roster(settings.models, settings.state_dir)
    exposition = _exposition(settings, roster, registry)
    requests = _request_log(settings, metrics)
    service = build_service(settings, roster, metrics, exposition, tracer)
    protocols = _protocols(app, service, http_metrics)
    web.install(app, service, protocols, requests, tracer)
    app.register_blueprint(ops.blueprint(service, exposition))
    documents = openapi.Documents(service, lambda live: openai.text_model(live) is not None, pages.ASSETS)
    app.register_blueprint(openapi.blueprint(documents))
    app.register_blueprint(pages.blueprint())
    lane = Lane(
        app.wsgi_app,
        service.store,
        protocols,
        metrics,
        http_metrics,
        requests,
        routing_header=settings.routing_header,
        max_body_bytes=limit,
        tracer=tracer,
    )
    app.wsgi_app = lane  # type: ignore[method-assign]
    app.extensions.update(service=service, requests=requests, cheap=lane.cheap, slow=lane.slow)
    service.start()
    return app


def _protocols(app: Flask, service: Service, http_metrics: HttpMetrics) -> tuple[Protocol, ...]:
    """Every protocol with its routes; the first that owns a path shapes its errors."""
    from serving.protocols import openai, scoring, simple, v2

    made = ((scoring, scoring.Scoring), (v2, v2.V2), (openai, openai.OpenAI), (simple, simple.Simple))
    protocols = []
    for module, kind in made:
        protocol = kind(service)
        app.register_blueprint(module.blueprint(service, protocol))
        http_metrics.start_at_zero("POST", module.ROUTES, module.STATUSES)
        protocols.append(protocol)
    return tuple(protocols)


def _request_log(settings: Settings, metrics: Metrics) -> RequestLog:
    from serving.telemetry import RequestLog

    dropped = metrics.log_lines_dropped.labels("requests").inc
    requests = RequestLog(settings.log_level, settings.log_format, dropped=dropped)
    atexit.register(requests.flush)
    return requests


def _exposition(settings: Settings, roster: Roster, own: CollectorRegistry) -> Exposition:
    """All metrics of the service; ``own`` are those of this process."""
    from serving.exposition import Exposition

    limit = settings.ledger_spool_bytes
    return Exposition(roster, settings.state_dir, _metrics_dir(), own, spool_limit_bytes=limit)


def _metrics_dir() -> Path | None:
    """Where the processes of one service count, when there are several."""
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(shared) if shared else None


def build_service(
    settings: Settings, roster: Roster, metrics: Metrics, exposition: Exposition, tracer: Tracer | None
) -> Service:
    """The parts of a service, from its settings."""
    from serving.copies import Copier
    from serving.ledger import Feedback
    from serving.live import Batching, Loader
    from serving.observer import Observer
    from serving.runtimes import Limits
    from serving.service import Build, Service
    from serving.store import Store

    state_dir = settings.state_dir
    batching = Batching(settings.max_batch_rows, settings.max_queue_rows, settings.predict_timeout_s)
    limits = Limits(settings.max_image_pixels, settings.max_images, settings.max_text_characters, settings.max_texts)
    loader = Loader(metrics, batching if settings.max_batch_rows else None, limits)
    store = Store(roster, state_dir, metrics, loader, ready=settings.ready_when)
    return Service(
        store,
        _keeper(settings),
        Observer(metrics, _recorder(settings, metrics), Copier(store.shadow, state_dir, metrics)),
        Feedback(LedgerState(state_dir)) if settings.ledger_sample else None,
        metrics,
        exposition,
        state_dir,
        reload_timeout_s=settings.reload_timeout_s,
        max_rows=settings.max_rows,
        build=Build(settings.build_version, settings.build_commit),
        tracer=tracer,
    )


def _keeper(settings: Settings) -> Keeper:
    """What keeps the agent alive; secrets go to it by its environment."""
    from serving.agent import Config, Keeper
    from serving.exposition import fold_the_dead

    config = Config(
        models=settings.models,
        state_dir=str(settings.state_dir),
        model_dir=str(settings.model_dir),
        tracking_uri=settings.mlflow_tracking_uri,
        poll_interval_s=settings.poll_interval_s,
        prepare_timeout_s=settings.prepare_timeout_s,
        keep_bundles=settings.keep_bundles,
        challenger=settings.challenger,
        url=settings.url,
        log_level=settings.log_level,
        log_format=settings.log_format,
        ledger=_ledger(settings) if settings.ledger_sample else None,
        bounds=_bounds(settings) if settings.auto_rollback else None,
    )
    secrets = {
        "MLFLOW_TRACKING_USERNAME": settings.mlflow_tracking_username,
        "MLFLOW_TRACKING_PASSWORD": settings.mlflow_tracking_password,
        "MLFLOW_TRACKING_TOKEN": settings.mlflow_tracking_token,
        "DATABASE_URL": settings.database_url,
    }
    metrics_dir = _metrics_dir()
    before_start = partial(fold_the_dead, metrics_dir) if metrics_dir else None
    return Keeper(config, {name: value for name, value in secrets.items() if value}, before_start)


def _ledger(settings: Settings) -> Ledger:
    from serving.agent import Ledger

    return Ledger(
        keep_days=settings.ledger_keep_days,
        max_rows=settings.ledger_max_rows,
        sample=settings.ledger_sample,
        omit=settings.ledger_omit,
        spool_bytes=settings.ledger_spool_bytes,
    )


def _bounds(settings: Settings) -> Bounds:
    from serving.probation import Bounds

    return Bounds(
        probation_s=settings.probation_s,
        error_ratio=settings.rollback_error_ratio,
        latency_ratio=settings.rollback_latency_ratio,
        min_rows=settings.rollback_min_rows,
    )


def _recorder(settings: Settings, metrics: Metrics) -> Recorder | None:
    """What writes the ledger's pages, where there is a ledger."""
    from serving.ledger import Spool
    from serving.observer import Recorder

    if not settings.ledger_sample:
        return None
    spool = Spool(LedgerState(settings.state_dir).spool, settings.ledger_spool_bytes)
    return Recorder(spool, metrics.ledger, sample=settings.ledger_sample, omit=settings.ledger_omit)


def check_start(settings: Settings) -> None:
    """What would fail later in many lines is said now in one. Raises `SettingError`."""
    from serving.registry import Ref
    from serving.routing import Part

    try:
        names = [Ref.parse(text).name for text in settings.models]
    except ValueError as err:
        raise SettingError(f"MODELS: {err}") from None
    try:
        Part.parse(settings.challenger)
    except ValueError as err:
        raise SettingError(f"CHALLENGER: {err}") from None
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingError(f"MODELS names {', '.join(sorted(twice))} more than once")
    _check_writable(settings.state_dir)
    _check_port(settings.bind_address, settings.port)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        what = "the disk is full" if err.errno == errno.ENOSPC else err.strerror
        raise SettingError(f"STATE_DIR: cannot write in {folder}: {what}") from None


def _check_port(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as err:
            in_use = err.errno == errno.EADDRINUSE
            what = "is in use; set PORT to a free one" if in_use else f"cannot be used: {err.strerror}"
            raise SettingError(f"PORT: {address}:{port} {what}") from None


def main() -> None:
    """Check the settings, then become gunicorn."""
    _read_env_file(ROOT / ".env")
    try:
        check_start(Settings.from_env())
    except SettingError as err:
        print(f"cannot start: {err}", file=sys.stderr)
        raise SystemExit(2) from None
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "gunicorn", "-c", "python:serving.gunicorn_conf", "app:create_app()"]
    os.execv(sys.executable, command)


def _read_env_file(path: Path) -> None:
    """Settings of a ``.env`` file beside the code, below those of the environment."""
    if path.is_file():
        from dotenv import load_dotenv

        load_dotenv(path)


if __name__ == "__main__":
    main()

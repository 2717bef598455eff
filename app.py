"""The service: settings in, parts wired, blueprints registered. ``python app.py`` serves it under gunicorn."""

from __future__ import annotations

import atexit
import errno
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import SettingError
from serving.settings import ROOT, Settings

if TYPE_CHECKING:
    from flask import Flask

    from serving.metrics import Metrics
    from serving.service import Service


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application of one worker, loaded and following. ``app.extensions["service"].close()`` ends it."""
    from flask import Flask

    from serving import ops, telemetry, web
    from serving.lane import Lane
    from serving.protocols import simple

    settings = settings or Settings.from_env()
    telemetry.log_to_stdout(settings.log_level, settings.log_format)
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # a path that is not ours is a 404, not a redirect
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    metrics, http_metrics = web.install_metrics(app)
    dropped = metrics.log_lines_dropped.labels("requests").inc
    requests = telemetry.RequestLog(settings.log_level, settings.log_format, dropped=dropped)
    atexit.register(requests.flush)
    service = build_service(settings, metrics)
    web.install(app, service, requests)
    protocol = simple.Simple(service)
    app.register_blueprint(simple.blueprint(service, protocol))
    app.register_blueprint(ops.blueprint(service))
    limit = settings.max_body_bytes
    lane = Lane(app.wsgi_app, service.store, protocol, http_metrics, requests, max_body_bytes=limit)
    app.wsgi_app = lane  # type: ignore[method-assign]
    app.extensions.update(service=service, requests=requests, cheap=lane.cheap)
    service.start()
    return app


def build_service(settings: Settings, metrics: Metrics) -> Service:
    """The parts of a service, from its settings."""
    from serving.agent import Config, Keeper
    from serving.registry import Ref
    from serving.service import Service
    from serving.store import Batching, Store

    refs = [Ref.parse(text) for text in settings.models]
    config = Config(
        models=settings.models,
        state_dir=str(settings.state_dir),
        model_dir=str(settings.model_dir),
        tracking_uri=settings.mlflow_tracking_uri,
        poll_interval_s=settings.poll_interval_s,
        prepare_timeout_s=settings.prepare_timeout_s,
        keep_bundles=settings.keep_bundles,
        url=settings.url,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    login = {
        "MLFLOW_TRACKING_USERNAME": settings.mlflow_tracking_username,
        "MLFLOW_TRACKING_PASSWORD": settings.mlflow_tracking_password,
        "MLFLOW_TRACKING_TOKEN": settings.mlflow_tracking_token,
    }
    keeper = Keeper(config, {name: value for name, value in login.items() if value})
    batching = Batching(settings.max_batch_rows, settings.max_queue_rows, settings.predict_timeout_s)
    store = Store(
        [ref.name for ref in refs], settings.state_dir, metrics, batching if settings.max_batch_rows else None
    )
    return Service(store, keeper, metrics, settings.state_dir, reload_timeout_s=settings.reload_timeout_s)


def check_start(settings: Settings) -> None:
    """What would fail later in many lines is said now in one. Raises `SettingError`."""
    from serving.registry import Ref

    try:
        names = [Ref.parse(text).name for text in settings.models]
    except ValueError as err:
        raise SettingError(f"MODELS: {err}") from None
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

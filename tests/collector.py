"""What traces are sent to: an OTLP/HTTP collector of a few lines, which keeps the spans that it is given."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {1: "internal", 2: "server"}
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Span:
    """As it came over the wire; ids are hexadecimal, times are nanoseconds since 1970."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent: str
    state: str
    attributes: dict[str, Any]
    failed: bool
    began: int
    ended: int
    resource: dict[str, Any]


class Collector:
    """Listens on ``port`` of the loopback while it is open."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.posts: list[str] = []  # the paths
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                collector.posts.append(self.path)
                collector.spans += list(_read(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Not into the output of tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def trace(self, trace_id: str, *, names: int) -> list[Span]:
        """The spans of one trace by their beginning, once there are so many."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [span for span in self.spans if span.trace_id == trace_id]
            if len(found) >= names:
                return sorted(found, key=lambda span: span.began)
            assert time.monotonic() < deadline, f"{[span.name for span in found]} of {trace_id}, expected {names}"
            time.sleep(0.02)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """The address of somebody who takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _read(data: bytes) -> Iterator[Span]:
    for group in ExportTraceServiceRequest.FromString(data).resource_spans:
        resource = _plain(group.resource.attributes)
        for scope in group.scope_spans:
            for one in scope.spans:
                yield Span(
                    one.name,
                    KINDS[one.kind],
                    one.trace_id.hex(),
                    one.span_id.hex(),
                    one.parent_span_id.hex(),
                    one.trace_state,
                    _plain(one.attributes),
                    one.status.code == 2,
                    one.start_time_unix_nano,
                    one.end_time_unix_nano,
                    resource,
                )


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}

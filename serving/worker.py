"""gunicorn's threaded worker, with an end in the right order, and a short way for small requests.

`DrainingWorker`: on SIGTERM it goes on accepting and answering for ``drain_s``, with readiness false and every answer
closing its connection, so that balancers and clients move away on their own. Then it takes what still waits in the
listen queue, closes the listener, and ends when the last answer is out.

`InlineWorker`: a small request that has come in whole, and that the application calls cheap, is answered on the loop's
own thread. Handing it to the pool costs more than the answer, and lets its siblings overtake it halfway. What goes to
a model that the application calls slow has a pool of its own, so that a few pictures do not hold everybody else up.
"""

from __future__ import annotations

import inspect
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

from gunicorn.http.wsgi import base_environ
from gunicorn.workers.gthread import TConn, ThreadWorker

from serving.exchange import Answer, Whole, whole

INLINE_PER_TURN = 64  # then the pool takes over, and the loop looks at what else has come
ACCEPTED_PER_TURN = 8  # new connections; gunicorn takes one, but here a turn may be as long as many answers
SILENT_S = 1.0  # how long an ending worker waits for a connection that has asked nothing yet
LINGER_S = 2.0  # how long a client may take to see that an answer was the last, and what it may still send
LINGER_BYTES = 1 << 16
SMALL_BYTES = 1 << 14  # what is read at once of a connection; no cheap request is longer
SEND_S = 30.0  # how long a client may take to read the rest of an answer

SLOW_NICENESS = 5  # of the threads for slow models: whoever asks for little goes first

Cheap = Callable[[str, int], bool]
Slow = Callable[[str], bool]

SCRIPT_NAME = os.environ.get("SCRIPT_NAME", "")  # gunicorn takes it for where the application is mounted

# What every request that is answered on the loop has in its environment, beside what gunicorn gives to all.
FOR_ALL = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": SCRIPT_NAME,
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgi.url_scheme": "http",
    "wsgi.multithread": True,
}

# What `InlineWorker` overrides or uses of gunicorn, which does not promise to keep it.
PARAMETERS = {
    "run": [],
    "accept": ["listener"],
    "handle_error": ["req", "client", "addr", "exc"],
    "enqueue_req": ["conn"],
    "finish_request": ["conn", "fs"],
    "on_client_socket_readable": ["conn", "client"],
    "on_pending_socket_readable": ["conn", "client"],
    "wait_for_and_dispatch_events": ["timeout"],
    "murder_pending": [],
}
WORKER_NAMES = {"keepalived_conns", "pending_conns", "nr_conns", "poller", "tpool", "method_queue"}
CONNECTION_NAMES = {"sock", "parser", "timeout", "initialized", "data_ready", "client", "server"}


def unfamiliar(worker: Any = ThreadWorker, connection: Any = TConn) -> list[str]:
    """What `InlineWorker` relies on and does not find in this gunicorn; empty when it can be used."""
    changed = [name for name, wanted in PARAMETERS.items() if _parameters(getattr(worker, name, None)) != wanted]
    unset = WORKER_NAMES.difference(worker.__init__.__code__.co_names)
    unset |= CONNECTION_NAMES.difference(connection.__init__.__code__.co_names)
    unset |= {name for name in ("init", "set_timeout", "close") if not hasattr(connection, name)}
    return changed + sorted(unset)


def _parameters(method: Callable[..., Any] | None) -> list[str] | None:
    """The names of a method's parameters after ``self``; None where there is no such method."""
    return None if method is None else list(inspect.signature(method).parameters)[1:]


class DrainingWorker(ThreadWorker):
    """``drain_s`` is set by the gunicorn configuration."""

    alive: bool
    drain_s = 2.0
    _draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM. Only notes it here; the loop does the rest."""
        if self._draining or not self.alive:
            return
        if not self.booted:
            self.alive = False  # nobody has come yet: end as soon as the boot is over
            return
        self._draining = True
        self.max_keepalived = -1  # more connections are kept alive than this: so every answer says close
        service: Any = getattr(self.wsgi, "extensions", {}).get("service")
        if service is not None:
            service.draining = True
        timer = threading.Timer(self.drain_s, self.method_queue.defer, args=(self._finish,))
        timer.daemon = True
        timer.start()

    def _finish(self) -> None:
        """On the loop's own thread: nobody comes any more, those who are here are served."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.setblocking(False)
            while self._accept_waiting(listener):
                pass
            listener.close()
        for connection in self.keepalived_conns:
            connection.timeout = 0.0  # idle since before the drain
        self.murder_keepalived()
        for connection in self.pending_conns:
            connection.timeout = min(connection.timeout, time.monotonic() + SILENT_S)
        self.alive = False

    def _accept_waiting(self, listener: Any) -> bool:
        before = self.nr_conns
        self.accept(listener)
        return bool(self.nr_conns > before)


class InlineWorker(DrainingWorker):
    """Asks ``app.extensions["cheap"](path, body bytes)`` whether to answer a whole request on the loop's own thread.

    Such an answer is small and comes without waiting for anything. Without that callable, and where requests are not
    plain HTTP/1 from the first byte, all go to the pool. The loop never waits for a client, whatever that client does.
    ``app.extensions["slow"](path)`` says which go to a pool of their own.
    """

    _cheap: Cheap | None = None
    _slow: Slow | None = None
    _left = INLINE_PER_TURN

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lingering: dict[Any, int] = {}  # connection -> bytes that it may still send; the oldest first
        self._environ: dict[str, Any] = {}
        self._for_slow: set[Any] = set()  # connections whose next request is for a slow model
        self._slow_pool = ThreadPoolExecutor(self.cfg.threads, "slow", initializer=_stand_back)

    def run(self) -> None:
        special = self.cfg.is_ssl, "h2" in self.cfg.http_protocols, self.cfg.proxy_protocol != "off", SCRIPT_NAME
        if not any(special):
            extensions = getattr(self.wsgi, "extensions", {})
            self._cheap, self._slow = extensions.get("cheap"), extensions.get("slow")
        self._environ = base_environ(self.cfg) | FOR_ALL
        super().run()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        self._left = INLINE_PER_TURN
        super().wait_for_and_dispatch_events(min(timeout, 1.0))  # who waits too long is looked for between the turns

    # --- requests come ---

    def accept(self, listener: Any) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            before = self.nr_conns
            super().accept(listener)
            if self.nr_conns == before or self.nr_conns >= self.worker_connections:
                return

    def enqueue_req(self, conn: Any) -> None:
        """A new connection waits for its first request on the loop, not on a thread of the pool."""
        if conn in self._for_slow:
            self._for_slow.remove(conn)
            handling = self._slow_pool.submit(self.handle, conn)
            handling.add_done_callback(lambda fs: self.method_queue.defer(self.finish_request, conn, fs))
            return
        if self._cheap is None or conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        conn.init()
        request = self._cheap_request(conn)
        if request is None:
            super().on_pending_socket_readable(conn, client)
            return
        self.pending_conns.remove(conn)
        conn.sock.setblocking(False)
        self.poller.modify(conn.sock, selectors.EVENT_READ, partial(self.on_client_socket_readable, conn))
        self._answer(conn, request)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        request = self._cheap_request(conn)
        if request is None:
            super().on_client_socket_readable(conn, client)
            return
        self.keepalived_conns.remove(conn)
        self._answer(conn, request)

    def _cheap_request(self, conn: Any) -> Whole | None:
        """The one whole and cheap request that waits on the connection; anything else is left for the pool to read."""
        if self._cheap is None or self._left <= 0:
            return None
        try:
            data = conn.sock.recv(SMALL_BYTES, socket.MSG_DONTWAIT)
        except OSError:
            return None  # the pool will see it too
        try:
            request = whole(data)
            if request and not self._names_a_scheme(conn, request) and self._cheap(request.path, len(request.body)):
                self._left -= 1
                return request
            if self._slow is not None and self._slow(_path(data)):
                self._for_slow.add(conn)
        except Exception:
            self.log.exception("cannot tell whether a request is cheap")
        conn.parser.unreader.unread(data)
        return None

    def _names_a_scheme(self, conn: Any, request: Whole) -> bool:
        """Whether a proxy that gunicorn may have to believe says how it was asked."""
        if self.cfg.secure_scheme_headers.keys().isdisjoint(request.fields):
            return False
        trusted = self.cfg.forwarded_allow_ips
        return conn.client[0] in trusted or any(address == "*" or "/" in address for address in trusted)

    # --- answers go ---

    def _answer(self, conn: Any, request: Whole) -> None:
        """Answer ``request``; the connection stays registered unless something is left to do for it."""
        answer = Answer()
        if self._is_last():
            answer.force_close()
        try:
            rest = _sent(conn.sock, answer.bytes(self.wsgi, request.environ(self._environ | _ends(conn))))
        except OSError:
            answer.closes, rest = True, b""  # the client has gone
        except Exception as err:
            self.handle_error(None, conn.sock, conn.client, err)
            answer.closes, rest = True, b""
        if not rest and not answer.closes:
            conn.set_timeout()
            self.keepalived_conns.append(conn)
            return
        self.poller.unregister(conn.sock)
        if not rest:
            self._linger(conn)
            return
        sending = self.tpool.submit(_send_rest, conn.sock, rest, not answer.closes)
        sending.add_done_callback(lambda fs: self.method_queue.defer(self.finish_request, conn, fs))

    def _is_last(self) -> bool:
        """Count a request; whether its connection has to end with it, by gunicorn's rules."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        return not self.alive or not self.cfg.keepalive or len(self.keepalived_conns) >= self.max_keepalived

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        """What to do with a connection after an answer: wait for more, serve what was read ahead, or close."""
        kept = fs.result() if not fs.cancelled() and fs.exception() is None else None
        if kept is False:
            self._linger(conn)
        elif kept is True and conn.parser.unreader.buf.getvalue():
            super().enqueue_req(conn)  # the next request, or its beginning, is no longer in the socket to be seen
        else:
            super().finish_request(conn, fs)

    # --- connections end ---

    def _linger(self, conn: Any) -> None:
        """Close the way RFC 9112 9.6 asks for. gunicorn itself waits here for the client, up to two seconds."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_lingering_readable, conn))
        except (OSError, ValueError):  # gone, or closed already
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout = time.monotonic() + LINGER_S
        self._lingering[conn] = LINGER_BYTES

    def _on_lingering_readable(self, conn: Any, client: Any) -> None:
        try:
            piece = client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._lingering[conn] -= len(piece)
        if not piece or self._lingering[conn] <= 0:
            self._let_go(conn)

    def murder_pending(self) -> None:
        super().murder_pending()
        now = time.monotonic()
        for conn in [conn for conn in self._lingering if conn.timeout <= now]:
            self._let_go(conn)

    def _let_go(self, conn: Any) -> None:
        del self._lingering[conn]
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()


def _path(data: bytes) -> str:
    """The path of the request that ``data`` begins with, as far as a choice between two pools needs to know it."""
    target = data.split(b"\r\n", 1)[0].split(b" ")[1:2]
    return target[0].split(b"?", 1)[0].decode("latin-1") if target else ""


def _stand_back() -> None:
    """This thread's work is long: on a busy machine it comes after what is short. On Linux only."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SLOW_NICENESS)


def _ends(conn: Any) -> dict[str, Any]:
    """Both ends of a TCP connection, as WSGI has them."""
    return {
        "REMOTE_ADDR": conn.client[0],
        "REMOTE_PORT": str(conn.client[1]),
        "SERVER_NAME": conn.server[0],
        "SERVER_PORT": str(conn.server[1]),
    }


def _sent(sock: socket.socket, data: bytes) -> bytes:
    """Send to a non-blocking socket; what it does not take at once. Raises OSError when it is broken."""
    try:
        return data[sock.send(data) :]
    except BlockingIOError:
        return data


def _send_rest(sock: socket.socket, rest: bytes, kept: bool) -> bool:
    """In the pool: what a client did not take at once. Whether the connection is kept."""
    sock.settimeout(SEND_S)
    try:
        sock.sendall(rest)
    except OSError:
        return False
    return kept

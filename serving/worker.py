"""gunicorn's threaded worker, with an end in the right order: unready, drain, close.

On SIGTERM it goes on accepting and answering for ``drain_s``, with readiness false and every answer closing its
connection, so that balancers and clients move away on their own. Then it takes what still waits in the listen queue,
closes the listener, and ends when the last answer is out.
"""

from __future__ import annotations

import threading
from types import FrameType
from typing import Any

from gunicorn.workers.gthread import ThreadWorker


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
        self.alive = False

    def _accept_waiting(self, listener: Any) -> bool:
        before = self.nr_conns
        self.accept(listener)
        return bool(self.nr_conns > before)

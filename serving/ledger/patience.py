"""How long to wait for a database.

A server that hangs keeps its connections open, and no limit of its own ends a call then. So we end it from here: by
closing the connection under the call.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import sqlalchemy as sa


class Patience:
    """Within it a call to the database ends after ``seconds`` at the latest, with an error of the driver.

    `renew` says, from any thread, that there is more time now, or less.
    """

    def __init__(self, connection: sa.Connection, seconds: float) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        self._lock = threading.Lock()
        self._done = False
        self._interrupt = getattr(driver, "interrupt", None)
        # A descriptor of our own: its number cannot have become somebody else's when the time is over.
        self._socket = socket.socket(fileno=os.dup(driver.fileno())) if self._interrupt is None else None
        self._timer = self._start(seconds)

    def __enter__(self) -> Patience:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._done = True
            self._timer.cancel()
            if self._socket is not None:
                self._socket.close()

    def renew(self, seconds: float) -> None:
        """There are ``seconds`` from now."""
        with self._lock:
            if not self._done:
                self._timer.cancel()
                self._timer = self._start(seconds)

    def _start(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        return timer

    def _cut(self) -> None:
        with self._lock:
            if self._done:
                return
            with contextlib.suppress(Exception):  # it may have been closed from the other side
                if self._socket is not None:
                    self._socket.shutdown(socket.SHUT_RDWR)
                elif self._interrupt is not None:
                    self._interrupt()

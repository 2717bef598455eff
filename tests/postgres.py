"""A real PostgreSQL for tests: the binaries that come with pgserver, on a port of 127.0.0.1."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

READY_S = 30.0


class Postgres:
    """A server that can be stopped, frozen and started again on the same data and port. `close` removes it."""

    PASSWORD = "a:secret"
    URL_PASSWORD = "a%3Asecret"

    def __init__(self) -> None:
        """Makes an empty database cluster, in a folder of its own: what pytest makes is closed to other users."""
        self._home = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self._home / "data"
        self._bin = _binaries(self._home)
        self._as: dict[str, Any] = _other_user(self._home)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        password = self._home / "password"
        password.write_text(self.PASSWORD)
        password.chmod(0o644)
        options = ["--auth=scram-sha-256", f"--pwfile={password}", "-U", "postgres", "--no-sync", "--encoding=UTF8"]
        self._run("initdb", "-D", self._data, "--locale=C", *options)
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres:{self.URL_PASSWORD}@127.0.0.1:{self._port}/{database}"

    def start(self) -> Postgres:
        """Start it, and wait until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [self._bin / "postgres", "-D", self._data, "-p", str(self._port), *options]
        with (self._home / "log").open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._home, **self._as)
        deadline = time.monotonic() + READY_S
        ready = [self._bin / "pg_isready", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, capture_output=True, check=False).returncode != 0:
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self._home / "log").read_text())
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """Stop it at once, also when it is frozen: connections are cut."""
        if self._server is not None:
            self.thaw()
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(READY_S)
            self._server = None

    def freeze(self) -> None:
        """Hang: connections stay open, and nobody answers."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on as if nothing had been."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def new_database(self, name: str) -> str:
        """The address of a new database called ``name``."""
        import psycopg2

        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
        connection.close()
        return self.url_of(name)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _run(self, name: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._bin / name, *arguments], capture_output=True, text=True, check=False, cwd=self._home, **self._as
        )
        assert done.returncode == 0, done.stderr

    def _pids(self) -> list[int]:
        """The server and what it started."""
        assert self._server is not None
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split()
        return [self._server.pid, *map(int, children)]


@functools.cache
def shared() -> Postgres:
    """One server for all tests of this process that only need a database; it ends with the process."""
    server = Postgres().start()
    atexit.register(server.close)
    return server


def _binaries(home: Path) -> Path:
    """The folder of the programs; copied where the other user could not read them in their place."""
    spec = find_spec("pgserver")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall"
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o005 == 0o005 for folder in (installed, *installed.parents)):
        return installed / "bin"
    shutil.copytree(installed, home / "pginstall", symlinks=True)
    return home / "pginstall" / "bin"


def _other_user(home: Path) -> dict[str, Any]:
    """How to start a program that refuses to be run by root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

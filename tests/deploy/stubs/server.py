"""Runs the stub programs. What is on PATH is a few lines of bash that hand over their arguments and print the answer,
because a test makes thousands of calls and a Python would have to start for each."""

from __future__ import annotations

import contextlib
import io
import socketserver
import threading
from collections.abc import Callable

from stubs import docker, kubectl, loader, service, state, trivy

CLIENT = """#!/bin/bash
exec 3<>"/dev/tcp/127.0.0.1/$STUB_PORT" || exit 126
{ printf '%d\\n' $(($# + 1)); printf '%s\\n' TOOL "$@"; } >&3
while IFS= read -r line <&3; do
  case $line in
    1*) printf '%s\\n' "${line#1}" ;;
    2*) printf '%s\\n' "${line#2}" >&2 ;;
    *) exit "${line#0}" ;;
  esac
done
exit 126
"""
PROGRAMS: dict[str, Callable[[list[str]], int | None]] = {
    "kubectl": kubectl.main,
    "docker": docker.main,
    "trivy": trivy.main,
}
ONE_AT_A_TIME = threading.Lock()  # they print to sys.stdout


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        count = int(self.rfile.readline())
        tool, *argv = [self.rfile.readline().decode().rstrip("\n") for _ in range(count)]
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        forwarded, hangs = None, False
        with ONE_AT_A_TIME, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if tool == "kubectl" and "port-forward" in argv:
                    state.call(tool, argv)
                    forwarded = service.forward(argv)
                else:
                    code = PROGRAMS[tool](argv) if tool in PROGRAMS else loader.main(tool, argv)
            except SystemExit as ended:
                code = ended.code
            except state.Hang:
                hangs = True
                state.HANGING.set()
        self.answer(out.getvalue(), err.getvalue())
        if forwarded or hangs:
            self.rfile.read()  # until the program is killed
            if forwarded:
                forwarded.shutdown()
                forwarded.server_close()
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(f"0{code or 0}\n".encode())

    def answer(self, out: str, err: str) -> None:
        lines = [f"1{line}\n" for line in out.splitlines()] + [f"2{line}\n" for line in err.splitlines()]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write("".join(lines).encode())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

"""The worker: small requests are answered on the loop, the rest in the pool, and the loop waits for no client."""

from __future__ import annotations

import http.client
import io
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gunicorn.workers.gthread import TConn, ThreadWorker

from serving.settings import ROOT
from serving.worker import INLINE_PER_TURN, SMALL_BYTES, InlineWorker, unfamiliar

# Tells who answered: "loop" or "pool", what it was asked, whether the service drains, and the process.
APP = """
import os, threading, time
from types import SimpleNamespace


def cheap(path, body_bytes):
    if path == "/undecided":
        raise RuntimeError("cannot tell")
    return path.startswith("/fast")


def application(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    body = b"" if "unread" in path else environ["wsgi.input"].read()
    if "sleep" in path:
        time.sleep(float(query))
    if "boom" in path:
        raise ValueError("boom")
    where = "loop" if threading.current_thread() is threading.main_thread() else "pool"
    draining = application.extensions["service"].draining
    answer = f"{where} {environ['REQUEST_METHOD']} {path} {len(body)} {draining} {os.getpid()}".encode()
    answer = b"x" * int(query) if "large" in path else answer
    start_response("200 OK", [] if "chunked" in path else [("Content-Length", str(len(answer)))])
    if "half" in path:
        return broken(answer)
    return [answer]


def broken(answer):
    yield answer[:2]
    raise ValueError("half")


application.extensions = {
    "service": SimpleNamespace(draining=False),
    "cheap": cheap,
    "slow": lambda path: path.startswith("/slow"),
}
"""
CONF = """
from serving import worker
worker_class = worker.InlineWorker
worker_class.drain_s = 1.0
threads, workers, keepalive, graceful_timeout = 2, 1, 30, 20
control_socket_disable = True
"""


@dataclass
class Answer:
    """What came back; the words are the application's."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def words(self) -> list[str]:
        return self.body.decode().split()

    @property
    def where(self) -> str:
        return self.words[0]

    @property
    def closes(self) -> bool:
        return self.headers["Connection"] == "close"


class Client:
    """One connection, byte by byte if need be."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(20)

    def send(self, path: str, body: bytes = b"", headers: str = "", method: str = "POST", version: str = "1.1") -> None:
        self.sock.sendall(request(path, body, headers, method, version))

    def answer(self) -> Answer:
        got = http.client.HTTPResponse(self.sock)
        got.begin()
        return Answer(got.status, got.headers, got.read())

    def ask(self, path: str, body: bytes = b"", **how: str) -> Answer:
        self.send(path, body, **how)
        return self.answer()

    def closed(self) -> bool:
        """Whether nothing comes any more; waits for it."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        """Gone without a goodbye."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def request(path: str, body: bytes = b"", headers: str = "", method: str = "POST", version: str = "1.1") -> bytes:
    head = f"{method} {path} HTTP/{version}\r\nHost: here\r\n{headers}"
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class Server:
    """gunicorn with one worker of two threads; ``conf`` adds to its configuration."""

    def __init__(self, folder: Path, conf: str = "", app: str = "") -> None:
        folder.mkdir(exist_ok=True)
        (folder / "small_app.py").write_text(APP + app)
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = listener.getsockname()
        (folder / "conf.py").write_text(f"{CONF}bind = 'fd://{listener.fileno()}'\n{conf}\n")
        self._log = folder / "log"
        self.clients: list[Client] = []
        with self._log.open("wb") as log, listener:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "conf.py", "small_app:application"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def client(self) -> Client:
        client = Client(socket.create_connection(self.address))
        self.clients.append(client)
        return client

    def pid(self) -> int:
        return int(self.client().ask("/fast", headers="Connection: close\r\n").words[-1])

    def stop(self) -> int:
        for client in self.clients:
            client.sock.close()
        self.process.terminate()
        try:
            return self.process.wait(15)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    shared = Server(tmp_path_factory.mktemp("worker"))
    yield shared
    assert shared.process.poll() is None
    assert shared.stop() == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with a configuration of their own."""
    started: list[Server] = []

    def begin(conf: str = "", app: str = "") -> Server:
        started.append(Server(tmp_path / str(len(started)), conf, app))
        return started[-1]

    yield begin
    for server in started:
        server.stop()


def seconds(what: Callable[[], Any]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


# --- who answers -----------------------------------------------------------------------------------------------------


def test_cheap_requests_are_answered_on_the_loop_and_others_in_the_pool(server: Server) -> None:
    client = server.client()
    for path, where in (("/fast", "loop"), ("/slow", "pool"), ("/fast", "loop"), ("/fast", "loop"), ("/slow", "pool")):
        assert client.ask(path, b"body").words[:4] == [where, "POST", path, "4"]


def test_a_request_without_a_body_is_whole(server: Server) -> None:
    client = server.client()
    assert client.ask("/fast?query").words[:4] == ["loop", "POST", "/fast", "0"]
    assert client.ask("/fast", headers="Content-Length: 0\r\n").where == "loop"
    assert client.ask("/fast", method="GET").where == "pool"


def test_an_application_that_does_not_judge_has_its_pool(start: Callable[..., Server]) -> None:
    client = start(app="del application.extensions['cheap']").client()
    assert [client.ask("/fast").where for _ in range(3)] == ["pool"] * 3


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Transfer-Encoding: chunked\r\n", b""),
        ("Upgrade: websocket\r\n", b"body"),
        ("", b"x" * SMALL_BYTES),
    ],
)
def test_what_is_not_plain_and_small_goes_to_the_pool(server: Server, headers: str, body: bytes) -> None:
    client = server.client()
    client.send("/fast", body, headers)
    if "chunked" in headers:
        client.sock.sendall(b"4\r\nbody\r\n0\r\n\r\n")
    assert client.answer().where == "pool"
    assert client.ask("/fast").where == "loop"


def test_an_expected_continue_comes_before_the_answer(server: Server) -> None:
    client = server.client()
    client.sock.sendall(request("/fast", b"body", "Expect: 100-continue\r\n")[: -len(b"body")])
    assert client.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sock.sendall(b"body")
    assert client.answer().words[:4] == ["pool", "POST", "/fast", "4"]


def test_whoever_cannot_be_judged_goes_to_the_pool(server: Server) -> None:
    assert server.client().ask("/undecided").where == "pool"
    assert "cannot tell whether a request is cheap" in server.log


def test_more_than_a_turn_takes_goes_to_the_pool(start: Callable[..., Server]) -> None:
    server = start("worker.INLINE_PER_TURN = 3")
    first, *others = [server.client() for _ in range(9)]
    assert {client.ask("/fast").where for client in others} == {"loop"}
    first.send("/fast-sleep?0.5")
    time.sleep(0.2)
    for client in others:
        client.send("/fast")
    assert first.answer().where == "loop"
    answered = sorted(client.answer().where for client in others)
    assert answered == ["loop"] * 3 + ["pool"] * 5
    assert INLINE_PER_TURN > 16


@pytest.mark.parametrize(
    ("trusted", "where"), [("127.0.0.1", "pool"), ("10.0.0.7", "loop"), ("*", "pool"), ("10.0.0.0/8", "pool")]
)
def test_a_scheme_that_gunicorn_may_have_to_believe_goes_to_the_pool(
    start: Callable[..., Server], trusted: str, where: str
) -> None:
    client = start(f"forwarded_allow_ips = {trusted!r}").client()
    assert client.ask("/fast", headers="X-Forwarded-Proto: https\r\n").where == where
    assert client.ask("/fast", headers="X-Forwarded-For: 1.2.3.4\r\n").where == "loop"


def test_a_mounted_application_has_its_pool(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/fast")
    assert start().client().ask("/fast/fast").where == "pool"


def test_tls_never_takes_the_loop(start: Callable[..., Server], tmp_path: Path) -> None:
    _certificate(tmp_path)
    server = start(f"certfile, keyfile = '{tmp_path / 'cert'}', '{tmp_path / 'key'}'")
    context = ssl.create_default_context(cafile=str(tmp_path / "cert"))
    client = Client(context.wrap_socket(server.client().sock, server_hostname="here"))
    assert [client.ask("/fast", b"body").where for _ in range(3)] == ["pool"] * 3
    client.sock.close()
    assert "cannot tell" not in server.log


def _certificate(folder: Path) -> None:
    """A key, and a certificate for ``here``, valid for an hour."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(hours=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("here")]), critical=False)
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key").write_bytes(key.private_bytes(pem, *plain))
    (folder / "cert").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))


# --- slow and rude clients -------------------------------------------------------------------------------------------


def test_clients_that_dribble_hold_the_pool_and_not_the_loop(server: Server) -> None:
    dribbling = [server.client() for _ in range(2)]  # as many as the pool has threads
    wanted = request("/fast", b"body")
    for cut, client in enumerate(dribbling, start=1):
        client.sock.sendall(wanted[: -2 * cut])
    time.sleep(0.2)
    quick = server.client()
    assert seconds(lambda: [quick.ask("/fast") for _ in range(50)]) < 1
    for client in dribbling:
        for byte in wanted[-2 * (dribbling.index(client) + 1) :]:
            time.sleep(0.02)
            client.sock.sendall(bytes([byte]))
        assert client.answer().words[:4] == ["pool", "POST", "/fast", "4"]


def test_slow_models_hold_up_nobody_else(server: Server) -> None:
    """Four requests of a second each, on a worker of two threads: whoever asks for something else does not wait."""
    clients = [server.client() for _ in range(4)]
    for client in clients:
        client.send("/slow-sleep?1")
    time.sleep(0.2)  # they are being answered
    assert seconds(lambda: server.client().ask("/pool")) < 0.8
    assert [client.answer().where for client in clients] == ["pool"] * 4
    assert clients[0].ask("/pool").where == "pool"  # the connection is as good as any other


def test_connections_that_say_nothing_hold_no_thread(server: Server) -> None:
    silent = [server.client() for _ in range(4)]
    time.sleep(0.1)
    assert seconds(lambda: server.client().ask("/slow")) < 1
    assert [client.ask("/fast").where for client in silent] == ["loop"] * 4


def test_newcomers_do_not_wait_for_a_turn_each(server: Server) -> None:
    """A turn answers all who wait, here 0.2 s; were one let in each turn, the last would wait for eight."""
    stop = threading.Event()

    def ask_on(client: Client) -> None:
        while not stop.is_set():
            client.ask("/fast-sleep?0.02")

    busy = [threading.Thread(target=ask_on, args=(server.client(),)) for _ in range(10)]
    for thread in busy:
        thread.start()
    time.sleep(0.5)
    newcomers = [server.client() for _ in range(8)]
    for client in newcomers:
        client.send("/fast")
    assert seconds(lambda: [client.answer() for client in newcomers]) < 1.2
    stop.set()
    for thread in busy:
        thread.join()


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    client = server.client()
    paths = ["/fast-a", "/slow-b", "/fast-c", "/fast-d"]
    client.sock.sendall(b"".join(request(path, b"body") for path in paths))
    whole = client.sock.makefile("rb")
    answered = []
    for _ in paths:
        length = int(http.client.parse_headers(_after_status(whole))["Content-Length"])
        answered.append(whole.read(length).decode().split()[2])
    assert answered == paths
    assert client.ask("/fast").where == "loop"


def _after_status(answers: io.BufferedReader) -> io.BufferedReader:
    assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
    return answers


def test_a_request_that_follows_half_read_is_answered(server: Server) -> None:
    client = server.client()
    client.sock.sendall(request("/fast-a", b"body") + request("/fast-b", b"body")[:30])
    assert client.answer().words[2] == "/fast-a"
    time.sleep(0.1)
    client.sock.sendall(request("/fast-b", b"body")[30:])
    assert client.answer().words[2] == "/fast-b"


def test_a_body_that_the_application_leaves_is_read_away(server: Server) -> None:
    client = server.client()
    assert client.ask("/fast-unread", b"x" * 9000).where == "loop"
    assert client.ask("/fast", b"body").words[:4] == ["loop", "POST", "/fast", "4"]


def test_a_client_that_reads_nothing_blocks_nobody(server: Server) -> None:
    size = 20_000_000
    deaf, other = server.client(), server.client()
    deaf.send(f"/fast-large?{size}")
    time.sleep(0.2)
    assert seconds(lambda: [other.ask("/fast") for _ in range(20)]) < 1
    assert len(deaf.answer().body) == size
    assert deaf.ask("/fast").where == "loop"


def test_clients_that_vanish_leave_nothing_behind(start: Callable[..., Server]) -> None:
    server = start("worker_connections = 4")
    for _ in range(10):
        for path in ("/fast", "/slow", "/fast-large?9000000"):
            gone = server.client()
            gone.send(path)
            gone.reset()
        silent, kept, answered = server.client(), server.client(), server.client()
        assert kept.ask("/fast").where == "loop"
        answered.send("/fast")
        for client in (silent, kept, answered):
            client.sock.close()
    assert server.client().ask("/fast").where == "loop"


# --- how connections end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/fast", "/slow"])
@pytest.mark.parametrize("how", [{"headers": "Connection: close\r\n"}, {"version": "1.0"}])
def test_a_last_answer_closes_the_connection(server: Server, path: str, how: dict[str, str]) -> None:
    client = server.client()
    assert client.ask("/fast").closes is False
    assert client.ask(path, **how).closes
    assert client.closed()


@pytest.mark.parametrize("path", ["/fast", "/slow"])
def test_a_client_that_does_not_close_is_not_waited_for(server: Server, path: str) -> None:
    staying = [server.client() for _ in range(4)]
    for client in staying:
        assert client.ask(path, headers="Connection: close\r\n").closes
    other = server.client()
    assert seconds(lambda: [other.ask("/slow") for _ in range(5)]) < 1
    time.sleep(3.5)
    for client in staying:
        client.sock.sendall(b"x")  # answered by a reset
    time.sleep(0.1)
    for client in staying:
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            client.sock.sendall(b"x")


def test_a_client_that_goes_on_sending_is_cut_off(server: Server) -> None:
    client = server.client()
    assert client.ask("/fast", headers="Connection: close\r\n").closes

    def pour() -> None:
        for _ in range(1000):
            client.sock.sendall(b"x" * 4096)
            time.sleep(0.001)

    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        pour()


def test_idle_connections_are_closed_and_busy_ones_kept(start: Callable[..., Server]) -> None:
    server = start("keepalive = 2")
    idle, busy = server.client(), server.client()
    idle.ask("/fast")
    busy.ask("/fast")
    for _ in range(8):
        time.sleep(0.5)
        assert busy.ask("/fast").where == "loop"
    assert seconds(idle.closed) < 0.1
    assert 1.5 < seconds(busy.closed) < 4


def test_no_more_connections_are_kept_than_allowed(start: Callable[..., Server]) -> None:
    server = start("worker_connections = 4")  # of which two are for the pool's threads
    clients = [server.client() for _ in range(3)]
    assert [client.ask("/fast").closes for client in clients] == [False, False, True]
    assert clients[0].ask("/fast").closes is False


def test_a_worker_that_has_answered_enough_is_replaced(start: Callable[..., Server]) -> None:
    server = start("max_requests = 5")
    client = server.client()
    answers = [client.ask("/fast") for _ in range(5)]
    assert [answer.closes for answer in answers] == [False] * 4 + [True]
    client.sock.close()
    assert server.pid() != int(answers[0].words[-1])


def test_the_end_is_told_first_and_nothing_delays_it(start: Callable[..., Server]) -> None:
    server = start()
    kept, idle, silent = server.client(), server.client(), server.client()
    assert kept.ask("/fast").words[4] == idle.ask("/fast").words[4] == "False"
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    last = kept.ask("/fast")
    assert (last.where, last.words[4], last.closes) == ("loop", "True", True)
    fresh = server.client().ask("/fast")
    assert (fresh.where, fresh.words[4], fresh.closes) == ("loop", "True", True)
    late = server.client()
    late.send("/slow-sleep?1.5")
    assert late.answer().closes
    assert idle.closed()
    assert seconds(silent.closed) < 5
    for client in server.clients:
        client.sock.close()
    assert seconds(lambda: server.process.wait(10)) < 5
    assert server.process.returncode == 0


def test_a_loop_that_answers_all_the_time_is_alive(start: Callable[..., Server]) -> None:
    server = start("timeout = 2")
    client, until = server.client(), time.monotonic() + 4
    pids = set()
    while time.monotonic() < until:
        pids.add(client.ask("/fast-sleep?0.01").words[-1])
    assert len(pids) == 1


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/fast-boom", "/slow-boom"])
def test_an_exception_is_answered_and_the_worker_goes_on(server: Server, path: str) -> None:
    before, client = server.pid(), server.client()
    assert client.ask(path).status == 500
    assert client.closed()
    assert server.pid() == before


def test_an_answer_that_breaks_off_halfway_does_not_look_whole(server: Server) -> None:
    before = server.pid()
    with pytest.raises(http.client.IncompleteRead):
        server.client().ask("/slow-half")
    assert server.client().ask("/fast-half").status == 500  # nothing was sent yet
    assert server.pid() == before


def test_a_request_that_is_refused_closes_the_connection(server: Server) -> None:
    client = server.client()
    assert client.ask("/fast", headers="No Header: 1\r\n").status == 400
    assert client.closed()


def test_an_answer_without_a_length_comes_whole(server: Server) -> None:
    client = server.client()
    assert client.ask("/fast-chunked").words[:3] == ["loop", "POST", "/fast-chunked"]
    assert client.ask("/fast").where == "loop"


# --- gunicorn's insides ----------------------------------------------------------------------------------------------


def test_this_gunicorn_is_familiar() -> None:
    assert unfamiliar() == []
    assert issubclass(InlineWorker, ThreadWorker)


def test_a_changed_gunicorn_is_told_by_name() -> None:
    class Worker:
        def __init__(self) -> None:
            self.keepalived_conns = self.nr_conns = self.poller = self.tpool = self.method_queue = None

        run, accept = ThreadWorker.run, ThreadWorker.accept
        handle_error, enqueue_req = ThreadWorker.handle_error, ThreadWorker.enqueue_req
        on_client_socket_readable = ThreadWorker.on_client_socket_readable
        wait_for_and_dispatch_events = ThreadWorker.wait_for_and_dispatch_events
        murder_pending = ThreadWorker.murder_pending

        def finish_request(self, conn: Any) -> None:
            """Without the future."""

    class Connection:
        def __init__(self) -> None:
            self.sock = self.timeout = self.initialized = self.client = self.data_ready = None

        init, close = TConn.init, TConn.close

    assert unfamiliar(Worker) == ["finish_request", "on_pending_socket_readable", "pending_conns"]
    assert unfamiliar(connection=Connection) == ["parser", "server", "set_timeout"]

"""What answers behind a port-forward: the service as the live revision would play it, and as the world breaks it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stubs.cluster import Cluster, image_of
from stubs.state import WORLD, option, refuse

DIGEST = "sha256:" + "c1" * 32
GOLDEN = {"predictions": [{"class_name": "setosa"}, {"class_name": "virginica"}]}


def played():
    """(commit of the image that answers, what is broken in it); None if no pod is ready."""
    cluster = Cluster(WORLD)
    ready = [r for r in WORLD["revisions"] if r["ready"]]
    if not ready:
        return None
    if WORLD["terminating"] > 0:
        WORLD["terminating"] -= 1
        return "of-the-old-pod", ""
    live = cluster.live()
    image = image_of((live if live["ready"] else ready[0])["template"])
    pushed = {f"{ref.rpartition(':')[0]}@{image['digest']}": image for ref, image in WORLD["registry"].items()}
    known = {**WORLD["images"], **pushed}
    return known.get(image, {}).get("commit", "unknown"), WORLD["broken"] if WORLD["broken_image"] in image else ""


class Service(BaseHTTPRequestHandler):
    commit, broken, port = "", "", ""

    def log_message(self, *_):
        pass

    def answer(self, code, body):
        body = body if isinstance(body, str) else json.dumps(body, separators=(",", ":"))
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self):
        if WORLD["drops"] > 0:
            WORLD["drops"] -= 1
            return self.connection.close()
        if self.path == "/readyz":
            return self.answer(503 if self.broken == "readyz" else 200, {"ready": True})
        if self.path == "/metrics" and self.port == "9100":
            digest = "other" if self.broken == "metrics" else DIGEST
            return self.answer(
                200, f'# HELP\nml_model_info{{alias="champion",digest="{digest}",model="iris",version="1"}} 1.0\n'
            )
        if self.path == "/model/info":
            commit = "another" if self.broken == "commit" else self.commit
            digest = None if self.broken == "info" else DIGEST
            info = {"name": "iris", "version": "1", "digest": digest, "service": {"version": "1.0.0", "commit": commit}}
            return self.answer(200, info)
        return self.answer(404, {"error": self.path})

    def do_POST(self):
        request = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path != "/predict" or self.headers["Content-Type"] != "application/json":
            return self.answer(404, {"error": self.path})
        if '"long"' in request:
            return self.answer(200 if self.broken == "bad" else 400, {"error": "not a number"})
        return self.answer(200, {"predictions": []} if self.broken == "golden" else GOLDEN)


def forward(argv: list[str]) -> ThreadingHTTPServer:
    """kubectl's words, and a server that answers until it is stopped."""
    resource, port = argv[-2], argv[-1].lstrip(":")
    about = played()
    if about is None:
        refuse("error: unable to forward port because pod is not running. Current status=Pending")
    commit, broken = about
    handler = type("Handler", (Service,), {"commit": commit, "broken": broken, "port": port})
    server = ThreadingHTTPServer((option(argv, "--address", "localhost"), 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    print(f"Forwarding from 127.0.0.1:{server.server_port} -> {'9100' if resource.startswith('pod/') else '5000'}")
    return server

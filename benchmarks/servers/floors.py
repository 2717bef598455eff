"""What is left when nothing is done: an empty WSGI application, and an empty Flask route."""

from flask import Flask, request

flask_app = Flask(__name__, static_folder=None)


def wsgi_app(environ, start_response):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
    return [b"{}"]


@flask_app.post("/predict")
def empty():
    request.get_data(cache=False)
    return b"{}", 200, {"Content-Type": "application/json"}

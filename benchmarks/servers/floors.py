"""What is left when nothing is done: an empty WSGI application, and an empty Flask route.

Both wait for a thread, as any application does under gunicorn. `loop_app` is the Flask route on this service's loop.
"""

from flask import Flask, request

flask_app, loop_app = Flask(__name__, static_folder=None), Flask(__name__, static_folder=None)
loop_app.extensions["cheap"] = lambda *_: True


def wsgi_app(environ, start_response):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
    return [b"{}"]


@loop_app.post("/predict")
@flask_app.post("/predict")
def empty():
    request.get_data(cache=False)
    return b"{}", 200, {"Content-Type": "application/json"}

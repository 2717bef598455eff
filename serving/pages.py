"""``/docs`` (Swagger UI) and ``/redoc``, made of files that come with the service: nothing is asked of another host.

The scripts are those of the packages flask-openapi3-swagger and flask-openapi3-redoc, found on disk and never
imported; their pages are ours, because theirs have scripts inside, which the policy here forbids.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from flask import Blueprint, Response, request

from serving.errors import ServingError

SWAGGER, REDOC = "flask_openapi3_swagger", "flask_openapi3_redoc"
MAX_AGE_S = 3600
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # both pages write styles while they run
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src blob:",  # Redoc's search
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{icon}">
<link rel="stylesheet" href="assets/{style}">
</head>
<body>
<div id="page"></div>
<script src="assets/{script}"></script>
<script src="assets/{start}"></script>
</body>
</html>
"""
ICON = "data:,"  # none

START_SWAGGER = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  queryConfigEnabled: false,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""
START_REDOC = """Redoc.init("openapi.json", {
  hideDownloadButton: false,
  nativeScrollbars: true,
  theme: {typography: {fontFamily: "sans-serif", headings: {fontFamily: "sans-serif"}}},
}, document.getElementById("page"));
"""
STYLE = "body { margin: 0; }\n"
LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"  # the only address that Redoc itself would load from


class PageMissing(ServingError):
    """The package with the page's files is not installed."""

    status = 404
    code = "not_installed"


class Asset(NamedTuple):
    """A file of the pages: text of our own, or a file of a package."""

    mimetype: str
    package: str = ""
    place: str = ""
    text: str = ""


SCRIPT, CSS = "text/javascript", "text/css"
ASSETS = {
    "swagger-ui.js": Asset(SCRIPT, SWAGGER, "templates/swagger/js/swagger-ui-bundle.js"),
    "swagger-ui.css": Asset(CSS, SWAGGER, "templates/swagger/css/swagger-ui.css"),
    "redoc.js": Asset(SCRIPT, REDOC, "templates/redoc/js/redoc.standalone.js"),
    "redoc.svg": Asset("image/svg+xml", REDOC, "templates/redoc/images/redoc.svg"),
    "start-swagger.js": Asset(SCRIPT, text=START_SWAGGER),
    "start-redoc.js": Asset(SCRIPT, text=START_REDOC),
    "page.css": Asset(CSS, text=STYLE),
}


def blueprint() -> Blueprint:
    """Flask's routes to the pages and to their files."""
    bp = Blueprint("pages", __name__)
    swagger = {"title": "API", "icon": ICON, "style": "swagger-ui.css", "script": "swagger-ui.js"}
    redoc = {"title": "API", "icon": ICON, "style": "page.css", "script": "redoc.js"}
    pages = {
        "/docs": PAGE.format(**swagger, start="start-swagger.js"),
        "/redoc": PAGE.format(**redoc, start="start-redoc.js"),
    }

    @bp.get("/docs")
    def docs() -> Response:
        return _sent(pages["/docs"].encode(), "text/html", 0)

    @bp.get("/redoc")
    def redoc_page() -> Response:
        return _sent(pages["/redoc"].encode(), "text/html", 0)

    @bp.get("/assets/<name>")
    def asset(name: str) -> Response:
        if name not in ASSETS:
            raise PageMissing("there is no such file")
        return _sent(content(ASSETS[name]), ASSETS[name].mimetype, MAX_AGE_S)

    return bp


def content(asset: Asset) -> bytes:
    """What the file holds. Raises `PageMissing`."""
    if not asset.package:
        return asset.text.encode()
    spec = find_spec(asset.package)
    if spec is None or not spec.submodule_search_locations:
        raise PageMissing(f"{asset.package} is not installed, so this page is not there")
    data = (Path(spec.submodule_search_locations[0]) / asset.place).read_bytes()
    return data.replace(LOGO, b"assets/redoc.svg")


def _sent(data: bytes, mimetype: str, max_age_s: int) -> Response:
    response = Response(data, mimetype=mimetype)
    response.headers.update(HEADERS)
    response.headers["Cache-Control"] = f"public, max-age={max_age_s}" if max_age_s else "no-cache"
    response.add_etag()
    response.make_conditional(request)
    del response.headers["Date"]  # the server has one
    return response

"""The document says what there is: every route, typed by what is live, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator
from samples import CLASS_NAMES

from serving import openapi, pages
from serving.live import Live
from serving.openapi import types
from serving.openapi.models import Model, keyed
from serving.tensors import Field, Signature

POSTS = {
    "/predict",
    "/models/{model}/predict",
    "/models/{model}/versions/{version}/predict",
    "/invocations",
    "/models/{model}/invocations",
    "/models/{model}/versions/{version}/invocations",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}/infer",
}


@pytest.fixture(params=["app", "texts_app"])
def served(request: pytest.FixtureRequest) -> Flask:
    found: Flask = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def content(served: Flask) -> dict[str, Any]:
    return document(served.test_client())


def document(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.get_json()
    return found


def operations(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in content["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def check(content: dict[str, Any], schema: dict[str, Any], instance: Any) -> list[str]:
    """What is wrong with ``instance`` by a schema of the document."""
    whole = {**schema, "components": content["components"]}
    return [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(instance)]


# --- the document ----------------------------------------------------------------------------------------------------


def test_it_is_openapi(content: dict[str, Any]) -> None:
    assert content["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(content).iter_errors()) == []


def test_it_has_every_route_and_no_other(served: Flask, content: dict[str, Any]) -> None:
    rules = {
        (rule.rule.replace("<", "{").replace(">", "}"), method.lower())
        for rule in served.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(content)} == rules


def test_operations_are_called_by_one_name_each(content: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(content)]
    assert len(set(names)) == len(names)


def test_every_answer_says_its_headers(content: dict[str, Any]) -> None:
    for path, method, operation in operations(content):
        for status, response in operation["responses"].items():
            shared = content["components"]["responses"].get(response.get("$ref", "").rpartition("/")[2])
            whole = shared or response
            assert "X-Request-Id" in whole["headers"], (path, method, status)


def test_every_component_is_used(content: dict[str, Any]) -> None:
    text = str(content)
    for kind, parts in content["components"].items():
        unused = [name for name in parts if f"'#/components/{kind}/{name}'" not in text]
        assert [name for name in unused if not name.startswith(("MlflowError", "V2Error", "OpenaiError"))] == []


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/predict", "Error"),
        ("/invocations", "MlflowError"),
        ("/v2/models/{model}/infer", "V2Error"),
        ("/v1/embeddings", "OpenaiError"),
    ],
)
def test_each_protocol_has_its_own_errors(content: dict[str, Any], path: str, shape: str) -> None:
    responses = content["paths"][path]["post"]["responses"]
    for status in ("400", "404", "413", "415", "500", "503", "504"):
        assert responses[status] == {"$ref": f"#/components/responses/{shape}{status}"}
        response = content["components"]["responses"][f"{shape}{status}"]
        assert response["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{shape}"}
        assert ("Retry-After" in response["headers"]) == (status == "503")


# --- what it says holds ----------------------------------------------------------------------------------------------


def examples(content: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    for path, _, operation in operations(content):
        for kind, media in operation.get("requestBody", {}).get("content", {}).items():
            for name, example in media.get("examples", {}).items():
                yield path, kind, name, example["value"]


def test_every_example_is_answered_and_the_answer_is_as_described(served: Flask, content: dict[str, Any]) -> None:
    client, seen = served.test_client(), set()
    for path, kind, name, value in examples(content):
        if path == "/feedback":
            continue
        model = name.partition(":")[0]
        versions = {"iris": "1", "prices": "7", "texts": "3"}
        filled = path.replace("{model}", model).replace("{version}", versions[model])
        body = {"data": value, "content_type": kind} if isinstance(value, str) else {"json": value}
        answer = client.post(filled, **body)
        assert answer.status_code == 200, (path, name, answer.text)
        operation = content["paths"][path]["post"]
        assert check(content, operation["requestBody"]["content"][kind]["schema"], value) == []
        described = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert check(content, described, answer.get_json()) == [], (path, name)
        seen.add((path, kind))
    of_texts = {"/v1/embeddings"} if "texts.Request" in content["components"]["schemas"] else set()
    assert {path for path, _ in seen} == POSTS | of_texts
    assert ("/invocations", "text/csv") in seen


@pytest.mark.parametrize(
    "path",
    ["/livez", "/readyz", "/health", "/models", "/model/info", "/model/drift", "/v1/models", "/v2", "/v2/health/ready"],
)
def test_what_is_read_is_as_described(content: dict[str, Any], served: Flask, path: str) -> None:
    answer = served.test_client().get(path)
    schema = content["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer.status_code == 200
    assert check(content, schema, answer.get_json()) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"features": "x"}),
        ("/invocations", {"instances": 1}),
        ("/v2/models/iris/infer", {"inputs": 1}),
        ("/v1/embeddings", {"input": 1}),
        ("/feedback", {}),
        ("/nothing", {}),
    ],
)
def test_errors_are_as_described(content: dict[str, Any], served: Flask, path: str, body: Any) -> None:
    shapes = {"/invocations": "MlflowError", "/v2/models/iris/infer": "V2Error", "/v1/embeddings": "OpenaiError"}
    answer = served.test_client().post(path, json=body)
    assert answer.status_code in (400, 404)
    assert check(content, content["components"]["schemas"][shapes.get(path, "Error")], answer.get_json()) == []


# --- types -----------------------------------------------------------------------------------------------------------


def test_columns_have_their_names_and_types(client: FlaskClient) -> None:
    row = document(client)["components"]["schemas"]["prices.Row"]
    listed, named = row["anyOf"]
    assert [one["title"] for one in listed["prefixItems"]] == ["town", "rooms", "area", "garden", "year"]
    kinds = {name: kind["type"] for name, kind in named["properties"].items()}
    assert kinds == {
        "town": "string",
        "rooms": "integer",
        "area": "number",
        "garden": "boolean",
        "year": ["number", "null"],
    }
    assert named["required"] == ["town", "rooms", "area", "garden"]


def test_answers_name_the_classes(client: FlaskClient) -> None:
    content = document(client)
    one = content["components"]["schemas"]["iris.Answer"]["anyOf"][0]
    assert one["properties"]["prediction"]["properties"]["class_name"]["enum"] == list(CLASS_NAMES)
    assert list(one["properties"]["probabilities"]["properties"]) == list(CLASS_NAMES)


def test_models_are_described_each(client: FlaskClient) -> None:
    content = document(client)
    model = content["paths"]["/models/{model}/predict"]["post"]["parameters"][0]
    assert model["schema"]["enum"] == ["iris", "prices"]
    asked = content["paths"]["/models/{model}/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert [one["$ref"].rpartition("/")[2] for one in asked["anyOf"]] == ["iris.Request", "prices.Request"]
    first = content["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert first == {"$ref": "#/components/schemas/iris.Request"}


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (Field("x", "double"), [1, 1.5], ["a", None, True]),
        (Field("x", "double", False), [1.5, None], ["a"]),
        (Field("x", "integer"), [2**31 - 1, 5.0], [2**31, 5.5, "5"]),
        (Field("x", "long"), [-(2**63)], [2**63]),
        (Field("x", "uint8"), [255], [256, -1]),
        (Field("x", "boolean"), [True], [1, "true"]),
        (Field("x", "string"), ["a"], [1]),
        (Field("x", "str"), ["a"], [1]),
        (Field("x", "binary"), ["YQ=="], [1]),
        (Field("x", "datetime"), ["2026-01-01T00:00:00Z"], [1]),
        (Field("x", "any"), [1, "a", None, [1]], []),
        (Field("x", "float32", True, (2, -1)), [[[1, 2], [3]]], [[[1]], [1, 2], 1]),
    ],
)
def test_values(field: Field, good: list[Any], bad: list[Any]) -> None:
    validator = jsonschema.Draft202012Validator(types.value(field))
    assert [value for value in good if not validator.is_valid(value)] == []
    assert [value for value in bad if validator.is_valid(value)] == []


@pytest.mark.parametrize(
    ("signature", "good", "bad"),
    [
        (Signature("tensors", (Field("x", "float64", True, (2,)),)), [[1, 2], {"x": [1, 2]}], [[1], {"y": [1, 2]}]),
        (
            Signature("tensors", (Field("a", "float64", True, (1,)), Field("b", "str"))),
            [{"a": [1], "b": "t"}],
            [[1], {"a": [1]}],
        ),
        (Signature("unknown", ()), [[1, "a"], {"x": 1}], [[], {}]),
        (
            Signature("columns", tuple(Field(str(n), "double" if n else "string") for n in range(40))),
            [["a", *range(39)]],
            [["a"]],
        ),
    ],
)
def test_rows(signature: Signature, good: list[Any], bad: list[Any]) -> None:
    validator = jsonschema.Draft202012Validator(types.row(signature))
    assert [row for row in good if not validator.is_valid(row)] == []
    assert [row for row in bad if validator.is_valid(row)] == []


def test_a_model_that_is_not_live_has_no_types(client: FlaskClient) -> None:
    content = openapi.document([Model("later", "later", None)], pages.ASSETS, "1")
    assert list(OpenAPIV31SpecValidator(deepcopy(content)).iter_errors()) == []
    schemas = content["components"]["schemas"]
    assert "later.Row" not in schemas
    assert schemas["later.Request"]["properties"]["features"]["type"] == ["array", "object"]
    assert [path for path, *_ in examples(content)] == ["/feedback"]


@pytest.mark.parametrize(
    "signature",
    [
        Signature("columns", (Field("input", "string"), Field("when", "datetime", False))),
        Signature("tensors", (Field("image", "uint8", True, (-1, -1, 3)), Field("name", "str"))),
        Signature("unknown", (), "none"),
        Signature("columns", tuple(Field(f"c{n}", "float") for n in range(300))),
        Signature("columns", (Field("what/is {this}", "any"),)),
    ],
)
def test_any_signature_makes_a_document(app: Flask, signature: Signature) -> None:
    live = app.extensions["service"].store.live("iris")
    bundle = replace(live.bundle, name="a/b c", signature=signature, outputs=(), example=None)
    bundle = replace(bundle, pyfunc={"params": [{"name": "k", "type": "long", "default": 1, "shape": None}]})
    content = openapi.document([Model("a/b c", *keyed(["a/b c"]), bundle, text=True)], pages.ASSETS, "1")
    assert list(OpenAPIV31SpecValidator(content).iter_errors()) == []


def test_names_that_look_alike_are_kept_apart() -> None:
    assert keyed(["a b", "a/b", "c"]) == ["a_b_0", "a_b_1", "c"]


# --- as time goes by -------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Live:
    """Another version of iris, with a column more; live while the test runs."""
    live: Live = app.extensions["service"].store.live("iris")
    inputs = (*live.bundle.signature.inputs, Field("stem length (cm)", "double", False))
    other = replace(live, bundle=replace(live.bundle, version="2", signature=Signature("columns", inputs)))
    return other


def test_it_changes_with_the_signature(app: Flask, changed: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    client, store = app.test_client(), app.extensions["service"].store
    before = client.get("/openapi.json")
    monkeypatch.setitem(store._live, "iris", changed)
    after = client.get("/openapi.json")
    assert before.headers["ETag"] != after.headers["ETag"]
    assert "stem length (cm)" not in before.text
    assert "stem length (cm)" in after.text
    monkeypatch.undo()
    assert client.get("/openapi.json").data == before.data


def test_it_is_made_once_for_each_set_of_versions(app: Flask, changed: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    service, made = app.extensions["service"], []
    documents = openapi.Documents(service, lambda _: False, pages.ASSETS)
    real = documents._document
    monkeypatch.setattr(documents, "_document", lambda lives: made.append(lives) or real(lives))
    assert documents.current() is documents.current()
    assert len(made) == 1
    monkeypatch.setitem(service.store._live, "iris", changed)
    documents.current()
    assert documents.current().lives[0] is changed
    assert len(made) == 2


def test_whoever_has_it_is_told_so(client: FlaskClient) -> None:
    first = client.get("/openapi.json")
    again = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["X-Request-Id"]


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_is_made_of_our_files_only(client: FlaskClient, path: str) -> None:
    page = client.get(path)
    assert (page.status_code, page.mimetype) == (200, "text/html")
    assert "http" not in page.text
    assert "<script>" not in page.text
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    parts = [part.split('"')[0] for part in page.text.split('"assets/')[1:]]
    assert len(parts) == 3
    for part in parts:
        assert client.get(f"/assets/{part}").status_code == 200


@pytest.mark.parametrize("name", sorted(pages.ASSETS))
def test_files_may_be_kept(client: FlaskClient, name: str) -> None:
    first = client.get(f"/assets/{name}")
    assert first.headers["Cache-Control"] == f"public, max-age={pages.MAX_AGE_S}"
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    again = client.get(f"/assets/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("name", ["nothing.js", "..%2F..%2Fapp.py", "../app.py", "%2Fetc%2Fpasswd"])
def test_there_are_no_other_files(client: FlaskClient, name: str) -> None:
    assert client.get(f"/assets/{name}").status_code == 404


def test_redoc_loads_nothing_from_elsewhere(client: FlaskClient) -> None:
    assert b"cdn.redoc.ly" not in client.get("/assets/redoc.js").data
    assert b"assets/redoc.svg" in client.get("/assets/redoc.js").data


def test_a_page_whose_package_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pages.PageMissing, match="not installed"):
        pages.content(pages.Asset("text/javascript", "no_such_package", "x.js"))

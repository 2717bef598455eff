"""OpenAI's own client against a service with two workers."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from harness import Running
from published import published
from texts import ENDLESS, EXAMPLE, WORDS


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with published(tmp_path_factory.mktemp("openai")) as running:
        yield running


@pytest.fixture
def client(service: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none", max_retries=0)


def expected(text: str) -> np.ndarray:
    counts = np.array([text.split().count(word) for word in WORDS]) + 0.125
    return np.asarray(counts / np.linalg.norm(counts), dtype=np.float32)


def test_one_text(client: openai.OpenAI) -> None:
    """The client asks for base64 by itself, and gives floats."""
    got = client.embeddings.create(input="petal and leaf", model="texts")
    np.testing.assert_allclose(got.data[0].embedding, expected("petal and leaf"), rtol=1e-6)
    assert (got.object, got.model, got.data[0].index) == ("list", "texts", 0)
    assert (got.usage.prompt_tokens, got.usage.total_tokens) == (3, 3)


def test_many_texts_in_both_encodings(client: openai.OpenAI) -> None:
    texts = [*EXAMPLE, *WORDS[:-1]]
    floats = client.embeddings.create(input=texts, model="texts", encoding_format="float")
    encoded = client.embeddings.create(input=texts, model="texts", encoding_format="base64")
    assert [one.index for one in floats.data] == list(range(len(texts)))
    for text, plain, packed in zip(texts, floats.data, encoded.data, strict=True):
        assert isinstance(packed.embedding, str)
        unpacked = np.frombuffer(base64.b64decode(packed.embedding), "<f4")
        np.testing.assert_array_equal(np.float32(plain.embedding), unpacked)
        np.testing.assert_allclose(unpacked, expected(text), rtol=1e-6)


def test_every_worker_answers_alike(client: openai.OpenAI) -> None:
    got = {str(client.embeddings.create(input="root", model="texts").data[0].embedding) for _ in range(40)}
    assert len(got) == 1
    assert len({model.created for _ in range(20) for model in client.models.list()}) == 1


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["texts"]
    assert client.models.retrieve("texts").owned_by == "registry"
    with pytest.raises(openai.NotFoundError) as err:
        client.models.retrieve("tulips")
    assert err.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("asked", "kind", "code", "param"),
    [
        ({"input": ""}, openai.BadRequestError, "invalid_input", "input"),
        ({"input": []}, openai.BadRequestError, "invalid_input", "input"),
        ({"input": [1, 2, 3]}, openai.BadRequestError, "invalid_input", "input"),
        ({"input": "a", "dimensions": 4}, openai.BadRequestError, "invalid_input", "dimensions"),
        ({"input": "a", "model": "iris"}, openai.BadRequestError, "invalid_input", "model"),
        ({"input": "a", "model": "tulips"}, openai.NotFoundError, "model_not_found", "model"),
        ({"input": ENDLESS}, openai.InternalServerError, "model_failed", None),
    ],
)
def test_errors_are_the_clients_own_classes(
    client: openai.OpenAI, asked: dict[str, object], kind: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    with pytest.raises(kind) as err:
        client.embeddings.create(**{"model": "texts", **asked})  # type: ignore[arg-type]
    assert (err.value.code, err.value.param) == (code, param)
    assert err.value.request_id


def test_what_the_service_does_not_offer_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as err:
        client.chat.completions.create(model="texts", messages=[{"role": "user", "content": "petal"}])
    assert err.value.code == "unknown_url"


def test_a_wrong_media_type_and_a_large_body_are_told_apart(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as err:
        client.embeddings.create(input="a", model="texts", extra_headers={"Content-Type": "text/plain"})
    assert (err.value.status_code, err.value.code) == (415, "unsupported_media_type")


def test_the_client_waits_as_long_as_it_is_told_and_asks_again(service: Running) -> None:
    """A model that is away for a moment: 503 with ``Retry-After``, which the client understands."""
    assert service.call("/v2/repository/models/texts/unload", {}).status == 200
    back = threading.Timer(1.0, service.call, ("/v2/repository/models/texts/load", {}))
    patient = openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none", max_retries=9)
    hasty = patient.with_options(max_retries=0)
    with pytest.raises(openai.InternalServerError) as err:
        hasty.embeddings.create(input="root", model="texts")
    assert (err.value.status_code, err.value.code) == (503, "model_not_ready")
    assert err.value.response.headers["Retry-After"] == "1"
    back.start()
    got = patient.embeddings.create(input="root", model="texts")
    back.join()
    np.testing.assert_allclose(got.data[0].embedding, expected("root"), rtol=1e-6)

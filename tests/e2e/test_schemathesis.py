"""Schemathesis asks every operation of the document, by its schemas and against them.

``SCHEMATHESIS_EXAMPLES`` is how many requests it sends in all, about; 300 without it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from harness import Running
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from published import published
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "300"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
UNLOAD = "/v2/repository/models/{model}/unload"  # after which 503 is right, everywhere
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with published(tmp_path_factory.mktemp("schemathesis")) as running:
        yield running


def test_no_answer_is_outside_the_document(service: Running) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{service.port}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    asked = [operation for operation in operations if operation.path != UNLOAD]
    assert len(asked) == len(operations) - 1
    statuses: Counter[int] = Counter()
    failures: dict[str, list[str]] = {}
    varied = [operation for operation in asked if operation.body or list(operation.iter_parameters())]
    share = -(-(EXAMPLES - (len(asked) - len(varied))) // len(varied))  # what takes nothing is asked once
    for operation in asked:
        failures |= failures_of(operation, share, statuses)
    print(f"{sum(statuses.values())} requests to {len(asked)} operations: {dict(sorted(statuses.items()))}")
    assert failures == {}
    assert {200, 400, 404} <= statuses.keys()
    assert service.call("/readyz").status == 200


def failures_of(operation: Any, examples: int, statuses: Counter[int]) -> dict[str, list[str]]:
    """What the checks found wrong with the answers of one operation; each answer's status is counted."""
    wrong: list[str] = []
    modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @seed(7)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(modes))
    def ask(case: Any) -> None:
        response = case.call(timeout=TIMEOUT_S)
        statuses[response.status_code] += 1
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as err:  # the rest of the examples is asked all the same
            wrong.append(str(err))

    try:
        ask()
    except Exception as err:
        wrong.append(f"{type(err).__name__}: {err}")
    return {operation.label: wrong[:3]} if wrong else {}


def test_an_answer_outside_the_document_is_found(service: Running) -> None:
    """The checks check: of a document that says something else, each answer is a failure."""
    content = service.call("/openapi.json").json
    document = {**content, "paths": {"/livez": content["paths"]["/livez"], "/v2": content["paths"]["/v2"]}}
    alive = document["paths"]["/livez"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    alive["properties"]["status"]["const"] = "dead"
    del document["paths"]["/v2"]["get"]["responses"]["200"]
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=f"http://127.0.0.1:{service.port}")
    found = [failures_of(operation.ok(), 1, Counter()) for operation in schema.get_all_operations()]
    assert [list(failures) for failures in found] == [["GET /livez"], ["GET /v2"]]

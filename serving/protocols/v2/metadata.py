"""What the service and its models say of themselves."""

from __future__ import annotations

from typing import Any

from serving.bundle import Bundle
from serving.protocols.v2.datatypes import of_field
from serving.service import Service
from serving.tensors import Field, Signature

NAME = "mlflow-live"
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "parameters")
PLATFORMS = {"onnx": "onnx_onnxruntime", "sklearn": "sklearn", "compiled": "sklearn", "pyfunc": "mlflow_pyfunc"}
ANYTHING = {"name": "input", "datatype": "FP64", "shape": [-1, -1]}  # rows for a model that says nothing of its input


def server(service: Service) -> dict[str, Any]:
    """``GET /v2``."""
    return {"name": NAME, "version": service.build.version or "unknown", "extensions": list(EXTENSIONS)}


def model(bundle: Bundle) -> dict[str, Any]:
    """``GET /v2/models/<model>``: a column is a tensor of one axis, and each tensor's first axis is the row."""
    return {
        "name": bundle.name,
        "versions": [bundle.version],
        "platform": PLATFORMS[bundle.runtime],
        "inputs": _inputs(bundle.signature),
        "outputs": [_tensor(field) for field in bundle.outputs],
    }


def index(service: Service, *, ready: bool) -> list[dict[str, Any]]:
    """``POST /v2/repository/index``: what is live, and what is not with the reason; only the former if ``ready``."""
    found = []
    for name in service.store.names:
        found += _states(service, name)
    return [state for state in found if state["state"] == "READY"] if ready else found


def _states(service: Service, name: str) -> list[dict[str, Any]]:
    """The model's own line, and one for a version that was refused while it is live."""
    known = service.known(name)
    refused = [_state(name, one["version"], "UNAVAILABLE", one["message"]) for one in (known.refused,) if one]
    if known.version is not None:
        return [_state(name, known.version, "READY"), *refused]
    if known.unloaded:
        return [_state(name, None, "UNAVAILABLE", "unloaded")]
    if refused:
        return refused
    return [_state(name, None, "UNAVAILABLE", known.error) if known.error else _state(name, None, "LOADING")]


def _state(name: str, version: str | None, state: str, reason: str = "") -> dict[str, Any]:
    versioned = {} if version is None else {"version": version}
    return {"name": name, **versioned, "state": state, "reason": reason}


def _inputs(signature: Signature) -> list[dict[str, Any]]:
    if signature.layout == "unknown":
        return [dict(ANYTHING)]
    return [_input(signature, field) for field in signature.inputs]


def _input(signature: Signature, field: Field) -> dict[str, Any]:
    tensor = _tensor(field)
    if signature.layout == "columns" and field.type == "any" and signature.origin == "inferred":
        tensor["datatype"] = "FP64"  # its model knows only names, and most take numbers
    optional = signature.layout == "columns" and not field.required
    return {**tensor, "parameters": {"optional": True}} if optional else tensor


def _tensor(field: Field) -> dict[str, Any]:
    return {"name": field.name, "datatype": of_field(field), "shape": [-1, *field.shape]}

"""Export: a torch module as an ONNX graph, and that graph in int8."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

OPSET = 17  # every operator of these models is in it, and every ONNX Runtime of the last years knows it


def export(
    module: Any, example: Mapping[str, Any], output: str, into: Path, *, free: Mapping[str, dict[int, str]]
) -> None:
    """Write ``module`` as a graph whose inputs are named as in ``example``.

    ``free`` names the axes of inputs and output that may have any length. The exporter that traces is used: its graph
    is as good for these models as the newer one's, and done in seconds.
    """
    import torch

    with _quietly(), torch.inference_mode():
        torch.onnx.export(
            module.eval(),
            tuple(example.values()),
            str(into),
            input_names=list(example),
            output_names=[output],
            dynamic_axes=dict(free),
            opset_version=OPSET,
            dynamo=False,
        )


def quantise_texts(source: Path, into: Path) -> None:
    """Weights in int8, by channel; what comes in is quantised as it comes, with a scale of its own for every call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly():
        quantize_dynamic(source, into, per_channel=True, weight_type=QuantType.QInt8)


def quantise_pictures(source: Path, into: Path, calibration: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Weights in int8, by channel, and all in between in uint8 with the scales that ``calibration`` shows.

    Signed weights and unsigned activations are what processors have instructions for.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        rows = iter(calibration)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.rows, None)

    with _quietly(), TemporaryDirectory(prefix="quantise-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            into,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: it repeats itself to the bit, and fights nobody for cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Both exporters say on every path what they would rather have been asked."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

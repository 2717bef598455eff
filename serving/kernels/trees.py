"""Trees, routed and summed by ONNX Runtime: one ``TreeEnsemble`` (ai.onnx.ml 5) that adds leaves in the trees' order.

Its thresholds, leaf weights and sums are float64, which is what scikit-learn computes with. ``narrow`` rounds the input
to float32 first, as scikit-learn's trees do (those of histogram gradient boosting do not).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from serving.kernels import Table, block, kernel
from serving.kernels.columns import check_finite
from serving.kernels.graph import Run, run_of
from serving.kernels.masks import Masks

MANY_ROWS = 16  # from which on masks are faster


@kernel
class Trees:
    """Sums of leaves, of shape (rows, outputs). The proof reads ``features`` and ``thresholds``, those of all nodes."""

    graph: np.ndarray  # the ONNX model's bytes
    narrow: bool
    takes: str  # "finite" numbers, also "missing" ones, or "all"
    features: np.ndarray
    thresholds: np.ndarray
    masks: Masks | None = None  # another way for many rows, to the same bits

    @cached_property
    def _run(self) -> Run:
        return run_of(self.graph)

    def __call__(self, table: Table) -> np.ndarray:
        numbers = block(table)
        if self.narrow:
            with np.errstate(over="ignore"):
                numbers = numbers.astype(np.float32)
        if self.takes != "all":
            check_finite(numbers, missing_fit=self.takes == "missing")
        if self.masks is not None and len(numbers) >= MANY_ROWS:
            return self.masks(np.asarray(numbers, np.float64))
        sums: np.ndarray = self._run(["y"], {"x": np.ascontiguousarray(numbers, np.float64)}, None)[0]
        return sums

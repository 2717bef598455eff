"""Ways to the leaves: for each leaf of a model's trees, between which values a row's columns must lie to reach it.

Read off the compiled form. Splits by category set no bounds, so a leaf behind one may be missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

LESS_OR_EQUAL = 0  # of ai.onnx.ml 5

Bounds = dict[int, tuple[float, float]]  # column -> above the first, at most the second


def bounds(graph: bytes, at_most: int, random: np.random.Generator) -> Iterator[Bounds]:
    """One for each leaf of a ``TreeEnsemble``; of a larger one those of trees taken at random, ``at_most`` leaves."""
    nodes = _nodes(graph)
    found, before = 0, None
    roots = np.append(nodes["tree_roots"], len(nodes["nodes_splits"]))
    spans = list(zip(roots[:-1].tolist(), roots[1:].tolist(), strict=True))
    picked = set(range(len(spans)))
    if len(nodes["leaf_weights"]) > at_most:
        picked = set(
            random.permutation(len(spans))[: max(1, at_most * len(spans) // len(nodes["leaf_weights"]))].tolist()
        )
    for number, (start, end) in enumerate(spans):
        splits = nodes["nodes_splits"][start:end]
        if number not in picked or (before is not None and np.array_equal(before, splits)):
            continue  # a tree comes once for each output that its leaves add to
        before = splits
        for leaf in _descend(nodes, start):
            yield leaf
            found += 1
            if found >= at_most:
                return


def _descend(nodes: dict[str, Any], root: int) -> Iterator[Bounds]:
    todo: list[tuple[int, Bounds]] = [(root, {})]
    while todo:
        node, above = todo.pop()
        feature, split = int(nodes["nodes_featureids"][node]), float(nodes["nodes_splits"][node])
        low, high = above.get(feature, (-np.inf, np.inf))
        ways = {"true": above, "false": above}
        if nodes["nodes_modes"][node] == LESS_OR_EQUAL:
            ways = {
                "true": above | {feature: (low, min(high, split))},
                "false": above | {feature: (max(low, split), high)},
            }
        for side, way in ways.items():
            if nodes[f"nodes_{side}leafs"][node]:
                yield way
            else:
                todo.append((int(nodes[f"nodes_{side}nodeids"][node]), way))


def _nodes(graph: bytes) -> dict[str, Any]:
    """The attributes of the graph's one node."""
    import onnx

    (node,) = onnx.load_from_string(graph).graph.node
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {
        name: onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        for name, value in given.items()
    }


def inside(low: float, high: float, *, whole: bool) -> float | None:
    """A number above ``low`` and at most ``high`` that float32 holds too, where there is one; ``whole``: an integer."""
    if low == -np.inf and high == np.inf:
        return None
    if low == -np.inf:
        middle = high - 0.1 * max(1.0, abs(high))
    elif high == np.inf:
        middle = low + 0.1 * max(1.0, abs(low))
    else:
        middle = low + (high - low) / 2
    choices = [float(np.floor(high)), float(np.floor(low) + 1)] if whole else []
    narrow = np.float32(high)
    choices += [float(np.float32(middle)), float(narrow), float(np.nextafter(narrow, np.float32(-np.inf))), high]
    return next((value for value in choices if low < value <= high and np.isfinite(value)), None)

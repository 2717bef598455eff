"""Small trees → `Masks`, for requests of many rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np

from serving.kernels.masks import Masks

LEAF = -1
TYPES = (np.uint8, np.uint16, np.uint32, np.uint64)
WIDEST = 4  # outputs at once
MOST_FEATURES = 16  # masks cost by the number of features, routing by the depth of trees: measured, they meet at 30


def masks(trees: list[Any]) -> Masks | None:
    """The masks of ``trees`` (`compile.trees.Tree`), or None where routing serves many rows better."""
    if any(tree.members for tree in trees):
        return None
    leaves = max(int((tree.left == LEAF).sum()) for tree in trees)
    dtype = next((kind for kind in TYPES if leaves <= np.dtype(kind).itemsize * 8), None)
    features = np.unique(np.concatenate([tree.feature[tree.left != LEAF] for tree in trees]))
    if dtype is None or not len(features) or len(features) > MOST_FEATURES:
        return None
    orders, spans = zip(*map(_spans, trees), strict=True)
    thresholds, tables = [], []
    for feature in features:
        own, table = _table(trees, spans, int(feature), dtype)
        thresholds.append(own)
        tables.append(table)
    members, weights, widths = zip(*_weights(trees, orders, leaves), strict=True)
    return Masks(features, tuple(thresholds), tuple(tables), members, weights, widths, leaves)


def _spans(tree: Any) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """The leaves from left to right, and which of them lie below each node."""
    order: list[int] = []
    spans: dict[int, tuple[int, int]] = {}
    starts: dict[int, int] = {}
    todo = [(0, False)]
    while todo:
        node, done = todo.pop()
        if done:
            spans[node] = (starts[node], len(order))
            continue
        starts[node] = len(order)
        if tree.left[node] == LEAF:
            order.append(node)
            continue
        todo += [(node, True), (int(tree.right[node]), False), (int(tree.left[node]), False)]
        # The last in is the first out: the left child, then the right one, then the node itself again.
    spans.update({node: (place, place + 1) for place, node in enumerate(order)})
    return order, spans


def _table(trees: list[Any], spans: Any, feature: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    nodes = [
        (float(tree.threshold[node]), number, int(node))
        for number, tree in enumerate(trees)
        for node in np.flatnonzero((tree.left != LEAF) & (tree.feature == feature))
    ]
    thresholds = np.unique([threshold for threshold, _, _ in nodes])
    full = np.iinfo(dtype).max
    table = np.full((len(thresholds) + 2, len(trees)), full, dtype)
    for threshold, number, node in nodes:
        start, end = spans[number][int(trees[number].left[node])]
        mask = dtype(full ^ (((1 << (end - start)) - 1) << start))
        place = int(np.searchsorted(thresholds, threshold))
        table[place + 1 : -1, number] &= mask
        if not trees[number].missing_left[node]:
            table[-1, number] &= mask
    return thresholds, table


def _weights(trees: list[Any], orders: Any, leaves: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """For outputs that the same trees add to: those trees, a column of leaves for each output, and how many there are.

    Zeros fill them up to one, two or four columns, which NumPy takes in one step.
    """
    outputs = range(trees[0].values.shape[1])
    for members, group in groupby(outputs, lambda output: _adding(trees, orders, output)):
        own = list(group)
        for start in range(0, len(own), WIDEST):
            together = own[start : start + WIDEST]
            table = np.zeros((len(members), leaves, next(width for width in (1, 2, 4) if width >= len(together))))
            for row, k in enumerate(members):
                table[row, : len(orders[k]), : len(together)] = trees[k].values[orders[k]][:, together]
            yield np.array(members, np.intp), table.reshape(-1, table.shape[2]), len(together)


def _adding(trees: list[Any], orders: Any, output: int) -> list[int]:
    """The trees that add anything to an output."""
    return [k for k, tree in enumerate(trees) if (tree.values[orders[k], output] != 0).any()] or [0]

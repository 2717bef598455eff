"""Many rows through small trees at once: QuickScorer (Lucchese et al., SIGIR 2015) in NumPy.

Every inner node that a value fails rules out the leaves on its left. So each value gives, by its place among its
feature's thresholds, one mask for each tree of the leaves that are still possible; the masks of a row's values together
leave exactly one lowest leaf, the one that the row reaches. The leaves are then added in the trees' order.
"""

from __future__ import annotations

import numpy as np

from serving.kernels import kernel

PIECE_ROWS = 256  # so that the masks of a piece stay in the processor's cache


@kernel
class Masks:
    """Sums of leaves, of shape (rows, outputs); for two rows or more, because NumPy adds up a single one pairwise.

    ``masks[k]`` is (thresholds + 2, trees): by the place of feature ``features[k]`` among ``thresholds[k]``, the last
    for a missing one. ``members[j]`` are the trees that add to output ``j``, and ``weights[j]`` their leaves.
    """

    features: np.ndarray
    thresholds: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    members: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    leaves: int

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        sums = np.empty((len(numbers), len(self.weights)))
        for start in range(0, len(numbers), PIECE_ROWS):
            self._add(numbers[start : start + PIECE_ROWS], sums[start : start + PIECE_ROWS])
        return sums

    def _add(self, numbers: np.ndarray, sums: np.ndarray) -> None:
        leaves = self._leaves(numbers).T
        for output, (members, weights) in enumerate(zip(self.members, self.weights, strict=True)):
            own = leaves if len(members) == len(leaves) else leaves[members]
            places = own + (np.arange(len(members), dtype=np.intp) * self.leaves)[:, None]
            terms = weights.take(places, mode="clip")
            sums[:, output] = np.add.reduce(terms, axis=0) if len(numbers) > 1 else np.add.accumulate(terms)[-1]

    def _leaves(self, numbers: np.ndarray) -> np.ndarray:
        """The number of the leaf that each row reaches in each tree."""
        left: np.ndarray | None = None
        for feature, thresholds, masks in zip(self.features, self.thresholds, self.masks, strict=True):
            column = numbers[:, feature]
            places = thresholds.searchsorted(column)
            places[np.isnan(column)] = len(masks) - 1
            possible = masks.take(places, axis=0)
            left = possible if left is None else np.bitwise_and(left, possible, out=left)
        assert left is not None
        lowest = left & (~left + left.dtype.type(1))
        return np.bitwise_count(lowest - left.dtype.type(1))

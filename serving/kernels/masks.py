"""Many rows through small trees at once: QuickScorer (Lucchese et al., SIGIR 2015) in NumPy.

Every inner node that a value fails rules out the leaves on its left. So each value gives, by its place among its
feature's thresholds, one mask for each tree of the leaves that are still possible; the masks of a row's values together
leave exactly one lowest leaf, the one that the row reaches. The leaves are then added in the trees' order.
"""

from __future__ import annotations

import numpy as np

from serving.kernels import kernel

PIECE_ROWS = 128  # so that what belongs to a piece stays in the processor's cache


@kernel
class Masks:
    """Sums of leaves, of shape (rows, outputs).

    ``masks[k]`` is (thresholds + 2, trees): by the place of feature ``features[k]`` among ``thresholds[k]``, the last
    for a missing one. Outputs that the same trees add to are worked out together: ``members[j]`` are those trees,
    ``weights[j]`` their leaves below each other, of which the first ``widths[j]`` columns are outputs.
    """

    features: np.ndarray
    thresholds: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    members: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    widths: tuple[int, ...]
    leaves: int

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        sums = np.empty((len(numbers), sum(self.widths)))
        missing = np.isnan(numbers).any()
        left, possible = self._room(min(PIECE_ROWS, len(numbers)))
        for start in range(0, len(numbers), PIECE_ROWS):
            piece = numbers[start : start + PIECE_ROWS]
            if len(piece) < len(left):
                left, possible = self._room(len(piece))
            leaves = self._leaves(piece, left, possible, missing=bool(missing))
            self._add(leaves, sums[start : start + PIECE_ROWS])
        return sums

    def _room(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        shape = rows, self.masks[0].shape[1]
        return np.empty(shape, self.masks[0].dtype), np.empty(shape, self.masks[0].dtype)

    def _leaves(self, numbers: np.ndarray, left: np.ndarray, possible: np.ndarray, *, missing: bool) -> np.ndarray:
        """The number of the leaf that each row reaches in each tree; ``left`` and ``possible`` are room for masks."""
        left.fill(np.iinfo(left.dtype).max)
        for feature, thresholds, masks in zip(self.features, self.thresholds, self.masks, strict=True):
            column = numbers[:, feature]
            places = thresholds.searchsorted(column)
            if missing:
                places[np.isnan(column)] = len(masks) - 1
            masks.take(places, axis=0, out=possible, mode="clip")
            np.bitwise_and(left, possible, out=left)
        np.subtract(left, left.dtype.type(1), out=possible)
        np.bitwise_and(np.invert(left, out=left), possible, out=left)  # ones below the lowest one
        return np.bitwise_count(left)

    def _add(self, leaves: np.ndarray, sums: np.ndarray) -> None:
        rows, start = len(leaves), 0
        for members, weights, width in zip(self.members, self.weights, self.widths, strict=True):
            own = leaves if len(members) == leaves.shape[1] else leaves[:, members]
            places = np.empty((len(members), rows), np.intp)
            np.add(own.T, np.arange(0, len(members) * self.leaves, self.leaves)[:, None], out=places)
            terms = weights.take(places, axis=0, mode="clip").reshape(len(members), -1)
            # A lone sum would be added up pairwise.
            total = np.add.reduce(terms, axis=0) if rows > 1 else np.add.accumulate(terms, axis=0)[-1]
            sums[:, start : start + width] = total.reshape(rows, -1)[:, :width]
            start += width

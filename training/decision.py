"""Decision: from which probability on to say yes, by what the two kinds of error cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Costs:
    """What it costs to miss a case, and to raise a false alarm, in any one currency. What is right costs nothing."""

    missed: float
    false_alarm: float

    @property
    def fair_threshold(self) -> float:
        """The best threshold for probabilities that are true: where both errors are expected to cost the same."""
        return self.false_alarm / (self.false_alarm + self.missed)

    def mean(self, flagged: np.ndarray, labels: np.ndarray) -> float:
        """The cost of a row where ``flagged`` of the rows get a yes, and ``labels`` are 1 where that is right."""
        missed = np.count_nonzero((labels == 1) & ~flagged)
        alarms = np.count_nonzero((labels == 0) & flagged)
        return float(self.missed * missed + self.false_alarm * alarms) / len(labels)

    def curve(self, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Thresholds from high to low, one between each two different scores and beyond the ends; the cost at each."""
        order = np.argsort(-scores, kind="stable")
        ranked, cases = scores[order], labels[order] == 1
        caught = np.concatenate(([0], np.cumsum(cases)))
        alarms = np.arange(len(scores) + 1) - caught
        costs = (self.missed * (caught[-1] - caught) + self.false_alarm * alarms) / len(labels)
        above, below = np.concatenate(([1.0], ranked)), np.concatenate((ranked, [-1.0]))
        middle = (above + np.maximum(below, 0.0)) / 2
        between = np.maximum(middle, np.nextafter(below, np.inf))  # of neighbouring floats it is one of the two
        apart = np.concatenate(([True], ranked[1:] < ranked[:-1], [True]))  # equal scores get the same answer
        return between[apart], costs[apart]

    def best_threshold(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """The cheapest threshold of `curve`; of equal ones the highest, which bothers the fewest."""
        thresholds, costs = self.curve(scores, labels)
        return float(thresholds[np.argmin(costs)])

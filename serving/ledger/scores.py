"""How right one prediction was, once its label is known."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

from serving.tensors import Classes

EPSILON = sys.float_info.epsilon  # where scikit-learn clips probabilities before it takes the logarithm


class Scores(NamedTuple):
    """What can be said of one predicted row; None where it cannot.

    ``class_name`` is the class that the label means. ``brier`` is the sum over all classes of (p - y)², for two classes
    as for many, so from 0 to 2. ``log_loss`` is natural.
    """

    class_name: str | None = None
    correct: float | None = None
    brier: float | None = None
    log_loss: float | None = None
    absolute_error: float | None = None


def scores(output: dict[str, Any] | None, label: Any, classes: Classes | None) -> Scores:
    """Compare ``output``, worded as in the answer, with ``label``.

    A label that names no class of a classifier counts as wrong, and as one to which the model gave no chance.
    """
    if output is None:
        return Scores()
    if "class_name" in output:
        return _of_class(output, meant(label, classes), output["class_name"])
    value = output.get("value")
    if isinstance(value, (str, bool)):
        return Scores(correct=float(str(value) == str(label)))
    truth = _number(label)
    if truth is None or not isinstance(value, (int, float)):
        return Scores()
    return Scores(absolute_error=abs(value - truth))


def meant(label: Any, classes: Classes | None) -> str | None:
    """The name of the class that ``label`` means: by name, by the model's own label, or by class id; None if none.

    A text is a name first, a number is an id first; ``5.0``, ``5`` and ``"5"`` mean the same if only one class fits.
    """
    if classes is None:
        return str(label)
    number = _number(label)
    by_name = str(label) if str(label) in classes.names else None
    by_id = next((name for k, name in enumerate(classes.names) if classes.class_id(k) == number), None)
    by_label = next((name for own, name in zip(classes.labels, classes.names, strict=True) if own == label), None)
    found = (by_name, by_label, by_id) if isinstance(label, str) else (by_label, by_id, by_name)
    return next((name for name in found if name is not None), None)


def _of_class(output: dict[str, Any], truth: str | None, predicted: str) -> Scores:
    correct = float(truth == predicted)
    chances: dict[str, Any] = output.get("probabilities") or {}
    if not chances or None in chances.values():
        return Scores(truth, correct)
    brier = sum((chance - (name == truth)) ** 2 for name, chance in chances.items()) + (truth not in chances)
    chance = min(max(chances.get(truth or "", 0.0), EPSILON), 1 - EPSILON)
    return Scores(truth, correct, float(brier), -math.log(chance))


def _number(label: Any) -> float | None:
    """``label`` as a number, if it is one or the text of one."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

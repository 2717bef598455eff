"""Who is a challenger's, and how its part is written."""

from __future__ import annotations

import pytest

from serving.routing import OFF, SHADOW, SPLIT, Part, is_challengers

KEYS = [f"caller {number}" for number in range(10_000)]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("off", Part(OFF)),
        (" Shadow ", Part(SHADOW)),
        ("10%", Part(SPLIT, 0.1)),
        ("10", Part(SPLIT, 0.1)),
        ("0.5%", Part(SPLIT, 0.005)),
        ("100%", Part(SPLIT, 1.0)),
        ("0", Part(OFF)),
    ],
)
def test_a_part(text: str, part: Part) -> None:
    assert Part.parse(text) == part
    assert Part.parse(str(part)) == part


@pytest.mark.parametrize("text", ["", "half", "-1", "101%", "nan", "1e400", "10%%", "0.1 of all"])
def test_no_part(text: str) -> None:
    with pytest.raises(ValueError, match="neither off, shadow"):
        Part.parse(text)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_the_share(share: float) -> None:
    chosen = sum(is_challengers(share, "iris", key) for key in KEYS)
    assert abs(chosen - share * len(KEYS)) <= 4 * (len(KEYS) * share * (1 - share)) ** 0.5


def test_nobody_and_everybody() -> None:
    assert not any(is_challengers(0.0, "iris", key) for key in KEYS)
    assert all(is_challengers(1.0, "iris", key) for key in KEYS)


def test_a_larger_share_only_moves_callers_over() -> None:
    small = {key for key in KEYS if is_challengers(0.1, "iris", key)}
    assert small < {key for key in KEYS if is_challengers(0.3, "iris", key)}


def test_models_try_out_different_callers() -> None:
    iris, fraud = ({key for key in KEYS if is_challengers(0.1, name, key)} for name in ("iris", "fraud"))
    assert len(iris & fraud) < 200  # 100 by chance


def test_any_text_is_a_key() -> None:
    assert is_challengers(1.0, "iris", "\udce4\x00ü")

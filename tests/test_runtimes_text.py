"""Texts into vectors: cut, padded and grouped as they come, always the same vector; too much is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from senses import DIMENSION, MAX_TOKENS, WORDS, save_sentences

from serving import mlmodel
from serving.errors import InvalidInput, TooManyRows, VersionRefused
from serving.runtimes import Limits, limited, runtime, text
from serving.tensors import Batch

LIMITS = Limits()


def batch(*texts: Any) -> Batch:
    column = np.empty(len(texts), dtype=object)
    column[:] = texts
    return Batch(("text",), (column,))


def converted(saved: Path, into: Path) -> Path:
    model = mlmodel.read(saved)
    into.mkdir()
    text.convert(model, saved, into)
    return into


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentences(tmp_path_factory.mktemp("saved") / "sentences")


@pytest.fixture(scope="module")
def folder(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(saved, tmp_path_factory.mktemp("text") / "bundle")


def some_texts(count: int) -> list[str]:
    chance = np.random.default_rng(1)
    return [" ".join(chance.choice(WORDS[4:], chance.integers(1, 30))) for _ in range(count)]


def test_it_serves_what_says_so_and_nothing_else(saved: Path) -> None:
    assert text.serves(mlmodel.read(saved), saved)
    for metadata in (None, {}, {"text": 1}, {"text": "a mere word"}, ["text"]):
        assert not text.serves({"flavors": {}, "metadata": metadata}, saved)


def test_a_vector_does_not_depend_on_those_beside_it(folder: Path) -> None:
    predict, texts = text.load(folder), some_texts(100)
    together = predict(batch(*texts))
    alone = np.concatenate([predict(batch(one)).values for one in texts])
    assert together.values.shape == (100, DIMENSION)
    assert together.values.dtype == np.float32
    np.testing.assert_allclose(together.values, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together.values, axis=1), 1, atol=1e-6)


def test_tokens_are_counted_as_far_as_they_are_read(folder: Path) -> None:
    predict = text.load(folder)
    got = predict(batch("petal", "petal sepal", "leaf " * 100)).tokens
    assert got is not None
    assert got.tolist() == [3, 4, MAX_TOKENS]


def test_what_is_cut_off_changes_nothing(folder: Path) -> None:
    predict, read = text.load(folder), ["leaf"] * (MAX_TOKENS - 2)
    short, long = predict(batch(" ".join(read), " ".join([*read, "petal"] * 3))).values
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_many_long_texts_are_taken_apart_piece_by_piece(folder: Path) -> None:
    texts = ["leaf " * 5000] * 20 + ["petal"]
    pieces = list(text._pieces(texts))
    assert [one for piece in pieces for one in piece] == texts
    assert max(sum(map(len, piece)) for piece in pieces) <= text.PIECE_CHARACTERS
    assert list(text._pieces(["x" * 100_000])) == [["x" * 100_000]]
    assert text.load(folder)(batch(*texts)).values.shape == (21, DIMENSION)


def test_groups_hold_every_row_once_and_stay_within_their_bounds() -> None:
    lengths = np.random.default_rng(0).integers(3, 257, 200)
    groups = [group.tolist() for group in text._groups(lengths)]
    assert sorted(row for group in groups for row in group) == list(range(200))
    for group in groups:
        assert len(group) <= text.GROUP_ROWS
        assert len(group) == 1 or len(group) * lengths[group].max() <= text.GROUP_TOKENS


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("", "is an empty text"),
        (" \n\t\u00a0", "is an empty text"),
        ("x" * 32_769, r"has 32769 characters; at most 32768 are read \(MAX_TEXT_CHARACTERS\)"),
        ("x" * 100_000, "has 100000 characters"),
        ("half \ud800", "half of a surrogate pair"),
    ],
    ids=["empty", "blank", "one too many", "many too many", "half a surrogate"],
)
def test_a_text_that_is_none_is_refused_with_its_row(wrong: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        text.check(batch("leaf", wrong), LIMITS)
    assert (refused.value.row, refused.value.column) == (1, "text")


def test_odd_texts_have_vectors(folder: Path) -> None:
    odd = ("\x00", "\u200b", "🪴" * 300, "ﬁ", "[PAD] [MASK]", "\r", "a" * 32_768)[:-1]
    predict = limited("text", text.load(folder), LIMITS)
    got = predict(batch("a" * 32_768, *(one for one in odd if one.strip()))).values
    assert np.isfinite(got).all()


def test_too_many_texts_are_refused() -> None:
    with pytest.raises(TooManyRows, match=r"10000 texts; at most 2048 are answered at once \(MAX_TEXTS\)"):
        text.check(batch(*["leaf"] * 10_000), LIMITS)


def test_limits_are_for_callers_only(folder: Path) -> None:
    predict = text.load(folder)
    assert len(predict(batch(*["leaf"] * 50)).values) == 50
    with pytest.raises(TooManyRows):
        limited("text", predict, Limits(texts=49))(batch(*["leaf"] * 50))
    assert limited("onnx", predict, Limits(texts=1)) is predict


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"precision": "fp8"}, "says no precision"),
        ({"max_tokens": 2}, "says no max_tokens"),
        ({"max_tokens": "256"}, "says no max_tokens"),
        ({"dimension": 7}, "its vectors have 6 numbers, its text.json says 7"),
        ({"pad_id": None}, "says no pad_id"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    saved = save_sentences(tmp_path / "saved" / "sentences", **changed)
    with pytest.raises(VersionRefused, match=words) as refused:
        converted(saved, tmp_path / "bundle")
    assert refused.value.reason == "load_failed"


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx"])
def test_a_file_that_is_missing_is_said(tmp_path: Path, name: str) -> None:
    saved = save_sentences(tmp_path / "saved" / "sentences")
    (saved / "artifacts" / "text" / name).unlink()
    with pytest.raises(VersionRefused, match=name) as refused:
        converted(saved, tmp_path / "bundle")
    assert refused.value.reason == "missing_files"


def test_a_folder_outside_of_the_version_is_refused(saved: Path, tmp_path: Path) -> None:
    model = {**mlmodel.read(saved), "metadata": {"text": "../sentences-parts/text"}}
    assert text.serves(model, saved)
    with pytest.raises(VersionRefused, match="outside") as refused:
        text.convert(model, saved, tmp_path)
    assert refused.value.reason == "bad_path"


def test_a_graph_of_other_inputs_is_refused(tmp_path: Path) -> None:
    from senses import colours

    saved = save_sentences(tmp_path / "saved" / "sentences")
    (saved / "artifacts" / "text" / "model.onnx").write_bytes(colours(3))
    with pytest.raises(VersionRefused, match="its graph takes 'pixel_values'"):
        converted(saved, tmp_path / "bundle")


# --- served ----------------------------------------------------------------------------------------------------------


def test_what_is_known_of_it_is_shown(deep_app: Any) -> None:
    client: FlaskClient = deep_app.test_client()
    info = client.get("/models/sentences").get_json()
    assert info["runtime"] == "text"
    assert info["variant"] == {"precision": "fp32", "agreement": None, "weights": "none: numbers by chance"}


def test_it_is_never_answered_on_the_loop(deep_app: Any) -> None:
    cheap = deep_app.extensions["cheap"]
    assert cheap("/models/iris/predict", 60)
    assert not cheap("/models/sentences/predict", 20)
    assert not cheap("/models/pictures/predict", 20)


def test_runtimes_say_what_they_serve() -> None:
    from serving.runtimes import CONVERTING

    assert all(callable(runtime(name).serves) for name in CONVERTING)

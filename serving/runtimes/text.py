"""Texts into vectors: a tokenizer and a graph that pools and normalises, both in the model's own folder.

The folder (see `serving.runtimes.artifacts`) has ``model.onnx`` (``input_ids``, ``attention_mask`` and maybe
``token_type_ids`` of shape (rows, tokens) in, ``embedding`` (rows, dimension) out), ``tokenizer.json`` and
``text.json``: ``max_tokens``, ``dimension``, ``pad_id``, ``precision``, ``agreement``, ``weights``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InvalidInput, TooManyRows, VersionRefused
from serving.runtimes import Limits, artifacts
from serving.tensors import Batch, Description, Prediction

NAME = "text"
TOKENIZER = "tokenizer.json"
OUTPUT = "embedding"
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
EXAMPLE = ["A text that is made a vector of."]

GROUP_ROWS, GROUP_TOKENS = 8, 1024  # answered in one call at most; larger ones only fall out of the processor's cache
PIECE_CHARACTERS = 65_536  # taken apart at a time: tokens take a hundred times the memory of what is kept of them

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read by tokenizers: workers, not threads, use the cores


def serves(model: Mapping[str, Any], folder: Path) -> bool:
    """A version that says where its tokenizer and graph are."""
    return artifacts.find(model, NAME, folder) is not None


def convert(model: Mapping[str, Any], folder: Path, into: Path) -> Description:
    """Copy the model's folder, and see that everything in it fits together."""
    place = artifacts.copy(model, NAME, folder, into)
    content = _config(place)
    _tokenizer(place, content["max_tokens"])
    graph = artifacts.graph(place, INPUTS, OUTPUT)
    shape = next(given.shape for given in graph.get_outputs() if given.name == OUTPUT)
    if shape[-1] != content["dimension"] and isinstance(shape[-1], int):
        raise artifacts.refused(f"its vectors have {shape[-1]} numbers, its text.json says {content['dimension']}")
    return Description(
        artifacts.signature(model, NAME, "string"),
        output=OUTPUT,
        tolerance=artifacts.TOLERANCES[content["precision"]],
        variant=artifacts.variant(content),
        example=EXAMPLE,
    )


def check(batch: Batch, limits: Limits) -> None:
    """Raises `TooManyRows`, or `InvalidInput` for the first text that is too long or none at all."""
    if batch.rows > limits.texts:
        raise TooManyRows(f"{batch.rows} texts; at most {limits.texts} are answered at once (MAX_TEXTS)")
    column = batch.names[0]
    for row, text in enumerate(batch.columns[0].tolist()):
        if len(text) > limits.text_characters:
            most = f"at most {limits.text_characters} are read (MAX_TEXT_CHARACTERS)"
            raise InvalidInput(f"has {len(text)} characters; {most}", row=row, column=column)
        if not text or text.isspace():
            raise InvalidInput("is an empty text", row=row, column=column)
        if not _is_whole(text):
            raise InvalidInput("has half of a surrogate pair, which is no character", row=row, column=column)


def load(folder: Path) -> Callable[[Batch], Prediction]:
    """The vector of each text, which does not depend on those beside it but for rounding."""
    place = folder / NAME
    content = _config(place)
    tokenizer = _tokenizer(place, content["max_tokens"])
    graph = artifacts.graph(place, INPUTS, OUTPUT)
    names = {given.name for given in graph.get_inputs()}
    dimension, pad = content["dimension"], content["pad_id"]

    def answer(rows: Sequence[Sequence[int]]) -> np.ndarray:
        vectors: np.ndarray = graph.run([OUTPUT], _feed(rows, names, pad))[0]
        return vectors

    def predict(batch: Batch) -> Prediction:
        tokens = _tokens(tokenizer, batch.columns[0].tolist())
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        if len(tokens) == 1:
            return Prediction(answer(tokens), tokens=lengths)
        vectors = np.empty((len(tokens), dimension), np.float32)
        for group in _groups(lengths):
            vectors[group] = answer([tokens[row] for row in group])
        return Prediction(vectors, tokens=lengths)

    return predict


def _config(place: Path) -> dict[str, Any]:
    content = artifacts.config(place, NAME)
    for name, least in (("max_tokens", 3), ("dimension", 1), ("pad_id", 0)):
        value = content.get(name)
        if type(value) is not int or value < least:
            raise artifacts.refused(f"its text.json says no {name}: expected a whole number of at least {least}")
    return content


def _tokenizer(place: Path, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    if not (place / TOKENIZER).is_file():
        raise VersionRefused(f"it has no {TOKENIZER} in its folder {NAME!r}", reason="missing_files")
    tokenizer = Tokenizer.from_file(str(place / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _is_whole(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text's tokens, cut to what the model reads."""
    if len(texts) == 1:
        return [tokenizer.encode(texts[0]).ids]
    found: list[list[int]] = []
    for piece in _pieces(texts):
        found += [encoding.ids for encoding in tokenizer.encode_batch_fast(piece)]
    return found


def _pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, so many at a time as have `PIECE_CHARACTERS`, but at least one."""
    start, characters = 0, 0
    for end, text in enumerate(texts):
        if characters + len(text) > PIECE_CHARACTERS and end > start:
            yield texts[start:end]
            start, characters = end, 0
        characters += len(text)
    yield texts[start:]


def _groups(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """All rows, those of like lengths together: what is padded is computed too."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and end - start < GROUP_ROWS:
            if (end + 1 - start) * lengths[order[end]] > GROUP_TOKENS:
                break
            end += 1
        yield order[start:end]
        start = end


def _feed(rows: Sequence[Sequence[int]], names: set[str], pad: int) -> dict[str, np.ndarray]:
    """What the graph takes: every row padded to the longest."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    feed = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in names:
        feed["token_type_ids"] = np.zeros_like(ids)
    return feed

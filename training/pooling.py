"""Pooling: what sentence-transformers puts behind a transformer to make one vector of a text, as a torch module."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training import weights
from training.options import Unusable

# How a folder says it: by one name, or in the earlier way by flags.
FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
PARTS = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Settings:
    """What the folder's files say beside the weights."""

    max_tokens: int
    pooling: str  # one of the values of `FLAGS`
    dimension: int
    pad_id: int

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Raises `Unusable` for a folder that is not one of sentence-transformers, or asks for parts we do not have."""
        modules = _read(folder / "modules.json")
        places = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
        if unknown := [name for name in places if name not in PARTS]:
            raise Unusable(f"{folder} has a part that cannot be exported: {unknown[0]}")
        config = _read(folder / "config.json")
        limits = _read(folder / "sentence_bert_config.json") if (folder / "sentence_bert_config.json").is_file() else {}
        if not (folder / "tokenizer.json").is_file():
            raise Unusable(f"there is no tokenizer.json in {folder}")
        return cls(
            max_tokens=limits.get("max_seq_length") or config["max_position_embeddings"],
            pooling=_pooling(folder / places.get("Pooling", "1_Pooling") / "config.json"),
            dimension=config["hidden_size"],
            pad_id=config.get("pad_token_id") or 0,
        )


class Pooled(torch.nn.Module):
    """Token ids and their mask, both (rows, tokens), to vectors of length 1, (rows, dimension)."""

    def __init__(self, transformer: Any, pooling: str) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling

    @classmethod
    def load(cls, folder: Path, settings: Settings) -> Pooled:
        """The weights in ``folder``, which must be safetensors. Attention is written out, as the exporter wants it."""
        weights.quiet()
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        transformer = AutoModel.from_pretrained(
            folder, attn_implementation="eager", use_safetensors=True, local_files_only=True, dtype=torch.float32
        )
        return cls(transformer, settings.pooling).eval()

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        return torch.nn.functional.normalize(self._pool(tokens, attention_mask.unsqueeze(-1).to(tokens.dtype)), dim=1)

    def _pool(self, tokens: Any, mask: Any) -> Any:
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "max":
            return tokens.masked_fill(mask == 0, -1e9).max(dim=1).values
        total, count = (tokens * mask).sum(dim=1), mask.sum(dim=1).clamp(min=1e-9)
        return total / (count.sqrt() if self.pooling == "mean_sqrt_len_tokens" else count)


def _pooling(file: Path) -> str:
    config = _read(file)
    named = config.get("pooling_mode") or [name for flag, name in FLAGS.items() if config.get(flag)]
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in FLAGS.values():
        raise Unusable(f"{file} asks for a pooling that cannot be exported: {', '.join(modes) or 'none'}")
    return str(modes[0])


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Unusable(f"{file} cannot be read: it is no folder of sentence-transformers") from None

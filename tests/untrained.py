"""Small models with random weights, as transformers and sentence-transformers write theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PARTS = ("Transformer", "Pooling", "Normalize")
PROCESSOR = {
    **{"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "size": {"shortest_edge": 32}},
    **{"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255},
    **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}


def needed() -> None:
    """Skip a module whose tests train with torch, where it is not installed."""
    for library in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(library, reason=f"{library} is not installed: make deep")


def bert(folder: Path, *, pooling: str = "mean", parts: tuple[str, ...] = PARTS, max_tokens: int = 24) -> Path:
    """A folder of sentence-transformers: two layers, vectors of 32 numbers, a tokenizer that knows letters."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    letters = [chr(code) for code in range(33, 127)]
    words = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(8)  # as in the real one's file: not what the model reads
    tokenizer.enable_padding(length=8)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.3, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    listed = [{"type": f"sentence_transformers.models.{part}", "path": paths.get(part, f"2_{part}")} for part in parts]
    write(folder / "modules.json", listed)
    write(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode": pooling})
    return folder


def resnet(folder: Path, *, labels: tuple[str, ...] = ("cat", "crane", "dog", "crane"), **processor: Any) -> Path:
    """A ResNet of two small stages, with the processor that real ones have, but for smaller pictures."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    config = ResNetConfig(num_labels=len(labels), id2label=dict(enumerate(labels)), **sizes)
    ResNetForImageClassification(config).save_pretrained(folder)
    write(folder / "preprocessor_config.json", PROCESSOR | processor)
    return folder


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")

"""Tiny Hugging Face checkpoints and labelled texts, made where they are needed: no network."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("good", "fine", "great", "bad", "poor", "awful", "the", "film", "was", "plot", "very", "not")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `text` (five words) and `label` ("good" or "bad"), no text twice."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        words = [WORDS[int(place)] for place in torch.randint(len(WORDS), (5,), generator=generator)]
        value = sum(word in WORDS[:3] for word in words) - sum(word in WORDS[3:6] for word in words)
        found[" ".join(words)] = {"text": " ".join(words), "label": "good" if value > 0 else "bad"}
    return list(found.values())


def bert(folder: Path, head: str = "ForSequenceClassification", **settings: Any) -> str:
    """A BERT of two layers and 32 channels with a word tokenizer; returns its folder."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    config = transformers.BertConfig(vocab_size=32, max_position_embeddings=16, **{**sizes, **labels, **settings})
    getattr(transformers, f"Bert{head}")(config).save_pretrained(folder)
    return str(folder)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)

"""Tiny randomly initialised models of every family, with fast tokenizers that fit them, as Hugging Face
folders.

    tiny("bert", "feature-extraction", tmp_path / "m")      config.json, model.safetensors, tokenizer.json ...
    sentence_transformer(tmp_path / "st", pooling="cls")    the same with modules.json

Vocabularies are written by hand rather than trained, so that a folder is the same on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "electra", "deberta-v2", "mpnet", "modernbert")
DECOUPLED = FAMILIES[:5]
"""Those whose layers can be cut in two."""

TASKS = (
    "feature-extraction",
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
)
MAX_TOKENS = 64

_TEXT = (
    "the a of to and in is was for on that with as it by at from his her they we who what where when not but "
    "or river city house train music paper garden winter morning coffee story letter window engine island "
    "market old new small large quiet bright cold warm red green walked wrote opened played found near under "
    "over born lives works read Ada Bern Cara Denmark Egypt"
)
WORDS = tuple(_TEXT.split())
SENTENCES = (
    "Ada walked to the old house near the river.",
    "The train from Bern was late.",
    "Coffee in the morning, music at night!",
    "They found a small green letter under the window of the engine house, and it was cold.",
    "Yes.",
    "Where was Cara born?",
)
LABELS = {
    "text-classification": ("negative", "neutral", "positive"),
    "token-classification": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}

_BERT_LIKE = ("bert", "distilbert", "electra")
_BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "bos_token": "<s>",
    "eos_token": "</s>",
}
_CLASSES = {
    "bert": "Bert",
    "distilbert": "DistilBert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "electra": "Electra",
    "deberta-v2": "DebertaV2",
    "mpnet": "MPNet",
    "modernbert": "ModernBert",
}
_HEADS = {
    "feature-extraction": "Model",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "fill-mask": "ForMaskedLM",
}


def tiny(family: str, task: str, folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a model (hidden 32, 2 layers, 4 heads, 64 tokens) and its tokenizer to `folder`.

    config: overrides of the transformers configuration, such as `num_hidden_layers=1`.
    """
    folder = Path(folder)
    tokenizer, special = _tokenizer(family)
    model = _model(family, task, tokenizer.get_vocab_size(), tokenizer.token_to_id(special["pad_token"]), config)
    _randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ["input_ids", "attention_mask"]
    if family in ("bert", "electra", "deberta-v2"):
        names.insert(1, "token_type_ids")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "model_input_names": names,
    }
    _write_json(folder / "tokenizer_config.json", {**settings, **special})
    return folder


def sentence_transformer(
    folder: Path,
    *,
    family: str = "bert",
    seed: int = 0,
    pooling: str = "mean",
    normalize: bool = True,
    max_seq_length: int | None = 32,
    do_lower_case: bool = False,
    prompts: dict[str, str] | None = None,
    default_prompt: str | None = None,
) -> Path:
    """Write a tiny sentence-transformers model: Transformer, Pooling and, where asked for, Normalize."""
    folder = tiny(family, "feature-extraction", folder, seed)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    _write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ],
    )
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case},
    )
    names = {
        "cls": "cls_token",
        "mean": "mean_tokens",
        "max": "max_tokens",
        "weightedmean": "weightedmean_tokens",
    }
    modes = {f"pooling_mode_{key}": mode == pooling for mode, key in names.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **modes})
    if normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)
    _write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts or {}, "default_prompt_name": default_prompt, "similarity_fn_name": "cosine"},
    )
    return folder


def _write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _model(family: str, task: str, vocabulary: int, pad_id: int, overrides: dict[str, Any]) -> torch.nn.Module:
    name = _CLASSES[family]
    config: dict[str, Any] = {
        "vocab_size": vocabulary,
        "pad_token_id": pad_id,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_TOKENS,
    }
    if family == "distilbert":
        config = {
            "vocab_size": vocabulary,
            "pad_token_id": pad_id,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "max_position_embeddings": MAX_TOKENS,
        }
    if family in ("roberta", "xlm-roberta", "mpnet"):
        config |= {"max_position_embeddings": MAX_TOKENS + 2, "bos_token_id": 0, "eos_token_id": 2}
    if family in ("roberta", "xlm-roberta"):
        config["type_vocab_size"] = 1
    if family == "electra":
        config["embedding_size"] = 16
    if family == "deberta-v2":  # the settings of the v3 checkpoints
        config |= {
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "max_relative_positions": -1,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
        }
    if family == "modernbert":
        config |= {
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "bos_token_id": None,
            "eos_token_id": None,
            "cls_token_id": 0,
            "sep_token_id": 2,
        }
    if task in LABELS:
        config["id2label"] = dict(enumerate(LABELS[task]))
        config["label2id"] = {label: i for i, label in enumerate(LABELS[task])}
    built = getattr(transformers, f"{name}Config")(**{**config, **overrides})
    return getattr(transformers, name + _HEADS[task])(built).eval()  # type: ignore[no-any-return]


@torch.no_grad()
def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights far enough from zero that attention, biases and norms all matter to the outputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            is_scale = name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_scale else 0.1 * noise)
        elif "embedding" in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def _tokenizer(family: str) -> tuple[Tokenizer, dict[str, str]]:
    if family in _BERT_LIKE or family == "mpnet":
        return _wordpiece(family)
    if family in ("roberta", "modernbert"):
        return _byte_level()
    return _unigram(family)


def _wordpiece(family: str) -> tuple[Tokenizer, dict[str, str]]:
    special = dict(_ROBERTA_TOKENS, unk_token="[UNK]") if family == "mpnet" else dict(_BERT_TOKENS)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [
        *dict.fromkeys(special.values()),
        *".,!?'-:;()",
        *letters,
        *(f"##{c}" for c in letters),
        *(word.lower() for word in WORDS),
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _finish(tokenizer, special, doubled_separator=family == "mpnet")


def _byte_level() -> tuple[Tokenizer, dict[str, str]]:
    special = dict(_ROBERTA_TOKENS)
    pieces = [*dict.fromkeys(special.values()), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in WORDS[:59]:  # the merges that spell " word" from its letters, left to right
        left = "Ġ"
        for letter in word:
            merges.append((left, letter))
            left += letter
            pieces.append(left)
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, special, doubled_separator=True)


def _unigram(family: str) -> tuple[Tokenizer, dict[str, str]]:
    special = dict(_BERT_TOKENS) if family == "deberta-v2" else dict(_ROBERTA_TOKENS)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-:;()"
    pieces = [(piece, 0.0) for piece in dict.fromkeys(special.values())]
    pieces += [("▁", -4.0), *((c, -6.0) for c in letters), *((f"▁{word}", -3.0) for word in WORDS)]
    unknown = [piece for piece, _ in pieces].index(special["unk_token"])
    tokenizer = Tokenizer(models.Unigram(pieces, unknown, False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _finish(tokenizer, special, doubled_separator=family == "xlm-roberta")


def _finish(
    tokenizer: Tokenizer, special: dict[str, str], *, doubled_separator: bool
) -> tuple[Tokenizer, dict[str, str]]:
    cls, sep = special["cls_token"], special["sep_token"]
    types = (0, 0) if doubled_separator else (0, 1)
    middle = f"{sep}:0 {sep}:0" if doubled_separator else f"{sep}:0"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {middle} $B:{types[1]} {sep}:{types[1]}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    mask = special["mask_token"]
    added = [
        AddedToken(token, special=True, lstrip=token == mask, normalized=False)
        for token in dict.fromkeys(special.values())
    ]
    tokenizer.add_special_tokens(added)
    return tokenizer, special

"""Loading a fast tokenizer and checking that it fits the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from optimum.utils import NormalizedConfigManager
from tokenizers import normalizers
from transformers import AutoTokenizer

from edgec.errors import ModelError
from edgec.models.families import FAMILIES
from edgec.models.files import first_line, read_object
from edgec.models.quiet import quiet

_VOCABULARIES: Final = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


def load_tokenizer(
    folder: Path, config: Any, task: str, *, do_lower_case: bool = False, trust_remote_code: bool = False
) -> Any:
    """The fast tokenizer of `folder`, padding and truncation of its own switched off.

    do_lower_case: sentence-transformers' setting, lower-casing before everything else. Raises ModelError
    where there is none, where it is not fast, or where its ids do not fit the model of `config`.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise ModelError(
            f"{folder} holds no tokenizer",
            f"it should hold tokenizer.json (or {', '.join(_VOCABULARIES[1:])})",
        )
    settings = folder / "tokenizer_config.json"
    if not trust_remote_code and settings.is_file() and "auto_map" in read_object(settings):
        raise ModelError(
            f"{folder}: the tokenizer is code of the model's own",
            "pass trust_remote_code=True if you trust it",
        )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, use_fast=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # the Rust library raises plain Exception for a file that it cannot parse
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {first_line(error)}",
            "get the tokenizer's files again; tokenizer.json is the one that counts",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{folder}: {type(tokenizer).__name__} has no fast form, which a bundle needs",
            "convert it to tokenizer.json, or choose a model that has one",
        )
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    if tokenizer.truncation_side != "right":
        raise ModelError(f"{folder}: the tokenizer cuts long texts on the left, which is not supported")
    tokenizer.padding_side = "right"
    if do_lower_case and not _lowercases(backend.normalizer):
        rest = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    _check_fit(tokenizer, config, task, folder)
    return tokenizer


def _lowercases(normalizer: Any) -> bool:
    """As sentence-transformers asks it: is there a Lowercase already?"""
    if isinstance(normalizer, normalizers.Sequence):
        return any(_lowercases(normalizer[i]) for i in range(len(normalizer)))
    return isinstance(normalizer, normalizers.Lowercase)


def _check_fit(tokenizer: Any, config: Any, task: str, folder: Path) -> None:
    another = "it belongs to another model: put the right tokenizer files into the folder"
    rows = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config).vocab_size
    highest = max([*tokenizer.get_vocab().values(), *tokenizer("a")["input_ids"]])
    if highest >= rows:
        raise ModelError(
            f"{folder}: the tokenizer does not fit the model: "
            f"it gives ids up to {highest}, the model has {rows} embeddings",
            another,
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"{folder}: the tokenizer has no padding token", 'name one: "pad_token" in tokenizer_config.json'
        )
    padding = getattr(config, "pad_token_id", None)
    if FAMILIES[config.model_type].pad_positions and padding != tokenizer.pad_token_id:
        raise ModelError(
            f"{folder}: the tokenizer does not fit the model: it pads with id {tokenizer.pad_token_id}, "
            f"config.json says {padding}, and the positions of {config.model_type} are counted from it",
            another,
        )
    if task == "fill-mask" and tokenizer.mask_token_id is None:
        raise ModelError(
            f"{folder}: the tokenizer has no mask token", 'name one: "mask_token" in tokenizer_config.json'
        )


def longest(tokenizer: Any, config: Any, max_seq_length: int | None, override: int | None) -> int:
    """The most tokens of a row, special tokens counted: the smallest of what sentence-transformers, the
    tokenizer and the position table allow. `override` may only lower it. Raises ModelError for one that is
    higher, or too small for a single token of text."""
    positions = int(config.max_position_embeddings)
    if FAMILIES[config.model_type].pad_positions:
        positions -= int(config.pad_token_id) + 1
    limit = min(positions, int(tokenizer.model_max_length), max_seq_length or positions)
    if override is None:
        return limit
    least = int(tokenizer.num_special_tokens_to_add()) + 1
    if not least <= override <= limit:
        raise ModelError(
            f"max_length {override} is not possible: this model takes from {least} to {limit} tokens, "
            "special tokens counted",
            f"choose a max_length from {least} to {limit}, or leave it out",
        )
    return override

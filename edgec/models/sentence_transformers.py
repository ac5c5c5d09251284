"""The folder of a sentence-transformers model: everything in it is honoured, or the folder is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgec.errors import ModelError
from edgec.models.files import read_json, read_object
from edgec.nn.parts import POOLINGS

_SUPPORTED: Final = "edgec supports Transformer, then Pooling (mean, cls or max), then optionally Normalize"
_LEGACY_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Settings of the Transformer module that change no number of an fp32 text encoder.
_HARMLESS: Final = ("unpad_inputs", "module_output_name")
_HARMLESS_ARGUMENTS: Final = ("trust_remote_code", "torch_dtype", "dtype", "attn_implementation")


@dataclass(frozen=True)
class SentenceTransformer:
    """What modules.json and the files it names say. folder: that of the Transformer module (weights,
    tokenizer)."""

    folder: Path
    pooling: str
    normalize: bool
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def module_folders(folder: Path) -> list[tuple[str, Path]]:
    """(class name, folder) of every module of modules.json, in order.

    Raises ModelError for a file that is not a list of modules, for a class that is not sentence-transformers'
    own and for a path that leaves `folder`.
    """
    where = folder / "modules.json"
    modules = []
    listed = read_json(where)
    for entry in listed if isinstance(listed, list) else [None]:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("type"), str)
            or not isinstance(entry.get("path"), str)
        ):
            raise ModelError(f"{where} is not a list of modules with a type and a path", "get the file again")
        package, _, name = entry["type"].rpartition(".")
        if package.split(".")[0] != "sentence_transformers":
            raise ModelError(f"{where}: the module {entry['type']} is code of its own", _SUPPORTED)
        path = folder / entry["path"]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{where}: the path {entry['path']!r} leaves the folder", "get the file again")
        modules.append((name, path))
    return modules


def read(folder: Path) -> SentenceTransformer:
    """Read modules.json and what it names. Raises ModelError, naming it, for anything that edgec does not
    compute."""
    modules = module_folders(folder)
    kinds = [kind for kind, _ in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelError(f"{folder}: the sentence-transformers module {kind} is not supported", _SUPPORTED)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(f"{folder}: the modules {', '.join(kinds)} are not supported in this order", _SUPPORTED)
    if len(modules) == 3:
        _check_normalize(modules[2][1])
    max_seq_length, do_lower_case = _transformer(modules[0][1])
    prompts, default_prompt = _prompts(folder)
    return SentenceTransformer(
        folder=modules[0][1],
        pooling=_pooling(modules[1][1]),
        normalize=len(modules) == 3,
        max_seq_length=max_seq_length,
        do_lower_case=do_lower_case,
        prompts=prompts,
        default_prompt=default_prompt,
    )


def _transformer(folder: Path) -> tuple[int | None, bool]:
    files = sorted(folder.glob("sentence_*_config.json"))
    if not files:
        return None, False
    where = files[0]
    settings = dict(read_object(where))
    length = settings.pop("max_seq_length", None)
    lower = settings.pop("do_lower_case", False)
    if not (length is None or (isinstance(length, int) and length > 0)) or not isinstance(lower, bool):
        raise ModelError(f"{where}: max_seq_length or do_lower_case has the wrong type", "get the file again")
    if settings.pop("transformer_task", "feature-extraction") != "feature-extraction":
        raise ModelError(f"{where}: transformer_task is not feature-extraction", _SUPPORTED)
    modalities = settings.pop("modality_config", {"text": _TEXT})
    if not isinstance(modalities, dict) or modalities.get("text", _TEXT) != _TEXT:
        raise ModelError(f"{where}: modality_config reads something else than the last hidden state", _SUPPORTED)
    for key, value in settings.items():
        if key in _HARMLESS or not value:
            continue
        if isinstance(value, dict) and key.endswith(("_args", "_kwargs")) and set(value) <= set(_HARMLESS_ARGUMENTS):
            continue
        raise ModelError(f"{where}: the setting {key!r} is not supported", _SUPPORTED)
    return length, lower


_TEXT: Final = {"method": "forward", "method_output_name": "last_hidden_state"}


def _pooling(folder: Path) -> str:
    where = folder / "config.json"
    settings = read_object(where)
    modes: Any = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_MODES.items() if settings.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ModelError(f"{where}: the pooling {' + '.join(map(str, modes))} is not supported", _SUPPORTED)
    if settings.get("include_prompt", True) is not True:
        raise ModelError(
            f"{where}: pooling that leaves the prompt out (include_prompt: false) is not supported",
            _SUPPORTED,
        )
    return str(modes[0])


def _check_normalize(folder: Path) -> None:
    where = folder / "config.json"
    if not where.is_file():
        return
    for key, value in read_object(where).items():
        if value not in (None, "sentence_embedding"):
            raise ModelError(f"{where}: {key}: {value!r} is not supported", _SUPPORTED)


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    where = folder / "config_sentence_transformers.json"
    if not where.is_file():
        return {}, None
    settings = read_object(where)
    named = settings.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(text, str | None) for text in named.values()):
        raise ModelError(f"{where}: prompts should be texts by name", "get the file again")
    prompts = {name: text for name, text in named.items() if text is not None}
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelError(
            f"{where}: there is no prompt {default!r}, which default_prompt_name asks for",
            "add it to prompts",
        )
    return prompts, default

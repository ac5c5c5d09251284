"""Which layers of a model are quantized, and why the others are not."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, Final

from torch import nn

from edgec.state import ModelState

SMALL_HEAD: Final = 64
"""A matrix with fewer outputs, such as a task head, is next to no work, and a head's error is the answer's."""


def candidates(state: ModelState) -> dict[str, nn.Linear | nn.Embedding]:
    """Every matrix and table by its key, "PART:PATH": they are all that is ever quantized."""
    return {
        f"{part_name}:{path}": module
        for part_name, part in state.parts.items()
        for path, module in part.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }


def module_of(state: ModelState, key: str) -> Any:
    part, _, path = key.partition(":")
    return state.parts[part].get_submodule(path)


def is_table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def path_of(key: str) -> str:
    return key.partition(":")[2]


def matching(keys: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The keys whose module path matches one of the patterns (fnmatch), in their order."""
    return [key for key in keys if any(fnmatch.fnmatch(path_of(key), pattern) for pattern in patterns)]


def kept_in_float(
    module: nn.Linear | nn.Embedding, *, vocabulary: int, skipped: bool, used: bool, embeddings: bool
) -> str | None:
    """Why a layer is left alone, or None.

    vocabulary: how many tokens there are; a table of fewer rows is not theirs. skipped: named by the user. used: the
    task runs through it. embeddings: whether tables are quantized at all.
    """
    if skipped:
        return "named by the option skip"
    if isinstance(module, nn.Embedding):
        if not embeddings:
            return "the option embeddings is off"
        if module.num_embeddings < vocabulary:
            return "a small table (positions or types): nothing to gain"
    if not used:
        return "not used by this task"
    if isinstance(module, nn.Linear) and module.out_features < min(SMALL_HEAD, module.in_features):
        few = f"{module.out_features} outputs, fewer than {SMALL_HEAD}"
        return f"{few}, as a task head has: next to no work, and a head's error is the answer's"
    return None

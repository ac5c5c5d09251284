"""Unstructured pruning: the smallest weights of the encoder's matrices become zero."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from edgec.models.quiet import quiet
from edgec.nn.layout import layers

ZLIB_LEVEL: Final = 6
"""Of `compressed_bytes`, and of the archive that export.compressed asks for."""

_CHUNK: Final = 1 << 20


def encoder_matrices(part: Any) -> dict[str, nn.Parameter]:
    """The weights of the linear layers inside the encoder's layers, by parameter name."""
    return {
        f"{layer.path}.{name}.weight": module.weight
        for layer in layers(part)
        for name, module in part.get_submodule(layer.path).named_modules()
        if isinstance(module, nn.Linear)
    }


def zero_smallest(
    matrices: Mapping[str, nn.Parameter], sparsity: float, scope: Literal["global", "layer"]
) -> dict[str, float]:
    """Zero this share of the weights, those of the least magnitude, in place. Returns the share of zeros by name.

    scope: of all matrices together, or of each one. Weights that are zero already count as the least. Of equal
    magnitudes the first go, so that the share is exact.
    """
    for group, count in _counts(matrices, sparsity, scope):
        _zero(group, count)
    return {name: 1 - int(matrix.count_nonzero()) / matrix.numel() for name, matrix in matrices.items()}


def zeros_asked(matrices: Mapping[str, nn.Parameter], sparsity: float, scope: Literal["global", "layer"]) -> int:
    """How many weights zero_smallest makes zero."""
    return sum(count for _, count in _counts(matrices, sparsity, scope))


def _counts(
    matrices: Mapping[str, nn.Parameter], sparsity: float, scope: Literal["global", "layer"]
) -> list[tuple[list[nn.Parameter], int]]:
    """What is ranked together, and how many weights of it go."""
    groups = [list(matrices.values())] if scope == "global" else [[matrix] for matrix in matrices.values()]
    return [(group, round(sparsity * sum(matrix.numel() for matrix in group))) for group in groups]


def _zero(group: Sequence[nn.Parameter], count: int) -> None:
    if count == 0:
        return
    magnitudes = torch.cat([matrix.detach().abs().flatten() for matrix in group])
    threshold = magnitudes.kthvalue(count).values
    spare = count - int((magnitudes < threshold).sum())
    del magnitudes
    for parameter in group:
        matrix = parameter.detach()
        size = matrix.abs()
        equal = (size == threshold).flatten()
        # Only so many of those at the threshold as are wanted.
        equal &= equal.cumsum(0) <= spare
        spare -= int(equal.sum())
        matrix.masked_fill_((size < threshold) | equal.view_as(size), 0)


def compressed_size(part: Any, folder: Path) -> tuple[int, int]:
    """Bytes of the weight file as a build has it, and the same after zlib; written to `folder` for the time being."""
    try:
        with quiet():
            part.model.save_pretrained(folder, max_shard_size="1TB")
        packed, plain, total = zlib.compressobj(ZLIB_LEVEL), 0, 0
        with (folder / "model.safetensors").open("rb") as file:
            while chunk := file.read(_CHUNK):
                plain += len(chunk)
                total += len(packed.compress(chunk))
        return plain, total + len(packed.flush())
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""SmoothQuant: how much each input channel of a layer is divided by before it is quantized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from edgec.passes.layers import module_of
from edgec.passes.observe import Extremes
from edgec.state import ModelState

Floats = npt.NDArray[np.float32]


def factors_of(state: ModelState, keys: Iterable[str], seen: Mapping[str, Extremes], alpha: float) -> dict[str, Floats]:
    """The factors (inputs,) of the linear layers `keys`. Layers that read the same tensor share them."""
    factors: dict[str, Floats] = {}
    for readers in readers_of_one_tensor(keys, seen):
        matrices = [module_of(state, key).weight.detach() for key in readers]
        weights = np.max([matrix.abs().amax(dim=0).numpy() for matrix in matrices], axis=0)
        shared = smoothing_factors(seen[readers[0]].magnitude(), weights, alpha)
        factors |= dict.fromkeys(readers, shared)
    return factors


def readers_of_one_tensor(keys: Iterable[str], seen: Mapping[str, Extremes]) -> list[list[str]]:
    """The layers `keys` in groups that read the same tensor: their inputs had the same extremes in every channel."""
    groups: dict[bytes, list[str]] = {}
    for key in keys:
        groups.setdefault(seen[key].low.tobytes() + seen[key].high.tobytes(), []).append(key)
    return list(groups.values())


def smoothing_factors(activations: Floats, weights: Floats, alpha: float) -> Floats:
    """SmoothQuant's factor of each input channel: max|x|^alpha / max|w|^(1 - alpha) (Xiao et al. 2023, equation 4).

    activations, weights: the largest magnitude of each input channel, (channels,). A channel that is always zero in
    either gets 1.
    """
    live = (activations > 0) & (weights > 0)
    x, w = np.where(live, activations, 1), np.where(live, weights, 1)
    return np.where(live, x**alpha / w ** (1 - alpha), 1).astype(np.float32)

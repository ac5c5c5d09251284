"""What the weights of a layer take in a bundle."""

from __future__ import annotations

from typing import Any

from edgec.state import LayerQuantization, ModelState


def module_of(state: ModelState, key: str) -> Any:
    """The module that "PART:PATH" names."""
    part, _, path = key.partition(":")
    return state.parts[part].get_submodule(path)


def layer_bytes(module: Any, layer: LayerQuantization | None) -> int:
    """Bytes of the weights and scales of a linear layer or an embedding; None: in float. Biases count nothing.

    A table that two layers share (an output layer that is the embedding) counts for each.
    """
    rows, columns = module.weight.shape  # (outputs, inputs) of a linear layer, (entries, width) of a table
    if layer is None:
        return int(4 * rows * columns)
    if layer.scheme == "weight-only":
        if layer.kind == "embedding" and layer.bits == 8:
            return int(rows * (columns + 4))
        blocks = -(-columns // layer.block_size)  # the last one is padded
        return int(rows * blocks * (layer.block_size * layer.bits // 8 + 4))
    scales = 1 if layer.per_tensor else rows
    # The activations' smoothing factors and llm-int8's float columns are stored beside the int8 matrix.
    return int(rows * columns + 4 * scales + 4 * len(layer.smoothing or ()) + 4 * rows * len(layer.outliers))

"""Where a family keeps its layers: the module paths that passes cut, copy and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final

from torch import nn

from edgec.errors import PassError, UserError


@dataclass(frozen=True)
class Layer:
    """Module paths of one encoder layer, below the part.

    path: the layer itself. attention: what knows the number of heads and their size. query, key, value: linear layers
    whose output channels are heads one after the other; one and the same where they are merged. context: the linear
    layer that reads the heads. up: the first linear layer of the feed-forward network, of a gated one both halves, one
    after the other, in its output channels. down: the last one.
    """

    path: str
    attention: str
    query: str
    key: str
    value: str
    context: str
    up: str
    down: str

    @property
    def merged(self) -> bool:
        """Whether one linear layer gives query, key and value."""
        return self.query == self.value


_BERT: Final = Layer(
    path="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    context="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
)

_LAYOUTS: Final[Mapping[str, Layer]] = MappingProxyType(
    {
        "bert": _BERT,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
        "electra": _BERT,
        "deberta-v2": Layer(
            path="encoder.layer",
            attention="attention.self",
            query="attention.self.query_proj",
            key="attention.self.key_proj",
            value="attention.self.value_proj",
            context="attention.output.dense",
            up="intermediate.dense",
            down="output.dense",
        ),
        "mpnet": Layer(
            path="encoder.layer",
            attention="attention.attn",
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            context="attention.attn.o",
            up="intermediate.dense",
            down="output.dense",
        ),
        "distilbert": Layer(
            path="transformer.layer",
            attention="attention",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            context="attention.out_lin",
            up="ffn.lin1",
            down="ffn.lin2",
        ),
        "modernbert": Layer(
            path="layers",
            attention="attn",
            query="attn.Wqkv",
            key="attn.Wqkv",
            value="attn.Wqkv",
            context="attn.Wo",
            up="mlp.Wi",
            down="mlp.Wo",
        ),
    }
)
"""By family: `path` is that of the list of layers, below the base model; the others are below a layer of it."""

_COUNTS: Final = ("num_hidden_layers", "n_layers")


def base_path(part: Any) -> str:
    """The encoder without its task head, as a module path below the part: "model.bert", or "model" where it is all."""
    prefix = str(part.model.base_model_prefix)
    return f"model.{prefix}" if hasattr(part.model, prefix) else "model"


def stack_path(part: Any) -> str:
    """The list of layers. Raises PassError for a family that is not known."""
    family = part.model.config.model_type
    if family not in _LAYOUTS:
        raise PassError(f"the layers of the family {family!r} are not known", f"known are {', '.join(_LAYOUTS)}")
    return f"{base_path(part)}.{_LAYOUTS[family].path}"


def layers(part: Any) -> tuple[Layer, ...]:
    """The encoder layers of a part (edgec.nn.parts.Part), the lowest first. Raises PassError for an unknown family."""
    stack = stack_path(part)
    below = _LAYOUTS[part.model.config.model_type]
    names = [field.name for field in fields(Layer) if field.name != "path"]
    return tuple(
        Layer(path=f"{stack}.{index}", **{name: f"{stack}.{index}.{getattr(below, name)}" for name in names})
        for index in range(len(part.get_submodule(stack)))
    )


def head_size(part: Any, layer: Layer) -> int:
    """Channels of one attention head."""
    attention = part.get_submodule(layer.attention)
    return int(getattr(attention, "attention_head_size", None) or attention.head_dim)


def depth(part: Any) -> dict[str, int]:
    """How far below the head each parameter is: 0 the head, 1 the topmost layer, one more than the layers what lies
    below them all."""
    known = layers(part)
    base = base_path(part)

    def of(name: str) -> int:
        for index, layer in enumerate(known):
            if name.startswith(f"{layer.path}."):
                return len(known) - index
        return len(known) + 1 if name.startswith(f"{base}.") and ".pooler." not in name else 0

    return {name: of(name) for name, _ in part.named_parameters()}


def keep_layers(part: Any, kept: tuple[int, ...]) -> None:
    """Cut the encoder down to these layers, in place, in their order; the configuration follows.

    Raises UserError where the lowest layer is unlike the others (ModernBERT's alone has no norm before its attention)
    and would not stay the lowest.
    """
    stack, config = stack_path(part), part.model.config
    before = part.get_submodule(stack)
    if kept[0] != 0 and isinstance(getattr(before[0], "attn_norm", None), nn.Identity):
        raise UserError(
            f"the lowest layer of {config.model_type} is unlike the others and has to stay the lowest",
            f"keep layer 0 first: {[0, *(index for index in kept if index)]}",
        )
    parent, _, name = stack.rpartition(".")
    setattr(part.get_submodule(parent), name, nn.ModuleList([before[index] for index in kept]))
    for count in _COUNTS:
        if count in vars(config):
            setattr(config, count, len(kept))
    if getattr(config, "layer_types", None):  # which layers of ModernBERT see the whole text
        config.layer_types = [config.layer_types[index] for index in kept]

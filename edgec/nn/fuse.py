"""Modules that can be replaced by plainer ones which compute the same."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from edgec.errors import PassError


class Fusable(Protocol):
    """A module that owns the method `fuse`."""

    def fuse(self) -> nn.Module:
        """A module that computes the same without this one; it may take over this one's tensors."""
        ...


def fusable(root: nn.Module) -> list[str]:
    """The paths of the modules that can be fused, none of them inside another."""
    found: list[str] = []
    for path, module in root.named_modules():
        if not any(path.startswith(f"{outer}.") for outer in found) and (_fuses(module) or _is_adapter(module)):
            found.append(path)
    return found


def fuse(root: nn.Module) -> list[str]:
    """Replace every fusable module below `root`, in place, by its plain form at the same path; the paths.

    What a module is fused to is searched again, so that an adapter beside a fusable layer goes with it. Raises
    PassError where one cannot be fused.
    """
    replaced: dict[str, None] = {}
    while paths := fusable(root):
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(root.get_submodule(parent), name, _plain(path, root.get_submodule(path)))
            replaced[path] = None
    for module in root.modules():
        module.__dict__.pop("peft_config", None)  # peft's note that it was here
    for parameter in root.parameters():
        parameter.requires_grad_(True)
    return list(replaced)


def _plain(path: str, module: Any) -> nn.Module:
    try:
        if _fuses(module):
            plain: nn.Module = module.fuse()
        else:
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
    except (ValueError, NotImplementedError) as error:
        raise PassError(f"{path}: this {type(module).__name__} cannot be fused: {error}") from error
    if plain is module:
        raise PassError(f"{path}: {type(module).__name__} was fused to itself")
    return plain.train(module.training)


def _fuses(module: nn.Module) -> bool:
    return callable(getattr(type(module), "fuse", None))


def _is_adapter(module: nn.Module) -> bool:
    """Whether peft put this module around another."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)

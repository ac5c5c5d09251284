"""torch takes seconds to export a model, most of what these tests would do: each different one is exported once.

What a test run exports is kept in a folder of that run, which its processes share. Exports are told apart by all that
they come from: the module with its weights and settings, the code of every forward in it, the examples, the options.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
import torch._dynamo.config
from transformers import PretrainedConfig

LARGEST: Final = 2_000_000
"""Parameters: the file of a larger model costs more than it saves."""

DEEP: Final = 100
"""Modules: those of some six layers."""

Export = Callable[..., Any]


def once(export: Export, folder: Path) -> Export:
    """`torch.onnx.export`, or what it gave before for the same module and options."""

    @functools.wraps(export)
    def kept(module: torch.nn.Module, args: Any, **options: Any) -> Any:
        key = _key(module, args, options)
        if key is None:
            return export(module, args, **options)
        file = folder / f"{key}.onnx"
        if not file.exists():
            # What torch keeps of each operator costs more than it saves where there are few layers.
            deep = sum(1 for _ in module.modules()) > DEEP
            with torch._dynamo.config.patch(fake_tensor_cache_enabled=deep):
                program = export(module, args, **options)
            part = folder / f"{key}.{os.getpid()}"
            part.write_bytes(ir.to_proto(program.model).SerializeToString())
            part.replace(file)
        # Also the first time: so that a test sees the same, whichever was before it.
        return SimpleNamespace(model=ir.from_proto(onnx.load_model_from_string(file.read_bytes())))

    return kept


def _key(module: torch.nn.Module, args: Any, options: Any) -> str | None:
    """None for a module that is large, or that cannot be written down, as with a method that a test put there."""
    if sum(parameter.numel() for parameter in module.parameters()) > LARGEST:
        return None
    written = io.BytesIO()
    pickler = _Pickler(written)
    pickler.fast = True  # without references to what was written before, which hang on how strings are shared
    try:
        pickler.dump(module)
    except (AttributeError, TypeError, ValueError, pickle.PicklingError):
        return None
    digest = hashlib.sha256(written.getvalue())
    for one in module.modules():
        digest.update(_code(type(one).forward.__code__).encode())
    for example in args:
        digest.update(f"{example.shape}{example.dtype}{example.sum()}".encode())
    digest.update(repr(sorted(options.items())).encode())
    return digest.hexdigest()


class _Pickler(pickle.Pickler):
    """What torch, a configuration's origin and Python's sets would write differs from process to process."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            content = obj.detach().contiguous().view(-1).view(torch.uint8).numpy()
            return type(obj).__name__, obj.dtype, tuple(obj.shape), hashlib.sha256(content).hexdigest()
        if isinstance(obj, PretrainedConfig):
            settings = {name: value for name, value in obj.to_dict().items() if name != "_name_or_path"}
            return type(obj).__name__, obj._attn_implementation, repr(sorted(settings.items()))
        if isinstance(obj, (set, frozenset)):
            return "set", sorted(map(repr, obj))
        if isinstance(obj, str) and Path(obj).is_absolute():  # where the model was loaded from
            return "path"
        return None


def _code(code: CodeType) -> str:
    consts = (sorted(map(repr, one)) if isinstance(one, frozenset) else one for one in code.co_consts)
    inner = [_code(one) if isinstance(one, CodeType) else repr(one) for one in consts]
    return f"{code.co_code.hex()}{code.co_names}{inner}"

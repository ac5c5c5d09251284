"""What torch computes where a graph has GELU by tanh (edgec.target.Forms)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.nn.functional import gelu
from torch.overrides import TorchFunctionMode


class TanhGelu(TorchFunctionMode):
    """Inside `with TanhGelu():` every module computes its GELU by the tanh approximation; in this thread only."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is gelu:
            given["approximate"] = "tanh"
        return func(*args, **given)

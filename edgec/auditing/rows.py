"""The rows that graphs are run on: unpadded, one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from edgec_runtime.manifest import Part

from edgec.errors import UserError


def row_feeds(
    part: Part, ids: npt.NDArray[np.int32], type_ids: npt.NDArray[np.int32] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """The inputs of `part` for one row of `ids` (tokens,), as a batch of one (1, tokens).

    type_ids: (tokens,), all 0 by default. Raises UserError for an input that is made of something else.
    """
    rows: dict[str, npt.NDArray[Any]] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids) if type_ids is None else type_ids,
    }
    for tensor in part.inputs:
        if tensor.name == "states":
            # What they are changes no shape: a row of a normal law, the same every time.
            shape = len(ids), int(tensor.shape[-1])
            rows["states"] = np.random.default_rng(0).standard_normal(shape, np.float32)
        if tensor.name not in rows:
            raise UserError(
                f"part {part.name!r} takes the input {tensor.name!r}, which the audit cannot make",
                f"the audit makes {', '.join(rows)}",
            )
    return {tensor.name: rows[tensor.name][None].astype(tensor.dtype) for tensor in part.inputs}

"""Two forms of one model, compared output by output. A breach is an error that names the worst output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from edgec.errors import ParityError

if TYPE_CHECKING:
    from edgec.nn.parts import Part

FLOAT_MAX_ABS: Final = 1e-4
"""How far the float graph may be from torch, in any element of any output."""

INT8_MIN_COSINE: Final = 0.9
"""Mean cosine below which an int8 graph is broken and not merely coarse: careless quantization of all gives 0.8."""

LONGEST_ROW: Final = 1024
"""Tokens of the longest sample row. Attention is quadratic: a row of 8192 tokens would take many GB in torch."""

Feeds = dict[str, npt.NDArray[np.int32]]
Outputs = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """max_abs: of any element, in the output `worst`. mean_cosine, min_cosine: over the `compared` output rows."""

    max_abs: float
    mean_cosine: float
    min_cosine: float
    worst: str
    compared: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sample_feeds(part: Part, *, vocabulary: int, pad_id: int, max_length: int, seed: int = 0) -> list[Feeds]:
    """Rows of random ids: three padded ones, one alone, one of a single token, one of the full length.

    The full length is max_length, but at most LONGEST_ROW. The padded rows are pairs to a model that tells the two
    texts of a pair apart: the second half of their tokens has type 1.
    """
    rng = np.random.default_rng(seed)
    rows = [(3, min(24, max_length)), (1, min(9, max_length)), (1, 1), (1, min(max_length, LONGEST_ROW))]
    feeds = []
    for batch, tokens in rows:
        ids = rng.integers(0, vocabulary, (batch, tokens), dtype=np.int32)
        ids[ids == pad_id] = (pad_id + 1) % vocabulary
        mask = np.ones((batch, tokens), np.int32)
        for row in range(1, batch):
            mask[row, max(1, tokens // (row + 1)) :] = 0
        ids[mask == 0] = pad_id
        feed = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in part.input_names:
            types = np.zeros((batch, tokens), np.int32)
            if batch > 1:
                lengths = mask.sum(axis=1, keepdims=True)
                types[(np.arange(tokens) >= lengths // 2) & (mask == 1)] = 1
            feed["token_type_ids"] = types
        feeds.append(feed)
    return feeds


def float_parity(
    part: Part, run: Callable[[Feeds], Outputs], feeds: Sequence[Feeds], *, limit: float = FLOAT_MAX_ABS
) -> Parity:
    """Compare a float graph (`run`) with the torch module it was traced from; padded positions do not count.

    Raises ParityError where an element differs by more than `limit`, or is not finite.
    """
    pairs: list[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
    for feed in feeds:
        with torch.inference_mode():
            values = part(*(torch.from_numpy(feed[name]) for name in part.input_names))
        actual = run(feed)
        kept = feed["attention_mask"].astype(bool)
        for name, value in zip(part.output_names, values, strict=True):
            expected, got = value.numpy(), actual[name]
            if expected.shape != got.shape:
                raise ParityError(f"output {name!r} has shape {got.shape} in the graph, {expected.shape} in torch")
            if 1 in part.output_axes[name]:
                expected, got = expected[kept], got[kept]
            pairs.append((name, expected, got))
    parity = compare(pairs)
    if not parity.max_abs <= limit:
        raise ParityError(
            f"output {parity.worst!r} of the float graph differs from torch by {parity.max_abs:.3g} (limit {limit:g})",
            "try another `export.opset` (18 or 23); the model may compute in another precision than float32",
        )
    return parity


def int8_parity(reference: Sequence[Outputs], candidate: Sequence[Outputs]) -> Parity:
    """Compare the outputs of an int8 graph with those of the float graph, request by request.

    Raises ParityError where the mean cosine is below INT8_MIN_COSINE or an output is not finite.
    """
    pairs = [
        (name, expected[name], got[name])
        for expected, got in zip(reference, candidate, strict=True)
        for name in expected
    ]
    parity = compare(pairs)
    if not (parity.mean_cosine >= INT8_MIN_COSINE and np.isfinite(parity.max_abs)):
        raise ParityError(
            f"the int8 graph does not answer like the float one: mean cosine {parity.mean_cosine:.3f} "
            f"(at least {INT8_MIN_COSINE}), worst output {parity.worst!r} (off by {parity.max_abs:.3g})",
            "leave layers in float with the quantize option `skip`, or calibrate on texts like those it will see",
        )
    return parity


def compare(pairs: Sequence[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]]) -> Parity:
    """(output, expected, got) with equal shapes (.., size); the last axis is a row. NaN counts as infinitely far."""
    worst, max_abs, cosines = "", -1.0, []
    for name, expected, got in pairs:
        with np.errstate(invalid="ignore"):
            difference = np.abs(expected.astype(np.float64) - got)
        largest = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        if largest > max_abs:
            worst, max_abs = name, largest
        a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (expected, got))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        both_zero = ~a.any(axis=1) & ~b.any(axis=1)
        with np.errstate(invalid="ignore"):
            cosine = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1)
        cosines.append(np.where(both_zero, 1.0, np.nan_to_num(cosine, nan=-1.0)))
    every = np.concatenate(cosines)
    return Parity(max_abs, float(every.mean()), float(every.min()), worst, len(every))

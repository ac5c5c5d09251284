"""Two forms of one model, compared output by output. A breach is an error that names the worst output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from edgec.errors import ParityError

if TYPE_CHECKING:
    from .follow import Agreement

FLOAT_MAX_ABS: Final = 1e-4
"""How far the float graph may be from torch, in any element of any output."""

INT8_MIN_COSINE: Final = 0.9
"""Mean cosine below which an int8 graph is broken and not merely coarse: careless quantization of all gives 0.8."""

REFERENCE_SHARE: Final = 0.5
"""The share of rows that each layer of an int8 graph must have in common with the same layer in torch.

A wrong number in a layer leaves none. Found, on every family and scheme: 0.97 and more, with attention on integers,
which hides the layers before it, 0.8. Less than half would take a tipped rounding in most texts.
"""

NOISE: Final = 3.0
"""How much farther the graph may be from its reference than that is from float, in 1 - cosine, on whole texts.

Among the thousands of roundings of a longer text some tip, and each sends everything after it another way: in the end
the two differ by their rounding errors, which are then independent. That makes 2; up to 1.1 was found.
"""

NOISE_FLOOR: Final = 1e-3
"""1 - cosine that is always allowed on whole texts: where rounding costs next to nothing, one that tips is all."""

LONGEST_ROW: Final = 1024
"""Tokens of the longest sample row. Attention is quadratic: a row of 8192 tokens would take many GB in torch."""

Feeds = dict[str, npt.NDArray[Any]]
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


@dataclass(frozen=True)
class ReferenceParity(Parity):
    """An int8 graph against the fake-quantized torch model. Parity's fields: of their answers.

    layers: how many layers were compared one by one, and the outputs with them. worst_layer: the one with the smallest
    share of rows in common (edgec.graph.follow.Agreement); worst_share: this share.
    """

    layers: int
    worst_layer: str
    worst_share: float


def sample_feeds(part: Any, *, vocabulary: int, pad_id: int, max_length: int, seed: int = 0) -> list[Feeds]:
    """Rows of random ids: three padded ones, one alone, one of a single token, one of the full length.

    A component that reads states (edgec.nn.seam) gets random ones.
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
        feed: Feeds = {"input_ids": ids, "attention_mask": mask}
        if "states" in part.input_names:
            width = part.seam.width
            feed = {"states": rng.standard_normal((batch, tokens, width), np.float32), "attention_mask": mask}
        if "token_type_ids" in part.input_names:
            types = np.zeros((batch, tokens), np.int32)
            if batch > 1:
                lengths = mask.sum(axis=1, keepdims=True)
                types[(np.arange(tokens) >= lengths // 2) & (mask == 1)] = 1
            feed["token_type_ids"] = types
        feeds.append(feed)
    return feeds


def float_parity(
    part: Any, run: Callable[[Feeds], Outputs], feeds: Sequence[Feeds], *, limit: float = FLOAT_MAX_ABS
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


def combined(found: Iterable[Parity]) -> Parity:
    """Of all graphs of a model: the worst figures, and the mean over all rows."""
    every = list(found)
    compared = sum(one.compared for one in every)
    worst = max(every, key=lambda one: one.max_abs)
    mean = sum(one.mean_cosine * one.compared for one in every) / compared
    return Parity(worst.max_abs, mean, min(one.min_cosine for one in every), worst.worst, compared)


def int8_parity(
    reference: Sequence[Outputs], candidate: Sequence[Outputs], *, min_cosine: float = INT8_MIN_COSINE
) -> Parity:
    """Compare the outputs of an int8 graph with those of the float graph, request by request.

    Raises ParityError where the mean cosine is below `min_cosine` or an output is not finite.
    """
    parity = compare(_paired(reference, candidate))
    if not (parity.mean_cosine >= min_cosine and np.isfinite(parity.max_abs)):
        raise ParityError(
            f"the int8 graph does not answer like the float one: mean cosine {parity.mean_cosine:.3f} "
            f"(at least {min_cosine}), worst output {parity.worst!r} (off by {parity.max_abs:.3g})",
            "leave layers in float with the quantize option `skip`, or calibrate on texts like those it will see",
        )
    return parity


def reference_parity(
    reference: Sequence[Outputs],
    candidate: Sequence[Outputs],
    exact: Sequence[Outputs],
    agreement: Mapping[str, Agreement],
) -> ReferenceParity:
    """Compare an int8 graph (`candidate`) with the torch model that rounds where it should (`reference`).

    agreement: layer by layer and output by output, as edgec.graph.follow found it: each must have REFERENCE_SHARE of
    its rows in common with torch. exact: the answers of the float model, which tell what rounding costs: 1 - mean
    cosine of graph and reference may be NOISE times that, or NOISE_FLOOR. Raises ParityError where one is broken,
    which includes outputs that are not finite.
    """
    wrong = [name for name, found in agreement.items() if not found.share >= REFERENCE_SHARE]
    if wrong:
        found = agreement[wrong[0]]
        raise ParityError(
            f"the int8 graph does not compute what was decided: at {wrong[0]} {1 - found.share:.0%} of its rows differ "
            f"from the same roundings in torch, by up to {found.largest:.2g} of the largest value ({len(wrong)} of "
            f"{len(agreement)} layers and outputs differ)",
            f"leave it in float: add `skip: ['{wrong[0]}']` to the quantize pass, and report it with the pass's "
            "options",
        )
    parity = compare(_paired(reference, candidate))
    noise = 1 - compare(_paired(exact, reference)).mean_cosine
    limit = 1 - max(NOISE * noise, NOISE_FLOOR)
    if not (parity.mean_cosine >= limit and np.isfinite(parity.max_abs)):
        raise ParityError(
            f"the int8 graph does not compute what was decided: mean cosine {parity.mean_cosine:.4f} with the same "
            f"roundings in torch (at least {limit:.4f}), worst output {parity.worst!r} (off by {parity.max_abs:.3g})",
            "report it with the options of the quantize pass and the family of the model",
        )
    worst = min(agreement, key=lambda name: agreement[name].share)
    return ReferenceParity(
        **asdict(parity), layers=len(agreement), worst_layer=worst, worst_share=agreement[worst].share
    )


def _paired(
    expected: Sequence[Outputs], got: Sequence[Outputs]
) -> list[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    return [(name, a[name], b[name]) for a, b in zip(expected, got, strict=True) for name in a]


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

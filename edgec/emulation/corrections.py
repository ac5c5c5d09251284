"""What a CPU's 16-bit sums add to an exact matrix product, as ONNX operators.

Pairs whose sum may not fit in 16 bits are few: with eight-bit weights some 2 % of all, with seven-bit weights none. So
for constant weights only those are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .kinds import Kind
from .products import HIGHEST, LOWEST, SPAN, first_of_pairs
from .tape import Tape

_CELLS: Final = 1 << 14
"""Pairs in one step, for each row of the first factor. It bounds the memory: 512 rows take 32 MB a tensor."""

INT32: Final = ir.DataType.INT32
INT64: Final = ir.DataType.INT64


@dataclass(frozen=True)
class Correction:
    """sums: int32, to be added to the exact product. pairs: int64 scalar, how many sums of two did not fit."""

    sums: ir.Value
    pairs: ir.Value


def risky_pairs(kind: Kind, b: npt.NDArray[np.int8]) -> npt.NDArray[np.intp] | None:
    """The pairs of constant weights (inputs, channels) whose sum may not fit, whatever they are multiplied by.

    Returns the first input of each, (pairs, channels): every channel's risky pairs, filled up to the same number with
    pairs that always fit. None where all fit.
    """
    first = first_of_pairs(len(b), SPAN[kind])
    b0, b1 = (b[inputs].astype(np.int32) for inputs in (first, first + SPAN[kind]))
    if kind == "arm64":
        risky = (b0 == -128) & (b1 == -128)
    else:
        most = 255 * (np.maximum(b0, 0) + np.maximum(b1, 0))
        least = 255 * (np.minimum(b0, 0) + np.minimum(b1, 0))
        risky = (most > HIGHEST) | (least < LOWEST)
    depth = int(risky.sum(axis=0).max(initial=0))
    return first[np.argsort(~risky, axis=0, kind="stable")[:depth]] if depth else None


def by_constant(
    op: Tape,
    kind: Kind,
    a: ir.Value,
    a_dtype: ir.DataType,
    b: npt.NDArray[np.int8],
    first: npt.NDArray[np.intp],
    exact: ir.Value,
) -> Correction:
    """Of a (.., inputs) by constant weights (inputs, channels), of which `first` are the risky pairs.

    op: takes the nodes. exact: the product itself.
    """
    columns = op.Transpose(op.Reshape(a, op.constant([-1, len(b)])), perm=[1, 0])
    first_axis = op.constant([0])
    width = max(1, _CELLS // len(first))
    sums, pairs = [], []
    for start in range(0, b.shape[1], width):
        inputs = first[:, start : start + width]
        channels = np.arange(start, start + inputs.shape[1])
        factors: list[tuple[ir.Value, ir.Value]] = []
        for side in (inputs, inputs + SPAN[kind]):
            picked = op.Gather(columns, op.constant(side, np.int32), axis=0)
            weights = op.constant(b[side, channels][..., None], np.int32)
            factors.append((op.Cast(picked, to=INT32), weights))
        lost = _lost(op, kind, a_dtype, factors)
        sums.append(op.ReduceSum(lost, first_axis, keepdims=0))
        pairs.append(_count(op, lost))
    total = op.ReduceSum(op.Concat(*(op.Unsqueeze(one, first_axis) for one in pairs), axis=0), keepdims=0)
    return Correction(op.Reshape(op.Transpose(op.Concat(*sums, axis=0), perm=[1, 0]), op.Shape(exact)), total)


def by_computed(op: Tape, kind: Kind, a: ir.Value, a_dtype: ir.DataType, b: ir.Value, exact: ir.Value) -> Correction:
    """Of a (.., rows, inputs) by what the graph computes, (.., inputs, channels): one pair of inputs after the other.

    The arguments are those of `by_constant`.
    """
    zero, one, span, block = (op.constant(value) for value in (0, 1, SPAN[kind], 2 * SPAN[kind]))
    inputs = op.Squeeze(op.Shape(a, start=-1))
    every = op.Range(zero, op.Max(op.Sub(inputs, span), zero), one)
    first = op.Compress(every, op.Less(op.Mod(every, block), span), axis=0)
    nothing = op.ConstantOfShape(op.Shape(exact), value=ir.tensor(np.zeros(1, np.int32)))
    body = _step(f"{op.prefix}.step", kind, a, a_dtype, b, first)
    sums, pairs = op.Loop(op.Size(first), None, nothing, zero, body=body, _outputs=2)
    return Correction(sums, pairs)


def _step(name: str, kind: Kind, a: ir.Value, a_dtype: ir.DataType, b: ir.Value, first: ir.Value) -> ir.Graph:
    """The body of a Loop: what one pair of inputs adds to the sums, for all rows and channels, and to the count."""
    op = Tape(name)
    step = ir.Value(name=f"{name}.step", type=ir.TensorType(INT64), shape=ir.Shape([]))
    on = ir.Value(name=f"{name}.on", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    sums = ir.Value(name=f"{name}.sums", type=ir.TensorType(INT32))
    pairs = ir.Value(name=f"{name}.pairs", type=ir.TensorType(INT64), shape=ir.Shape([]))
    near = op.Gather(first, step)
    pair = [
        (
            op.Unsqueeze(op.Cast(op.Gather(a, index, axis=-1), to=INT32), op.constant([-1])),
            op.Unsqueeze(op.Cast(op.Gather(b, index, axis=-2), to=INT32), op.constant([-2])),
        )
        for index in (near, op.Add(near, op.constant(SPAN[kind])))
    ]
    lost = _lost(op, kind, a_dtype, pair)
    return op.subgraph([step, on, sums, pairs], [op.Identity(on), op.Add(sums, lost), op.Add(pairs, _count(op, lost))])


def _lost(op: Tape, kind: Kind, a_dtype: ir.DataType, pair: Sequence[tuple[ir.Value, ir.Value]]) -> ir.Value:
    """What is to be added to the sum of two products, each (a, b) in int32: edgec.emulation.products."""
    if kind == "arm64":
        a_lowest = op.constant(0 if a_dtype == ir.DataType.UINT8 else -128, np.int32)
        b_lowest = op.constant(-128, np.int32)
        both = [op.And(op.Equal(a, a_lowest), op.Equal(b, b_lowest)) for a, b in pair]
        wrapped = op.constant(-(2**16), np.int32)
        return op.Mul(op.Cast(op.And(*both), to=INT32), wrapped)
    lowest, highest = (op.constant(bound, np.int32) for bound in (LOWEST, HIGHEST))
    summed = op.Add(*(op.Mul(a, b) for a, b in pair))
    return op.Sub(op.Clip(summed, lowest, highest), summed)


def _count(op: Tape, lost: ir.Value) -> ir.Value:
    """How many elements are not zero."""
    return op.ReduceSum(op.Cast(op.Cast(lost, to=ir.DataType.BOOL), to=INT64), keepdims=0)

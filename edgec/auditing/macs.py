"""Multiply-accumulates of one executed node, from the shapes that it ran on.

A matrix product of (m, k) by (k, n) is m * n * k multiply-accumulates. Other operators count 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates by the arithmetic that does them.

    int8: both factors are 8-bit integers. weight_only: weights are stored in few bits, the product is float.
    """

    int8: int = 0
    float: int = 0
    weight_only: int = 0

    @property
    def total(self) -> int:
        return self.int8 + self.float + self.weight_only

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.int8 + other.int8, self.float + other.float, self.weight_only + other.weight_only)


@dataclass(frozen=True)
class Executed:
    """An operator with what it ran on. A missing optional input has shape None."""

    op: str
    domain: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Shape | None]
    outputs: Sequence[Shape | None]

    def input(self, index: int) -> Shape | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def shape(self, index: int) -> Shape:
        """The shape of an input that the operator cannot do without."""
        shape = self.input(index)
        if shape is None:
            raise ValueError(f"{self.op} ran without input {index}")
        return shape

    @property
    def output(self) -> Shape:
        shape = self.outputs[0]
        assert shape is not None, self.op
        return shape


def _matmul(node: Executed) -> int:
    """prod(output) * inner. FusedMatMul may read its first factor transposed."""
    left = node.shape(0)
    inner = left[-1]
    if node.attributes.get("transA"):
        # transBatchA moves the first axis behind the batch axes: with transA it is the inner one.
        inner = left[0] if node.attributes.get("transBatchA") else left[-2]
    return prod(node.output) * inner


def _matmul_nbits(node: Executed) -> int:
    return prod(node.output) * node.shape(0)[-1]


def _convolution(weight: int) -> Callable[[Executed], int]:
    """prod(output) * (channels of a group * kernel); `weight` is the index of the weight."""
    return lambda node: prod(node.output) * prod(node.shape(weight)[1:])


def _scaled_dot_product(node: Executed, query: int, keys: int) -> int:
    """Q K^T and softmax V: every query element and every output element meets every key position.

    query: elements of Q over all heads; keys: key positions, the past included. The output has one element
    for each element of V that a query reads, a shared head counted once a query head.
    """
    return keys * (query + prod(node.output))


def _onnx_attention(node: Executed) -> int:
    """Q, K, V are (batch, heads, tokens, size) or (batch, tokens, heads * size); past_key is input 4."""
    past = node.input(4)
    keys = node.shape(1)[-2] + (past[2] if past else 0)
    return _scaled_dot_product(node, prod(node.shape(0)), keys)


def _multi_head_attention(node: Executed) -> int:
    """com.microsoft: Q alone, packed with K and V (batch, tokens, heads, 3, size), or with K and V packed."""
    query, key, past = node.shape(0), node.input(1), node.input(6)
    elements = prod(query) // (3 if len(query) == 5 else 1)
    keys = query[1] if key is None else key[2] if len(key) == 4 else key[1]
    return _scaled_dot_product(node, elements, keys + (past[2] if past else 0))


def _projected_attention(past_index: int) -> Callable[[Executed], tuple[int, int]]:
    """com.microsoft Attention and QAttention: the projection to Q, K, V (input 1), then the two products."""

    def count(node: Executed) -> tuple[int, int]:
        hidden, weight, past = node.shape(0), node.shape(1), node.input(past_index)
        projection = prod(hidden) * weight[-1]
        # Q is what is left of the projected width beside K, as wide as Q, and V, as wide as the output.
        query = prod(hidden[:-1]) * (weight[-1] - node.output[-1]) // 2
        return projection, _scaled_dot_product(node, query, hidden[1] + (past[3] if past else 0))

    return count


def _einsum(node: Executed) -> int:
    """The product of the sizes of all letters, where two factors meet."""
    if len(node.inputs) != 2:
        return 0
    terms = str(node.attributes["equation"]).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for index, letters in enumerate(terms):
        sizes.update(zip(letters, node.shape(index), strict=True))
    return prod(sizes.values())


_INT8: Final[Mapping[str, Callable[[Executed], int]]] = {
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "QLinearMatMul": _matmul,
    "QGemm": _matmul,
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
}
_FLOAT: Final[Mapping[str, Callable[[Executed], int]]] = {
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "TransposeMatMul": _matmul,
    "Gemm": _matmul,
    "FusedGemm": _matmul,
    "Conv": _convolution(1),
    "FusedConv": _convolution(1),
    "MultiHeadAttention": _multi_head_attention,
    "Einsum": _einsum,
}
_WEIGHT_ONLY: Final = ("MatMulNBits", "MatMulBnb4", "MatMulFpQ4")
UNCOUNTED: Final = frozenset(
    (
        "AttnLSTM",
        "CausalConvWithState",
        "ConvTranspose",
        "DecoderMaskedMultiHeadAttention",
        "DeformConv",
        "DynamicQuantizeLSTM",
        "GRU",
        "GroupQueryAttention",
        "LSTM",
        "LinearAttention",
        "MatMulInteger16",
        "MoE",
        "QMoE",
        "RNN",
        "SparseAttention",
        "SparseToDenseMatMul",
    )
)
"""Operators that multiply matrices and without a rule here; the audit names those that ran."""


def count(node: Executed) -> Macs:
    """The multiply-accumulates of `node`; zero for an operator without matrix products."""
    if node.op in _INT8:
        return Macs(int8=_INT8[node.op](node))
    if node.op in _WEIGHT_ONLY:
        return Macs(weight_only=_matmul_nbits(node))
    if node.op == "Attention" and node.domain == "":
        return Macs(float=_onnx_attention(node))
    if node.op == "Attention":
        projection, products = _projected_attention(4)(node)
        return Macs(float=projection + products)
    if node.op == "QAttention":  # its kernel multiplies Q, K and V in float
        projection, products = _projected_attention(8)(node)
        return Macs(int8=projection, float=products)
    if node.op in _FLOAT:
        return Macs(float=_FLOAT[node.op](node))
    return Macs()

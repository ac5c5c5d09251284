"""Multiply-accumulates of single operators, counted by hand."""

from __future__ import annotations

import pytest

from edgec.auditing.macs import Executed, Macs, count

MICROSOFT = "com.microsoft"


def executed(op: str, inputs: list, output: tuple, domain: str = "", **attributes: object) -> Executed:
    return Executed(op, domain, attributes, inputs, [output])


@pytest.mark.parametrize(
    ("node", "macs"),
    [
        (executed("MatMul", [(6,), (6, 5)], (5,)), Macs(float=30)),
        (executed("FusedMatMul", [(2, 7, 3), (2, 7, 4)], (2, 3, 4), MICROSOFT, transA=1), Macs(float=168)),
        (executed("Gemm", [(7, 3), (7, 4)], (3, 4), transA=1), Macs(float=84)),
        (executed("QGemm", [(3, 7), (), (), (7, 4)], (3, 4), MICROSOFT), Macs(int8=84)),
        (executed("MatMulInteger", [(3, 7), (7, 4)], (3, 4)), Macs(int8=84)),
        (executed("QLinearMatMul", [(3, 7), (), (), (7, 4)], (3, 4)), Macs(int8=84)),
        (executed("DynamicQuantizeMatMul", [(3, 7), (7, 4)], (3, 4), MICROSOFT), Macs(int8=84)),
        (executed("MatMulNBits", [(3, 7), (4, 1, 7)], (3, 4), MICROSOFT), Macs(weight_only=84)),
        (executed("MatMulNBits", [(2, 3, 7), (4, 1, 7), (4, 1)], (2, 3, 4), MICROSOFT), Macs(weight_only=168)),
        (executed("GatherBlockQuantized", [(9, 4), (2, 3), (9, 1)], (2, 3, 8), MICROSOFT), Macs()),
        # Quantized attention: 4 heads, scores of 5 queries and keys of 8, then the sum of 5 values of 8.
        (executed("MatMulIntegerToFloat", [(2, 4, 5, 8), (2, 4, 8, 5), (), ()], (2, 4, 5, 5), MICROSOFT),
         Macs(int8=2 * 4 * 5 * 5 * 8)),
        (executed("MatMulIntegerToFloat", [(2, 4, 5, 5), (2, 4, 5, 8), (), ()], (2, 4, 5, 8), MICROSOFT),
         Macs(int8=2 * 4 * 5 * 8 * 5)),
        (executed("Conv", [(1, 4, 9), (6, 2, 3)], (1, 6, 7), group=2), Macs(float=6 * 7 * 2 * 3)),
        (executed("QLinearConv", [(1, 4, 9), (), (), (6, 4, 3)], (1, 6, 7)), Macs(int8=6 * 7 * 4 * 3)),
        # 4 heads of 8, 5 queries on 3 past and 5 present keys
        (executed("Attention", [(1, 4, 5, 8), (1, 4, 5, 8), (1, 4, 5, 8), None, (1, 4, 3, 8)], (1, 4, 5, 8)),
         Macs(float=4 * 5 * 8 * (8 + 8))),
        # 8 query heads share 2 heads of keys and values, whose size is 6
        (executed("Attention", [(1, 5, 32), (1, 7, 8), (1, 7, 12)], (1, 5, 48)),
         Macs(float=8 * 5 * 7 * (4 + 6))),
        (executed("MultiHeadAttention", [(1, 5, 4, 3, 8)], (1, 5, 32), MICROSOFT),
         Macs(float=4 * 5 * 5 * 16)),
        (executed("MultiHeadAttention", [(1, 5, 32), (1, 4, 9, 8), (1, 4, 9, 8)], (1, 5, 32), MICROSOFT),
         Macs(float=4 * 5 * 9 * 16)),
        (executed("Attention", [(1, 5, 16), (16, 96), (96,)], (1, 5, 32), MICROSOFT),
         Macs(float=5 * 16 * 96 + 4 * 5 * 5 * 16)),
        (executed("QAttention", [(1, 5, 16), (16, 96)], (1, 5, 32), MICROSOFT),
         Macs(int8=5 * 16 * 96, float=4 * 5 * 5 * 16)),
        (executed("Einsum", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), equation="bij, bjk -> bik"), Macs(float=120)),
        (executed("LayerNormalization", [(2, 3, 4), (4,)], (2, 3, 4)), Macs()),
    ],
)  # fmt: skip
def test_macs_of_one_node(node: Executed, macs: Macs) -> None:
    assert count(node) == macs

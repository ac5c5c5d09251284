"""The numpy emulation against plain Python, and against onnxruntime on this CPU and on emulated ones."""

from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from devices.test_emulated import needs_emulator, needs_x86_emulator
from edgec_runtime import cpu
from emulation.cases import Array, answers, products, some
from emulation.conftest import AnswersOf

from edgec.emulation import KINDS, Kind, kind_of
from edgec.emulation.products import exact, product, saturated_pairs, saturating, wrapping
from edgec.errors import UserError


def slowly(a: Array, b: Array, kind: Kind) -> Array:
    """a @ b in Python's whole numbers, pairs of products in 16 bits where that CPU adds them so."""
    return np.array([[_element(row.tolist(), column.tolist(), a.dtype, kind) for column in b.T] for row in a])


def _element(a: list[int], b: list[int], dtype: np.dtype[np.generic], kind: Kind) -> int:
    if kind == "vnni" or (kind == "avx2" and dtype == np.int8):
        return sum(x * y for x, y in zip(a, b, strict=True))
    if kind == "avx2":
        terms = [x * y for x, y in zip(a, b, strict=True)]
        return sum(max(-32768, min(32767, sum(terms[k : k + 2]))) for k in range(0, len(terms), 2))
    shift = 128 if dtype == np.uint8 else 0
    terms = [(x - shift) * y for x, y in zip(a, b, strict=True)]
    total = shift * sum(b)
    for block in (terms[k : k + 16] for k in range(0, len(terms), 16)):
        for lane in range(min(8, len(block))):
            total += (sum(block[lane::8]) + 32768) % 65536 - 32768
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_sums_are_those_of_plain_python(kind: Kind, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(1)
    different = 0
    for inputs in (1, 2, 3, 8, 9, 15, 16, 17, 25, 40):
        for _ in range(3):
            a, b = some(rng, dtype, (4, inputs)), some(rng, np.int8, (inputs, 5))
            found = product(a, b, kind)
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, slowly(a, b, kind))
            different += not np.array_equal(found, exact(a, b))
    # What is told apart must be there: u8 x s8 saturates without VNNI, (-128) (-128) twice wraps on Arm.
    assert bool(different) == (kind == "arm64" or (kind == "avx2" and dtype == np.uint8))


def test_zero_points_take_no_part_in_saturation() -> None:
    a, b = np.full((1, 2), 255, np.uint8), np.full((2, 1), 127, np.int8)
    assert saturating(a, b)[0, 0] == 32767 and exact(a, b)[0, 0] == 2 * 255 * 127
    # (255 - 128) * 127 twice is 32258, which would fit; what is multiplied is 255.
    assert product(a, b, "avx2", a_zero=128)[0, 0] == 32767 - 128 * 254
    assert product(a, b, "vnni", a_zero=128)[0, 0] == 127 * 127 * 2
    assert product(a, b, "vnni", a_zero=128, b_zero=np.array([7]))[0, 0] == 127 * 120 * 2


def test_saturated_pairs_are_counted() -> None:
    a = np.array([[255, 255, 255, 255, 255], [255, 129, 0, 0, 255]], np.uint8)
    b = np.array([[127, -128], [127, -128], [2, 3], [-100, -126], [127, -128]], np.int8)
    # Rows by channels: 64770, -65280; 48768, -49536. The second pair always fits, the last input is alone.
    assert saturated_pairs(a, b) == 4
    assert saturated_pairs(a // 2, b) == 0


def test_a_wrapped_sum_is_off_by_two_to_the_sixteenth() -> None:
    a, b = np.zeros((1, 16), np.uint8), np.full((16, 1), -128, np.int8)
    assert wrapping(a, b)[0, 0] == -8 * 2**16
    b[3] = -127
    assert wrapping(a, b)[0, 0] == -7 * 2**16
    assert wrapping(a[:, :8], b[:8])[0, 0] == 0


def test_memory_is_bounded() -> None:
    rng = np.random.default_rng(2)
    a, b = some(rng, np.uint8, (256, 1024)), some(rng, np.int8, (1024, 512))
    tracemalloc.start()
    saturating(a, b)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # every pair at a time would take 64 M of them, 4 bytes each, several times


def _agrees(kind: Kind, found: dict[str, Array]) -> int:
    """Compares every product bit for bit; how many are not exact."""
    lossy = 0
    for case in products():
        expected = product(**case.product, kind=kind)
        np.testing.assert_array_equal(found[case.name], expected, err_msg=f"{case.name} {case.feeds}")
        lossy += not np.array_equal(expected, product(**case.product, kind="vnni"))
    return lossy


def test_this_cpu_answers_as_its_kind(tmp_path: Path) -> None:
    has = {cpu.feature(name) for name in cpu.features() or ()}
    kind: Kind = "vnni" if has & {"vnni", "dotprod"} else "avx2" if "avx2" in has else "arm64"
    _agrees(kind, answers([sys.executable], os.environ, products(), tmp_path))


@pytest.mark.emulated
@needs_x86_emulator
def test_haswell_saturates_bit_for_bit(answers_of: AnswersOf) -> None:
    assert _agrees("avx2", answers_of("Haswell")) > 50


@pytest.mark.emulated
@needs_emulator
def test_the_least_arm64_wraps_bit_for_bit(answers_of: AnswersOf) -> None:
    assert _agrees("arm64", answers_of("cortex-a72")) > 5


@pytest.mark.emulated
@needs_emulator
@pytest.mark.parametrize("cpu_name", ["neoverse-n1", "max,sve=off"])
def test_arm64_with_dot_product_is_exact(cpu_name: str, answers_of: AnswersOf) -> None:
    _agrees("vnni", answers_of(cpu_name))


def test_targets_have_kinds() -> None:
    names = ("x86_64-vnni", "x86_64-avx2", "raspberry-pi-4", "arm64-i8mm", "avx2")
    assert [kind_of(name) for name in names] == ["vnni", "avx2", "arm64", "arm64", "avx2"]
    with pytest.raises(UserError, match="'sse2' is neither") as caught:
        kind_of("sse2")
    assert "vnni, avx2, arm64" in caught.value.hint

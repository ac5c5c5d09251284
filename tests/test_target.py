from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgec.errors import RecipeError, UserError
from edgec.target import Target, detect, list_targets, load_target, misfits

REPOSITORY = Path(__file__).resolve().parent.parent

# As edgec_runtime.machine.facts() tells them; features that do not matter here are left out.
PI_4 = {
    "cpu": "ARM Cortex-A72",
    "board": "Raspberry Pi 4 Model B Rev 1.4",
    "arch": "aarch64",
    "features": ["asimd", "cpuid", "crc32", "evtstrm", "fp"],
    "cores": 4,
    "memory_mb": 3793,
    "os": "Debian GNU/Linux 12 (bookworm), Linux 6.6.31+rpt-rpi-v8",
}
PI_5 = {
    "cpu": "ARM Cortex-A76",
    "board": "Raspberry Pi 5 Model B Rev 1.0",
    "arch": "aarch64",
    "features": ["aes", "asimd", "asimddp", "asimdhp", "asimdrdm", "atomics", "fp", "fphp"],
    "cores": 4,
    "memory_mb": 8052,
    "os": "Debian GNU/Linux 12 (bookworm), Linux 6.6.31+rpt-rpi-2712",
}
PI_3_32_BIT = {
    "cpu": "ARM Cortex-A53",
    "board": "Raspberry Pi 3 Model B Rev 1.2",
    "arch": "armv7l",
    "features": ["crc32", "neon", "thumb", "vfpv4"],
    "os": "Raspbian GNU/Linux 11 (bullseye), Linux 6.1.21-v7+",
}
PI_3_64_BIT = {**PI_4, "cpu": "ARM Cortex-A53", "board": "Raspberry Pi 3 Model B Plus Rev 1.3"}
PI_400 = {**PI_4, "board": "Raspberry Pi 400 Rev 1.0"}
PI_500 = {**PI_5, "board": "Raspberry Pi 500 Rev 1.0"}
M1 = {
    "cpu": "Apple M1",
    "board": None,
    "arch": "arm64",
    "features": ["asimd", "asimddp"],
    "os": "Darwin 23.5.0",
}
M2 = {**M1, "cpu": "Apple M2", "features": ["asimd", "asimddp", "bf16", "i8mm"]}
GRAVITON_3 = {
    "cpu": "ARM Neoverse-V1",
    "board": None,
    "arch": "aarch64",
    "features": ["asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "svei8mm"],
    "os": "Ubuntu 24.04 LTS, Linux 6.8.0-1009-aws",
}
NEOVERSE_N1 = {
    **GRAVITON_3,
    "cpu": "ARM Neoverse-N1",
    "features": ["asimd", "asimddp", "asimdhp", "asimdrdm", "fp"],
}
PHONE = {
    "cpu": "ARM Cortex-A510 + Cortex-A715 + Cortex-X3",
    "board": None,
    "arch": "aarch64",
    "features": ["asimd", "asimddp", "bf16", "fp", "i8mm", "sve2"],
    "os": "Linux 5.15.104-android13-8-00017-g5dd5b0ea5ef3",
}
CASCADE_LAKE = {
    "cpu": "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz",
    "arch": "x86_64",
    "features": ["avx", "avx2", "avx512bw", "avx512dq", "avx512f", "avx512vl", "avx512_vnni", "fma"],
    "os": "Ubuntu 22.04.4 LTS, Linux 6.5.0",
}
ALDER_LAKE = {
    **CASCADE_LAKE,
    "cpu": "12th Gen Intel(R) Core(TM) i5-12600K",
    "features": ["avx", "avx2", "avx_vnni", "fma"],
}
HASWELL = {
    **CASCADE_LAKE,
    "cpu": "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz",
    "features": ["avx", "avx2", "bmi2", "fma"],
}
SKYLAKE_X = {
    **HASWELL,
    "features": ["avx", "avx2", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "fma"],
}
ZEN_5 = {
    **CASCADE_LAKE,
    "cpu": "AMD EPYC 9755",
    "features": ["avx", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni"],
}
SANDY_BRIDGE = {**HASWELL, "cpu": "Intel(R) Core(TM) i7-2600", "features": ["avx", "sse4_1", "sse4_2"]}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (PI_4, "raspberry-pi-4"),
        (PI_400, "raspberry-pi-4"),
        (PI_5, "raspberry-pi-5"),
        (PI_500, "raspberry-pi-5"),
        (PI_3_64_BIT, "arm64"),
        (M1, "apple-silicon"),
        (M2, "apple-silicon"),
        (GRAVITON_3, "arm64-i8mm"),
        (NEOVERSE_N1, "arm64-dotprod"),
        (PHONE, "android-arm64"),
        (CASCADE_LAKE, "x86_64-vnni"),
        (ALDER_LAKE, "x86_64-vnni"),
        (ZEN_5, "x86_64-vnni"),
        (HASWELL, "x86_64-avx2"),
        (SKYLAKE_X, "x86_64-avx2"),
    ],
)
def test_detect_on_recorded_machines(facts: dict[str, Any], expected: str) -> None:
    target, reasons = detect(facts)
    assert target.name == expected
    assert reasons and not misfits(target, facts)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (PI_3_32_BIT, "armv7l is a 32-bit system"),
        (SANDY_BRIDGE, "x86_64-avx2: its CPU has no avx2"),
        ({"arch": "riscv64", "features": ["v"], "os": "Linux"}, "its architecture is riscv64"),
        ({"arch": "x86_64", "features": None, "os": "Windows 11"}, "its CPU features are not known"),
        ({}, "its architecture is unknown"),
    ],
)
def test_a_machine_that_none_fits_is_refused_with_the_reason(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        detect(facts)
    assert message in caught.value.message and caught.value.hint


def test_detect_among_the_targets_of_a_recipe() -> None:
    some = [load_target(name) for name in ("x86_64-avx2", "arm64")]
    assert detect(ZEN_5, some)[0].name == "x86_64-avx2"
    assert detect(PI_4, some)[0].name == "arm64"


def test_no_two_shipped_targets_are_equally_specific() -> None:
    kinds = [(t.arch, t.os, t.board, t.features, t.int8) for t in list_targets()]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "targets").iterdir()), ids=lambda path: path.name)
def test_every_shipped_target_is_right_and_documented(path: Path) -> None:
    target = load_target(path)
    assert target in list_targets() and target.name == path.stem and target.summary
    assert f"\n## {target.name}\n" in (REPOSITORY / "docs" / "targets.md").read_text()


def test_answers_rely_on_vnni_only_where_weights_have_eight_bits_on_x86() -> None:
    assert {t.name: t.answer_features for t in list_targets() if t.answer_features} == {"x86_64-vnni": ("vnni",)}


def test_int8_is_one_model_on_every_level_of_arm64() -> None:
    assert len({t.int8 for t in list_targets() if t.arch == "aarch64"}) == 1


GOOD = "edgec: 1\nname: mine\narch: x86_64\nfeatures: [avx2, vnni]\nint8: {reduce_range: false}\n"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "arch: x86_64",
            "arch: arm64",
            "mine.yaml:3: arch: should be x86_64 or aarch64, not the text 'arm64'",
        ),
        (
            "vnni]",
            "vni]",
            "mine.yaml:4: features.1: should be neon or dotprod or i8mm or avx2 or vnni, not the text",
        ),
        (
            "reduce_range: false",
            "weights: uint8",
            "mine.yaml:5: int8.weights: should be int8, not the text 'uint8'",
        ),
        (
            "features: [avx2, vnni]\n",
            "",
            "mine.yaml:1: int8.reduce_range should be true on x86_64 without vnni",
        ),
        ("edgec: 1", "edgec: 1\nverified: emulated", "mine.yaml:1: verified: emulated needs emulated"),
        (
            "edgec: 1",
            "edgec: 1\nverified: true",
            "mine.yaml:2: verified: should be hardware or emulated or false",
        ),
        ("edgec: 1", "edgec: 9", "mine.yaml:1: edgec: the file is of format 9"),
        ("mine", "yours", "mine.yaml:2: name: should be 'mine', as the file is called"),
        ("edgec: 1", "edgec: 1\nforms: {gelo: tanh}", "mine.yaml:2: forms.gelo: unknown key; did you mean 'gelu'?"),
        ("edgec: 1", "edgec: 1\nforms: {gelu: erf}", "mine.yaml:2: forms.gelu: should be exact or tanh, not the text"),
        ("edgec: 1", "edgec: 1\nmemory: 1", "mine.yaml:2: memory: unknown key; did you mean 'memory_mb'?"),
    ],
)
def test_what_is_wrong_with_a_target_is_named(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert isinstance(load_target(path), Target)
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_target(path)
    assert caught.value.message.replace(f"{tmp_path}/", "").startswith(complaint)

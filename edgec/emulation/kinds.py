"""The kinds of CPU whose 8-bit products may answer differently."""

from __future__ import annotations

from typing import Final, Literal, get_args

from edgec.errors import UserError
from edgec.target import Target, list_targets

Kind = Literal["vnni", "avx2", "arm64"]
"""vnni: x86-64 with AVX512_VNNI or AVX-VNNI. avx2: x86-64 with AVX2 or AVX-512 and neither. arm64: Armv8.0-A and later,
where the least of them, without dot product, is the one that is emulated."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


def kind_of(name: str) -> Kind:
    """The kind of that name, or that of the CPUs which the shipped target of that name is for. Raises UserError."""
    for kind in KINDS:
        if name == kind:
            return kind
    targets = {target.name: target for target in list_targets()}
    if name not in targets:
        raise UserError(
            f"{name!r} is neither a kind of CPU nor a target", f"kinds are {', '.join(KINDS)}; `edgec targets list`"
        )
    return kind_of_target(targets[name])


def kind_of_target(target: Target) -> Kind:
    """The kind of CPU that a target's machines have."""
    if target.arch == "aarch64":
        return "arm64"
    return "vnni" if "vnni" in target.features else "avx2"

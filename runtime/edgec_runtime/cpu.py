"""What the CPU is, in the words of targets, and whether it has what a bundle's answers rely on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

from .manifest import TargetInfo
from .notices import BundleWarning, warn

MOST_THREADS: Final = 1024
"""onnxruntime starts as many as it is told, and more than any machine has work for would fill its memory."""

_ARCHITECTURES: Final = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
# A feature has one name in targets and bundles, whatever /proc/cpuinfo, Arm or macOS call it. The two forms of VNNI
# (in 512-bit and in 256-bit registers) give the same exact sums of u8 x s8 products, so they are one feature.
_FEATURES: Final = {
    "asimd": "neon",
    "advsimd": "neon",
    "asimddp": "dotprod",
    "feat_dotprod": "dotprod",
    "feat_i8mm": "i8mm",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
}


def architecture(name: str | None = None) -> str:
    """The machine's architecture as targets spell it: x86_64, aarch64."""
    name = (name or platform.machine()).lower()
    return _ARCHITECTURES.get(name, name)


def feature(name: str) -> str:
    """A CPU feature as targets spell it: neon, dotprod, i8mm, avx2, vnni ..."""
    return _FEATURES.get(name.lower(), name.lower())


def usable_cpus() -> int:
    """How many logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """The CPU features that Linux lists for the first CPU, None where there is no such list."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as file:
            text = file.read(8192)  # one CPU's entry; a big machine's whole file takes milliseconds
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def warn_if_unfit(target: TargetInfo, machine: str, has: frozenset[str] | None) -> None:
    """One BundleWarning where the answers verified for the target may come out differently here.

    Without VNNI, for example, an x86 CPU saturates 16-bit sums of u8 x s8 products.
    """
    if architecture(target.arch) != machine:
        warn(
            f"the bundle was made for {target.arch}, this machine is {machine}: answers may differ",
            BundleWarning,
        )
        return
    if has is None:
        return
    known = {feature(name) for name in has}
    missing = [name for name in target.features if feature(name) not in known]
    if missing:
        warn(
            f"this CPU lacks {', '.join(missing)}, which the answers of target {target.name} rely on: "
            "they may differ; export for a target that fits this machine",
            BundleWarning,
        )

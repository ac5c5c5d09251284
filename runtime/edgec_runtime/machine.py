"""What the machine is that a figure was measured on. A fact that a system does not tell is None."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .cpu import architecture, usable_cpus

# An arm64 kernel's /proc/cpuinfo gives only numbers: those of the main ID register (MIDR_EL1).
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
}

# macOS names CPU features in its own way; here they get the names of Linux' /proc/cpuinfo.
_MAC_FEATURES = {
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512bw": "avx512bw",
    "hw.optional.avx512vl": "avx512vl",
}


def facts() -> dict[str, Any]:
    """Facts of this machine, of its state now, and of the software: JSON values only.

    cpu: its name. board: the device tree's model ("Raspberry Pi 4 Model B Rev 1.4"). arch: "x86_64" or
    "aarch64". features: CPU features by the names of Linux' /proc/cpuinfo. cores: physical; cpus: logical;
    usable: those that this process may run on. governor: of the CPU frequency. load: the run queue, averaged
    over 1, 5 and 15 minutes. memory_mb: installed. versions: None for a package that is not installed.
    """
    cpuinfo = _read("/proc/cpuinfo") or ""
    mac = _sysctl() if sys.platform == "darwin" else {}
    return {
        "cpu": _cpu(cpuinfo) or mac.get("machdep.cpu.brand_string") or platform.processor() or None,
        "board": _read("/proc/device-tree/model"),
        "arch": architecture(),
        "features": _features(cpuinfo, mac),
        "cores": _cores(cpuinfo) or _number(mac.get("hw.physicalcpu")),
        "cpus": os.cpu_count(),
        "usable": usable_cpus(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load": _load(),
        "memory_mb": _memory_mb(mac),
        "os": _os(),
        "versions": {
            "python": platform.python_version(),
            "edgec_runtime": __version__,
            "onnxruntime": _version("onnxruntime"),
            "numpy": _version("numpy"),
            "tokenizers": _version("tokenizers"),
        },
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the facts as JSON; - is stdout")


def run(options: argparse.Namespace) -> int:
    """`python -m edgec_runtime facts`."""
    found = facts()
    if options.json and options.json != "-":
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    elif options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{name:<10} {_plain(value)}\n" for name, value in found.items())
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one or 'absent'}" for name, one in value.items())
    if isinstance(value, list):
        return " ".join(str(one) for one in value)
    return "unknown" if value is None else str(value)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip("\x00\n ") or None
    except OSError:
        return None


def _field(cpuinfo: str, name: str) -> str | None:
    match = re.search(rf"^{name}\s*:[ \t]*(\S.*)$", cpuinfo, re.MULTILINE | re.IGNORECASE)
    return match[1].strip() if match else None


def _cpu(cpuinfo: str) -> str | None:
    name = _field(cpuinfo, "model name")
    if name:
        return name
    implementer, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    if implementer is None or part is None:
        return None
    # A machine of big and little cores lists several parts.
    parts = list(dict.fromkeys(re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE)))
    if implementer == "0x41":
        return "ARM " + " + ".join(_ARM_PARTS.get(one, one) for one in parts)
    return f"implementer {implementer} part {' + '.join(parts)}"


def _features(cpuinfo: str, mac: dict[str, str]) -> list[str] | None:
    line = _field(cpuinfo, "flags") or _field(cpuinfo, "Features")
    if line:
        return sorted(line.split())
    return sorted({ours for name, ours in _MAC_FEATURES.items() if mac.get(name) == "1"}) or None


def _cores(cpuinfo: str) -> int | None:
    """Physical cores. arm64 kernels list none; there every logical CPU is a core."""
    ids = re.findall(r"^physical id\s*:\s*(\d+)$.*?^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE | re.DOTALL)
    if ids:
        return len(set(ids))
    processors = re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)
    return len(processors) or None


def busy(seconds: float = 0.3) -> float | None:
    """The share of all CPU time that others use just now, or None where the system does not tell.

    The load average is no measure of that: it still counts what this program itself did a minute ago.
    """
    before = _cpu_times()
    time.sleep(seconds)
    after = _cpu_times()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return 1 - (after[0] - before[0]) / (after[1] - before[1])


def _cpu_times() -> tuple[int, int] | None:
    """(idle, all) ticks of all CPUs together since the start of the system."""
    first = (_read("/proc/stat") or "").partition("\n")[0].split()
    if len(first) < 6 or first[0] != "cpu":
        return None
    ticks = [int(value) for value in first[1:9]]  # guest time, which follows, is counted in user time already
    return ticks[3] + ticks[4], sum(ticks)


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):  # not on Windows
        return None


def _memory_mb(mac: dict[str, str]) -> int | None:
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo") or "", re.MULTILINE)
    if total:
        return int(total[1]) // 1024
    size = _number(mac.get("hw.memsize"))
    return size // 2**20 if size else None


def _os() -> str:
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release") or "", re.MULTILINE)
    kernel = f"{platform.system()} {platform.release()}"
    return f"{name[1]}, {kernel}" if name else kernel


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _sysctl(names: Sequence[str] = ("hw", "machdep.cpu")) -> dict[str, str]:
    """All values below `names`, as macOS' sysctl prints them."""
    try:
        done = subprocess.run(["sysctl", *names], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition(": ") for line in done.stdout.splitlines())
    return {name: value.strip() for name, _, value in pairs}

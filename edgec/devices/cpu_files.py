"""What an emulated CPU looks like from the inside: its features, and the /proc and /sys files that tell them.

onnxruntime finds out at import which CPU it runs on from /proc/cpuinfo and /sys/devices/system/cpu. Under
qemu-user those are the host's files, on which its detection crashes; `qemu -L` redirects them into a folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

# The names the Linux kernel gives the bits of AT_HWCAP and AT_HWCAP2 (arch/arm64/include/uapi/asm/hwcap.h).
_HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc "
    "dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
_HWCAP2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 "
    "i8mm bf16 dgh rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32 smeb16f32 "
    "smef32f32 smefa64"
)

# Implementer and part number of the main ID register, by QEMU's name of the CPU.
_IDENTITY = {
    "a64fx": ("0x46", "0x001"),
    "cortex-a35": ("0x41", "0xd04"),
    "cortex-a53": ("0x41", "0xd03"),
    "cortex-a55": ("0x41", "0xd05"),
    "cortex-a57": ("0x41", "0xd07"),
    "cortex-a72": ("0x41", "0xd08"),
    "cortex-a76": ("0x41", "0xd0b"),
    "neoverse-n1": ("0x41", "0xd0c"),
    "neoverse-v1": ("0x41", "0xd40"),
}
_NO_REAL_CPU = ("0x41", "0xd0f")  # Arm's architecture model

_CORES = 2
# level, type, size in KiB, line size in bytes, ways, sets; the sizes of a Cortex-A72
_CACHES = (
    (1, "Data", 32, 64, 2, 256),
    (1, "Instruction", 48, 64, 3, 256),
    (2, "Unified", 1024, 64, 16, 1024),
)


def features(hwcap: int, hwcap2: int) -> tuple[str, ...]:
    """The kernel's names of the features in two words of the auxiliary vector, in /proc/cpuinfo's order."""
    words = ((_HWCAP.split(), hwcap), (_HWCAP2.split(), hwcap2))
    return tuple(name for names, word in words for bit, name in enumerate(names) if word >> bit & 1)


def write(folder: Path, cpu: str, cpu_features: Sequence[str]) -> None:
    """Write proc/ and sys/ of a machine with two such cores. `cpu`: QEMU's name of it, without options."""
    _put(folder / "proc", {"cpuinfo": _cpuinfo(cpu, cpu_features)})
    everyone = f"0-{_CORES - 1}"
    system = folder / "sys/devices/system/cpu"
    _put(system, {"possible": everyone, "present": everyone, "online": everyone, "kernel_max": "255"})
    for core in range(_CORES):
        own = system / f"cpu{core}"
        _put(own / "cpufreq", {"cpuinfo_max_freq": "1800000", "cpuinfo_min_freq": "600000"})
        shared = dict.fromkeys(("cluster_cpus_list", "core_siblings_list", "package_cpus_list"), everyone)
        alone = dict.fromkeys(("thread_siblings_list", "core_cpus_list", "core_id"), str(core))
        _put(own / "topology", {**shared, **alone, "physical_package_id": "0"})
        for index, (level, kind, size, line, ways, sets) in enumerate(_CACHES):
            cache = {
                "level": str(level),
                "type": kind,
                "size": f"{size}K",
                "coherency_line_size": str(line),
                "ways_of_associativity": str(ways),
                "number_of_sets": str(sets),
                "shared_cpu_list": str(core) if level == 1 else everyone,
            }
            _put(own / f"cache/index{index}", cache)


def _cpuinfo(cpu: str, cpu_features: Sequence[str]) -> str:
    implementer, part = _IDENTITY.get(cpu, _NO_REAL_CPU)
    lines = {
        "BogoMIPS": "108.00",
        "Features": " ".join(cpu_features),
        "CPU implementer": implementer,
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": part,
        "CPU revision": "3",
    }
    body = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
    return "\n".join(f"processor\t: {core}\n{body}" for core in range(_CORES))


def _put(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text.rstrip("\n") + "\n")

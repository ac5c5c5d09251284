"""What an emulated CPU looks like from the inside: its features, and the /proc and /sys files that tell them.

onnxruntime finds out at import which CPU it runs on from /proc/cpuinfo and /sys/devices/system/cpu. Under
qemu-user those are the host's files, on which its detection of arm64 crashes; `qemu -L` redirects them into a folder.
"""

from __future__ import annotations

import struct
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


# The kernel's names of CPUID's bits, as far as numbers are computed with them or tell a CPU's level
# (arch/x86/include/asm/cpufeatures.h): by leaf, subleaf and register (EAX, EBX, ECX, EDX), the bit of each.
_CPUID_BITS = {
    (1, 0, 2): "pni:0 pclmulqdq:1 ssse3:9 fma:12 cx16:13 sse4_1:19 sse4_2:20 movbe:22 popcnt:23 aes:25 avx:28 f16c:29",
    (1, 0, 3): "fpu:0 tsc:4 cx8:8 cmov:15 mmx:23 fxsr:24 sse:25 sse2:26",
    (7, 0, 1): "bmi1:3 avx2:5 bmi2:8 avx512f:16 avx512dq:17 adx:19 avx512ifma:21 avx512cd:28 sha_ni:29 avx512bw:30 "
    "avx512vl:31",
    (7, 0, 2): "avx512vbmi:1 avx512_vbmi2:6 gfni:8 vaes:9 vpclmulqdq:10 avx512_vnni:11 avx512_bitalg:12",
    (7, 0, 3): "amx_bf16:22 avx512_fp16:23 amx_tile:24 amx_int8:25",
    (7, 1, 0): "avx_vnni:4 avx512_bf16:5",
    (0x80000001, 0, 2): "lahf_lm:0 abm:5 sse4a:6",
    (0x80000001, 0, 3): "syscall:11 nx:20 lm:29",
}
_BRAND = (0x80000002, 0x80000003, 0x80000004)
CPUID_LEAVES = ((0, 0), (1, 0), (7, 0), (7, 1), (0x80000001, 0), *((leaf, 0) for leaf in _BRAND))
"""The leaves and subleaves that `write_x86` asks for."""

Registers = Mapping[tuple[int, int], tuple[int, ...]]
"""By leaf and subleaf, what CPUID returns in EAX, EBX, ECX and EDX."""


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


def x86_features(registers: Registers) -> tuple[str, ...]:
    """The kernel's names of the features that an x86 CPU tells of itself."""
    found = []
    for (leaf, subleaf, register), names in _CPUID_BITS.items():
        value = registers[leaf, subleaf][register]
        found += [name for name, bit in (entry.split(":") for entry in names.split()) if value >> int(bit) & 1]
    return tuple(found)


def write_x86(folder: Path, registers: Registers, host: str) -> None:
    """Write proc/cpuinfo: `host`, that of this machine, as if its cores were the emulated CPU's."""
    _, b, c, d = registers[0, 0]
    signature = registers[1, 0][0]
    family, model = signature >> 8 & 15, signature >> 4 & 15
    told = {
        "vendor_id": struct.pack("<3I", b, d, c).decode("ascii", "replace"),
        "cpu family": str(family + (signature >> 20 & 255 if family == 15 else 0)),
        "model": str(model + (signature >> 16 & 15) * 16 * (family in (6, 15))),
        "model name": b"".join(struct.pack("<4I", *registers[leaf, 0]) for leaf in _BRAND).decode().strip("\0 "),
        "stepping": str(signature & 15),
        "flags": " ".join(x86_features(registers)),
    }
    lines = []
    for line in host.splitlines():
        key, colon, _ = line.partition(":")
        lines.append(f"{key}: {told[key.strip()]}" if colon and key.strip() in told else line)
    _put(folder / "proc", {"cpuinfo": "\n".join(lines)})


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

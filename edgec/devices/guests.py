"""How a process is started on an emulated CPU: which Python, on which files, with which environment.

For arm64 there is a system of its own (sysroot). For x86-64, on a machine that is x86-64, it is this machine's own
Python; only /proc/cpuinfo is another one.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import edgec_runtime
from edgec_runtime.cpu import architecture

from edgec.errors import DeviceError, UserError

from . import cpu_files, sysroot

_AT_HWCAP, _AT_HWCAP2 = 16, 26
# The kernel tells a process its CPU's features in the auxiliary vector, and qemu fills that in.
_READ_AUXV = "import sys; sys.stdout.buffer.write(open('/proc/self/auxv', 'rb').read())"
# Nothing tells them on x86 but the instruction CPUID, which no Python function executes: f(leaf, subleaf, *registers).
_READ_CPUID = """
import ctypes, json, mmap, sys
code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("53 89f8 89f1 4989d0 0fa2 418900 41895804 41894808 4189500c 5b c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)
found = []
for leaf, subleaf in json.loads(sys.argv[1]):
    registers = (ctypes.c_uint32 * 4)()
    call(leaf, subleaf, ctypes.addressof(registers))
    found.append([leaf, subleaf, *registers])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Guest:
    """command: starts Python on the emulated CPU. environment: what that process gets."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class _Emulator:
    """name: of the program. listed: finds the CPUs in what it prints for `-cpu help`. start: see `start_guest`."""

    name: str
    listed: re.Pattern[str]
    start: Callable[[str, str, Path], Guest]


def start_guest(cpu: str, home: Path) -> Guest:
    """The guest for a CPU, with options after commas, of the emulator that knows it; `home` is a folder for its files.

    Raises UserError for a CPU that no emulator knows, DeviceError where what it takes is not installed.
    """
    name = cpu.split(",")[0]
    known: dict[str, list[str]] = {}
    for emulator in _EMULATORS:
        program = shutil.which(emulator.name)
        if program is None:
            continue
        text = subprocess.run([program, "-cpu", "help"], capture_output=True, text=True).stdout
        known[emulator.name] = emulator.listed.findall(text)
        if name in known[emulator.name]:
            return emulator.start(program, cpu, home)
    if missing := [emulator.name for emulator in _EMULATORS if emulator.name not in known]:
        what = f" to look for the CPU {name!r} in" if known else ""
        raise DeviceError(f"{' and '.join(missing)} is not installed{what}", sysroot.INSTALL_QEMU)
    raise UserError(
        f"qemu has no CPU {name!r}",
        "; ".join(f"{program} has {', '.join(_main_names(names))}" for program, names in known.items()),
    )


def _main_names(names: list[str]) -> list[str]:
    """Without the versions of a CPU model ("Haswell-v1"): its name alone stands for the latest."""
    return [name for name in names if not re.search(r"-v\d+$", name)]


def _arm64_guest(qemu: str, cpu: str, home: Path) -> Guest:
    root = sysroot.installed_root()
    tree = _arm64_tree(qemu, root, cpu)
    # Alone in a folder: what else is installed beside the runtime was made for this machine's CPU.
    (home / "edgec_runtime").symlink_to(Path(edgec_runtime.__file__).resolve().parent)
    python = tree / sysroot.guest_python(root).relative_to(root)
    # Nothing of the host's own environment: its library and Python paths lead to x86 files.
    environment = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join((str(home), str(sysroot.guest_packages(root)))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Guest((qemu, "-cpu", cpu, "-L", str(tree), str(python)), environment)


def _arm64_tree(qemu: str, root: Path, cpu: str) -> Path:
    """A folder for `qemu -L`: the shared system with this CPU's own /proc and /sys. Made once, then kept."""
    tree = root.parent / "cpus" / cpu
    if tree.is_dir():
        return tree
    values = dict(
        struct.iter_unpack("<QQ", _ask(qemu, cpu, ["-L", str(root), str(sysroot.guest_python(root))], _READ_AUXV))
    )
    found = cpu_files.features(values[_AT_HWCAP], values.get(_AT_HWCAP2, 0))
    try:
        tree.parent.mkdir(exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{cpu}.partial-", dir=tree.parent))
        for entry in root.iterdir():
            (partial / entry.name).symlink_to(os.path.relpath(entry, tree))
        cpu_files.write(partial, cpu.split(",")[0], found)
        try:
            partial.rename(tree)
        except OSError:
            # Another process was faster, and its tree is the same; any other cause shows in the next line.
            shutil.rmtree(partial)
            if not tree.is_dir():
                raise
    except OSError as error:
        raise DeviceError(f"cannot write {tree}: {error}", "set EDGEC_CACHE to a folder of yours") from error
    return tree


def _x86_guest(qemu: str, cpu: str, home: Path) -> Guest:
    if architecture() != "x86_64":
        raise DeviceError(
            f"qemu://{cpu} runs this machine's own Python, and this machine is {platform.machine()}, not x86_64",
            "`edgec verify BUNDLE --as avx2` computes here what such a CPU answers",
        )
    leaves = _ask(qemu, cpu, [sys.executable], _READ_CPUID, json.dumps(cpu_files.CPUID_LEAVES))
    registers = {(leaf, subleaf): tuple(values) for leaf, subleaf, *values in json.loads(leaves)}
    tree = home / "tree"
    cpu_files.write_x86(tree, registers, Path("/proc/cpuinfo").read_text(errors="replace"))
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "TMPDIR": str(home)}
    return Guest((qemu, "-cpu", cpu, "-L", str(tree), sys.executable), environment)


def _ask(qemu: str, cpu: str, python: list[str], code: str, *args: str) -> bytes:
    """What a Python program prints on the emulated CPU."""
    command = [qemu, "-cpu", cpu, *python, "-I", "-S", "-c", code, *args]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        program = Path(qemu).name
        raise UserError(f"{program} refuses the CPU {cpu!r}: {said}", f"{program} -cpu help lists the CPUs")
    return done.stdout


# Both know a CPU "max": that of arm64 it is.
_EMULATORS: Final = (
    _Emulator("qemu-aarch64", re.compile(r"^ +(\S+)$", re.MULTILINE), _arm64_guest),
    _Emulator("qemu-x86_64", re.compile(r"^x86 (\S+)", re.MULTILINE), _x86_guest),
)

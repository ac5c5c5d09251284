"""An arm64 CPU emulated by qemu-user as a device: `qemu://cortex-a72`, `qemu://neoverse-n1`, `qemu://max,sve=off`.

It proves that a bundle gives the right answers on a CPU with those features. It says nothing about speed.
docs/emulation.md explains how it is put together.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import edgec_runtime
from edgec_runtime.integrity import read_manifest

from edgec.errors import DeviceError, UserError

from . import cpu_files, sysroot
from .device import Completed, read_facts, run_process

_SCHEME = "qemu://"
_CPU = re.compile(r"[a-z0-9.-]+(,[a-z0-9.-]+=[a-z0-9.-]+)*")
_AT_HWCAP, _AT_HWCAP2 = 16, 26
# The kernel tells a process its CPU's features in the auxiliary vector, and qemu fills that in.
_READ_AUXV = "import sys; sys.stdout.buffer.write(open('/proc/self/auxv', 'rb').read())"


class EmulatedDevice:
    """`qemu://CPU`; CPU is a name that `qemu-aarch64 -cpu help` lists, with options after commas.

    Making one raises UserError for a CPU that cannot be emulated rightly; entering it raises UserError for
    one that qemu does not know, and DeviceError where qemu or the arm64 system is not installed.
    """

    emulated = True

    def __init__(self, url: str) -> None:
        self.name = url
        self._cpu = _parse(url)
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._command: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        qemu = sysroot.find_qemu()
        _require_known(qemu, self._cpu)
        root = sysroot.installed_root()
        tree = _cpu_tree(qemu, root, self._cpu)
        self._home = tempfile.TemporaryDirectory(prefix="edgec-emulated-", ignore_cleanup_errors=True)
        # Alone in a folder: what else is installed beside the runtime was made for this machine's CPU.
        (Path(self._home.name) / "edgec_runtime").symlink_to(Path(edgec_runtime.__file__).resolve().parent)
        python = tree / sysroot.guest_python(root).relative_to(root)
        self._command = (qemu, "-cpu", self._cpu, "-L", str(tree), str(python))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._home:
            self._home.cleanup()
            self._home = None

    def place(self, folder: Path) -> str:
        """Nothing is copied: the emulated device sees the files of this machine."""
        read_manifest(folder)
        return str(folder.resolve())

    def runtime(
        self,
        args: Sequence[str],
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """As Device says, and a UserError for `bench`: the time that emulation takes is not the CPU's."""
        if args and args[0] == "bench":
            raise UserError(
                f"{self.name} is emulated and cannot be measured: its time says nothing about a real CPU",
                "measure on a real device, --on ssh://user@host; emulation serves for verify and run",
            )
        # -P: a file in the folder that edgec was started from must not stand in for a module.
        command = [*self._command, "-P", "-m", "edgec_runtime", *args]
        try:
            return run_process(command, timeout=timeout, on_line=on_line, env=self._environment())
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{self.name}: {' '.join(args[:1])} took more than {timeout:g} s",
                "emulation is 10 to 100 times slower than the CPU it stands for",
            ) from None

    def facts(self) -> dict[str, Any]:
        return read_facts(self.runtime(["facts", "--json", "-"]), self.name)

    def _environment(self) -> dict[str, str]:
        """Nothing of the host's own environment: its library and Python paths lead to x86 files."""
        if self._home is None:
            raise DeviceError(f"{self.name} is used outside its with block")
        home = self._home.name
        return {
            "HOME": home,
            "TMPDIR": home,
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "ORT_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join((home, str(sysroot.guest_packages(sysroot.installed_root())))),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def _parse(url: str) -> str:
    cpu = url.removeprefix(_SCHEME).rstrip("/")
    if not url.startswith(_SCHEME) or not _CPU.fullmatch(cpu):
        raise UserError(f"{url!r} names no emulated CPU", "write qemu://cortex-a72 or qemu://max,sve=off")
    name, *options = cpu.split(",")
    if name == "max" and not {"sve=off", "sme=off"} & set(options):
        raise UserError(
            f"{url} would emulate the matrix extension SME, on which QEMU returns garbage for dynamic int8",
            "use qemu://max,sve=off (dot product, i8mm) or qemu://max,sme=off,sve-max-vq=1 (and SVE)",
        )
    return cpu


def _require_known(qemu: str, cpu: str) -> None:
    help_text = subprocess.run([qemu, "-cpu", "help"], capture_output=True, text=True).stdout
    known = [line.strip() for line in help_text.splitlines() if line.startswith(" ")]
    if cpu.split(",")[0] not in known:
        raise UserError(f"qemu-aarch64 has no CPU {cpu!r}", f"it has {', '.join(known)}")


def _cpu_tree(qemu: str, root: Path, cpu: str) -> Path:
    """A folder for `qemu -L`: the shared system with this CPU's own /proc and /sys. Made once, then kept."""
    tree = root.parent / "cpus" / cpu
    if tree.is_dir():
        return tree
    found = _features(qemu, root, cpu)
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


def _features(qemu: str, root: Path, cpu: str) -> tuple[str, ...]:
    python = str(sysroot.guest_python(root))
    command = [qemu, "-cpu", cpu, "-L", str(root), python, "-I", "-S", "-c", _READ_AUXV]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise UserError(f"qemu-aarch64 refuses the CPU {cpu!r}: {said}", "qemu-aarch64 -cpu help lists the CPUs")
    values = dict(struct.iter_unpack("<QQ", done.stdout))
    return cpu_files.features(values[_AT_HWCAP], values.get(_AT_HWCAP2, 0))

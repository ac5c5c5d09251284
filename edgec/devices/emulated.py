"""A CPU emulated by qemu-user as a device: `qemu://cortex-a72`, `qemu://max,sve=off`, `qemu://Haswell`.

It proves that a bundle gives the right answers on a CPU with those features. It says nothing about speed.
docs/emulation.md explains how it is put together.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgec_runtime.integrity import read_manifest

from edgec.errors import DeviceError, UserError

from .device import Completed, read_facts, run_process
from .guests import Guest, start_guest

_SCHEME = "qemu://"
_CPU = re.compile(r"[A-Za-z0-9._-]+(,[a-z0-9._-]+=[a-z0-9.-]+)*")


class EmulatedDevice:
    """`qemu://CPU`; CPU is a name that `qemu-aarch64 -cpu help` or `qemu-x86_64 -cpu help` lists, options after commas.

    Making one raises UserError for a CPU that cannot be emulated rightly; entering it raises UserError for
    one that qemu does not know, and DeviceError where qemu or the arm64 system is not installed.
    guest: how processes are started there, inside the with block.
    """

    emulated = True

    def __init__(self, url: str) -> None:
        self.name = url
        self._cpu = _parse(url)
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self.guest: Guest | None = None

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="edgec-emulated-", ignore_cleanup_errors=True)
        try:
            self.guest = start_guest(self._cpu, Path(self._home.name))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self.guest = None
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
        if self.guest is None:
            raise DeviceError(f"{self.name} is used outside its with block")
        # -P: a file in the folder that edgec was started from must not stand in for a module.
        command = [*self.guest.command, "-P", "-m", "edgec_runtime", *args]
        try:
            return run_process(command, timeout=timeout, on_line=on_line, env=self.guest.environment)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{self.name}: {' '.join(args[:1])} took more than {timeout:g} s",
                "emulation is 10 to 100 times slower than the CPU it stands for",
            ) from None

    def facts(self) -> dict[str, Any]:
        return read_facts(self.runtime(["facts", "--json", "-"]), self.name)


def _parse(url: str) -> str:
    cpu = url.removeprefix(_SCHEME).rstrip("/")
    if not url.startswith(_SCHEME) or not _CPU.fullmatch(cpu):
        raise UserError(
            f"{url!r} names no emulated CPU", "write qemu://cortex-a72, qemu://max,sve=off or qemu://Haswell"
        )
    name, *options = cpu.split(",")
    if name == "max" and not {"sve=off", "sme=off"} & set(options):
        raise UserError(
            f"{url} would emulate the matrix extension SME, on which QEMU returns garbage for dynamic int8",
            "use qemu://max,sve=off (dot product, i8mm) or qemu://max,sme=off,sve-max-vq=1 (and SVE)",
        )
    return cpu

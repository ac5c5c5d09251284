"""This machine as a device: the runtime runs in a process of its own, with this interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgec_runtime.integrity import read_manifest

from edgec.errors import DeviceError

from .device import Completed, read_facts, run_process


class LocalDevice:
    name = "local"
    emulated = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def place(self, folder: Path) -> str:
        """Nothing is copied: the folder is where it should be."""
        read_manifest(folder)
        return str(folder.resolve())

    def runtime(
        self,
        args: Sequence[str],
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        # -P: a file in the folder that edgec was started from must not stand in for a module.
        command = [sys.executable, "-P", "-m", "edgec_runtime", *args]
        try:
            return run_process(command, timeout=timeout, on_line=on_line)
        except subprocess.TimeoutExpired:
            raise DeviceError(f"local: {' '.join(args[:1])} took more than {timeout:g} s") from None

    def facts(self) -> dict[str, Any]:
        return read_facts(self.runtime(["facts", "--json", "-"]), self.name)

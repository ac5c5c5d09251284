"""What only a fresh process can tell: cold start, load time, peak memory. The process itself is `probe`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .errors import EngineFailed

_READY = "ready"
_IMPORTS = f"import numpy, onnxruntime, tokenizers; print({_READY!r}, flush=True)"

# Started like the bare imports: `-m` would add the time of its own machinery, which no app pays.
_PROBE = "import sys; from edgec_runtime.probe import main; main(*sys.argv[1:])"


def cold_start_ms(bundle: Path, threads: int) -> float:
    """From the start of a process to its answer to one text, hashes of all files verified."""
    return _spawn(["-c", _PROBE, "cold", str(bundle), str(threads)])[0]


def imports_ms() -> float:
    """From the start of a process to the end of `import numpy, onnxruntime, tokenizers`: no bundle can start
    faster."""
    return _spawn(["-c", _IMPORTS])[0]


def load(bundle: Path, threads: int) -> tuple[float, float | None]:
    """How long a process that has these packages imported takes to load the bundle, in ms, and the most
    memory that it has held when it has answered one text, in MiB (None where the system does not tell)."""
    told = json.loads(_spawn(["-c", _PROBE, "load", str(bundle), str(threads)])[1])
    return told["load_ms"], told["peak_memory_mb"]


def _spawn(arguments: list[str]) -> tuple[float, str]:
    """Milliseconds from the start of a process to its line "ready", and what it wrote after that line."""
    # The child finds its modules as this process found them.
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), *arguments]
    # In an app that was installed modules are compiled. Where this stands they would be compiled at every start.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # stderr goes to a file: a pipe that nobody reads meanwhile could fill up.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, text=True, env=environment
        ) as child:
            assert child.stdout
            try:
                ready = child.stdout.readline()
                elapsed = (time.perf_counter() - start) * 1e3
                told = child.stdout.read()
            except BaseException:
                child.kill()
                raise
        words.seek(0)
        complaint = words.read()
    if child.returncode or ready.strip() != _READY:
        said = complaint.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise EngineFailed(f"a fresh process failed: {said[0]}", f"run it by hand: {' '.join(command)}")
    return elapsed, told

"""`main("cold" or "load", bundle, threads)`: what the fresh process does that `fresh` starts and times.

It writes "ready" as soon as it has its answer; what it does after that is not counted. Before that it imports
nothing that an app would not import.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .manifest import Manifest

_TEXT = "A fresh process answers its first text."


def main(mode: str, bundle: str, threads: str) -> None:
    if mode == "load":
        import numpy  # noqa: F401
        import onnxruntime  # noqa: F401
        import tokenizers  # noqa: F401
    start = time.perf_counter()
    from . import load

    model = load(bundle, threads=int(threads))
    load_ms = (time.perf_counter() - start) * 1e3
    model.raw([_request(model.manifest)])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    import json

    sys.stdout.write(json.dumps({"load_ms": load_ms, "peak_memory_mb": peak_memory_mb()}))


def _request(manifest: Manifest) -> Any:
    if manifest.task == "question-answering":
        return {"question": "What does it answer?", "context": _TEXT}
    return f"{_TEXT} {manifest.postprocessing.mask_token or ''}"


def peak_memory_mb() -> float | None:
    """The most resident memory that this process ever had, in MiB.

    VmHWM counts from the start of the program; ru_maxrss also counts what its parent held before the exec.
    """
    import re

    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if match:
        return int(match[1]) / 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024

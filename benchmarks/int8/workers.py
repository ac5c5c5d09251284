"""The processes that peers run in: long-lived workers that answer JSON lines, and fresh ones for cold starts."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .contenders import PEERS, Contender
from .environments import PeerFailed

RUNTIME = Path(__file__).parents[2] / "runtime"
LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
TIMEOUT = 900
"""Seconds; the longest is the first call of a model that its tool compiles."""


class Worker:
    """peers/SCRIPT.py serve, on the given cores. `ask` raises PeerFailed for what goes wrong there."""

    def __init__(self, contender: Contender, interpreter: Path, folder: Path, *, threads: int, cores: set[int]) -> None:
        self.contender, self.folder, self.threads = contender, folder, threads
        # stderr goes to a file: a pipe that nobody reads meanwhile could fill up.
        self._words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [str(interpreter), str(contender.path), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=environment(threads),
            cwd=PEERS,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def load(self) -> float:
        """Milliseconds that loading took, the imports not counted."""
        found: float = self.ask("load", folder=str(self.folder), threads=self.threads)["load_ms"]
        return found

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(f"the process ended: {self._last_words()}") from None
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            cause = "the process ended" if ready else f"no answer within {TIMEOUT} s"
            raise PeerFailed(f"{do}: {cause}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{do}: {answer['error']}")
        return answer

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()  # it holds nothing that has to be put in order
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._words):
            if pipe:
                with contextlib.suppress(BrokenPipeError):  # stdin may hold what the process did not live to read
                    pipe.close()

    def _last_words(self) -> str:
        self._words.seek(0)
        return " ".join(self._words.read().strip().splitlines()[-3:])


def environment(threads: int) -> dict[str, str]:
    """The caller's own variables are left out, but for those that say where things are."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    limits = dict.fromkeys(LIMITS, str(threads))
    return {**kept, **limits, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "EDGEC_RUNTIME": str(RUNTIME)}


def prepare(contender: Contender, interpreter: Path, arguments: Sequence[Path]) -> None:
    """`SCRIPT.py prepare`. Raises PeerFailed with the last lines of what it said."""
    command = [str(interpreter), str(contender.path), "prepare", *map(str, arguments)]
    threads = len(os.sched_getaffinity(0))
    done = subprocess.run(command, env=environment(threads), cwd=PEERS, capture_output=True, text=True)
    if done.returncode:
        raise PeerFailed(f"prepare: {' '.join(done.stderr.strip().splitlines()[-3:])}")


def cold_start(contender: Contender, interpreter: Path, folder: Path, text: str) -> tuple[float, float]:
    """Milliseconds from the start of a process to its first embedding, and the most memory that it held by then, in
    MiB."""
    elapsed, told = fresh([str(interpreter), str(contender.path), "cold", str(folder), "1", text])
    return elapsed, json.loads(told)["peak_memory_mb"]


def imports(interpreter: Path) -> float:
    """Milliseconds of a fresh `import numpy, onnxruntime, tokenizers`: what a bundle's cold start is compared with."""
    code = "import sys, numpy, onnxruntime, tokenizers; sys.stdout.write('ready\\n'); sys.stdout.flush()"
    return fresh([str(interpreter), "-c", code])[0]


def fresh(command: Sequence[str]) -> tuple[float, str]:
    """Milliseconds until the process writes its line "ready", and what follows that line."""
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        start = time.perf_counter()
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            env=environment(1),
            cwd=PEERS,
        ) as process:
            assert process.stdout
            # Some libraries print while they load.
            ready = any(line == "ready\n" for line in iter(process.stdout.readline, ""))
            elapsed = (time.perf_counter() - start) * 1e3
            told = process.stdout.read()
        if not ready:
            words.seek(0)
            raise PeerFailed(f"cold: {' '.join(words.read().strip().splitlines()[-3:])}")
    return elapsed, told

"""A device: a concrete place to run a bundle, reached by a URL."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from edgec.errors import DeviceError


@dataclass(frozen=True)
class Completed:
    """A finished process: its exit code and all that it wrote."""

    code: int
    stdout: str
    stderr: str


class Device(Protocol):
    """Where bundles run. Use it as a context manager: entering connects, leaving disconnects.

    name: the URL. emulated: True where times say nothing about a real machine.
    """

    @property
    def name(self) -> str: ...

    @property
    def emulated(self) -> bool: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def place(self, folder: Path) -> str:
        """Put the bundle `folder` on the device, unless the same content is there; returns its path there.

        Raises a BundleError, before anything is sent, for what is no bundle.
        """
        ...

    def runtime(
        self,
        args: Sequence[str],
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run `python -m edgec_runtime ARGS` there. `on_line` gets each line of stderr as it comes.

        Raises DeviceError where the device cannot be reached or `timeout` (seconds) has passed; a program
        that fails by itself is no error here, its exit code is in the result.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """The machine facts of `edgec_runtime.machine.facts`, gathered there."""
        ...


def run_process(
    command: Sequence[str],
    *,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
    env: Mapping[str, str] | None = None,
    feed: Callable[[IO[bytes]], None] | None = None,
) -> Completed:
    """Run a command to its end.

    Its stdin is an open pipe until it ends, so that a wrapper can tell by the end of stdin that this process
    has gone; `feed` writes to that pipe and closes it. Whatever interrupts the wait ends the command too.
    Raises subprocess.TimeoutExpired, and OSError where the command cannot be started.
    """
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stdin and process.stdout and process.stderr
    texts: dict[str, list[str]] = {"stdout": [], "stderr": []}

    def read(stream: IO[bytes], name: str, tell: Callable[[str], None] | None) -> None:
        for line in stream:
            text = line.decode(errors="replace")
            texts[name].append(text)
            if tell:
                tell(text.rstrip("\r\n"))

    readers = [
        threading.Thread(target=read, args=(process.stdout, "stdout", None), daemon=True),
        threading.Thread(target=read, args=(process.stderr, "stderr", on_line), daemon=True),
    ]
    try:
        for reader in readers:
            reader.start()
        if feed:
            # The command may end early: its exit code and its words then tell why.
            with contextlib.suppress(BrokenPipeError):
                feed(process.stdin)
                process.stdin.close()
        process.wait(timeout)
    except BaseException:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        for reader, stream in zip(readers, (process.stdout, process.stderr), strict=True):
            # After an interruption a process that the command left behind may still hold the pipe.
            reader.join(None if process.returncode == 0 else 5)
            if not reader.is_alive():
                stream.close()
    return Completed(process.returncode, "".join(texts["stdout"]), "".join(texts["stderr"]))


def read_facts(completed: Completed, name: str) -> dict[str, Any]:
    """The machine facts that `python -m edgec_runtime facts --json -` printed on the device `name`."""
    try:
        facts = json.loads(completed.stdout) if completed.code == 0 else None
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DeviceError(
            f"{name}: the runtime there does not start: {last_words(completed)}",
            "run the same command by hand on the device: python -m edgec_runtime facts --json -",
        )
    return facts


def refusal(completed: Completed) -> tuple[str, str] | None:
    """What the runtime said after "error:" and "hint:" as it refused, or None where it did not get that far."""
    said = dict(line.split(": ", 1) for line in completed.stderr.splitlines() if line.startswith(("error: ", "hint: ")))
    return (said["error"], said.get("hint", "")) if "error" in said else None


def last_words(completed: Completed, lines: int = 3) -> str:
    """The last lines that a failed process wrote to stderr, in one line, or its exit code."""
    said = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
    return "; ".join(said[-lines:]) or f"exit code {completed.code}"

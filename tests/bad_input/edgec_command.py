"""`edgec` in a process of its own, as a user starts it, and what every refusal looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "edgec")


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str


def environment(**changes: str) -> dict[str, str]:
    """This process's, without what would make edgec talk more or reach a network."""
    kept = {name: value for name, value in os.environ.items() if name != "EDGEC_TRACEBACK"}
    return {**kept, "HF_HUB_OFFLINE": "1", **changes}


def edgec(*args: str | bytes | Path, **options: Any) -> Done:
    """Run a command to its end. options: of `started`."""
    with started(*args, **options) as running:
        return running.end()


@dataclass(frozen=True)
class Running:
    """A command that has been started, with a session of its own. stderr: the file it writes to."""

    pid: int
    stdout: Path
    stderr: Path
    server: subprocess.Popen[str]

    def end(self) -> Done:
        code = int(_line(self.server))
        return Done(code, self.stdout.read_bytes().decode(), self.stderr.read_bytes().decode())


@contextmanager
def started(
    *args: str | bytes | Path, cwd: Path, stdin: bytes = b"", torch: bool = True, file_limit: int | None = None
) -> Iterator[Running]:
    """A command as a fork of a process that has imported it; see command_server. torch: False where it must not be
    imported. file_limit: how many bytes a file may have."""
    server = _server("torch" if torch else "lean")
    with tempfile.TemporaryDirectory(prefix="edgec-command-") as folder:
        streams = {name: Path(folder, name) for name in ("stdin", "stdout", "stderr")}
        for name, path in streams.items():
            path.write_bytes(stdin if name == "stdin" else b"")
        request = {
            "args": [os.fsdecode(arg) for arg in args],
            "cwd": str(cwd),
            "environment": environment(),
            "file_limit": file_limit,
            **{name: str(path) for name, path in streams.items()},
        }
        assert server.stdin is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        yield Running(int(_line(server)), streams["stdout"], streams["stderr"], server)


def _line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, f"the process that starts commands has ended: {server.poll()}"
    return line


_servers: dict[str, subprocess.Popen[str]] = {}
_exports: list[Path] = []


@contextmanager
def servers(exports: Path) -> Iterator[None]:
    """While it is open `started` can be called. exports: the folder of what torch exported in this test run."""
    _exports.append(exports)
    yield
    for server in _servers.values():
        with server:  # its stdin ends, and so does it
            pass


def _server(parts: str) -> subprocess.Popen[str]:
    if parts not in _servers:
        _servers[parts] = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("command_server.py"), parts, *_exports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(PYTHONPATH=str(Path(__file__).parents[1])),
        )
    return _servers[parts]


def assert_refused(done: Done, code: int, *words: str, stdout: str = "") -> None:
    """One error with its cause and place (`words`), one hint, nothing else of note, nothing on stdout."""
    lines = done.stderr.splitlines()
    kinds = [line.partition(":")[0] for line in lines]
    assert done.code == code, done
    assert (kinds.count("error"), kinds.count("hint")) == (1, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == stdout
    told = "\n".join(lines[kinds.index("error") :])
    missing = [word for word in words if word not in told]
    assert not missing, f"{missing} not in {told}"
    assert len(lines[kinds.index("hint")]) > len("hint: ")


def tree(folder: Path) -> list[str]:
    """Everything below a folder, hidden things too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

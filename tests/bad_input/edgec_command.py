"""`edgec` in a process of its own, as a user starts it, and what every refusal looks like."""

from __future__ import annotations

import os
import subprocess
import sys
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


def edgec(*args: str | bytes | Path, cwd: Path, stdin: bytes = b"", **options: Any) -> Done:
    """Run a command to its end. options: of subprocess.run."""
    done = subprocess.run(
        [*COMMAND, *args],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=120,
        **{"env": environment(), **options},
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def without_torch(folder: Path) -> dict[str, str]:
    """An environment in which an import of torch fails: what is refused at once does not wait for it."""
    package = folder / "no torch" / "torch"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    return environment(PYTHONPATH=str(package.parent))


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

"""A virtual environment for each peer, below the cache folder; the project's own is never touched."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .contenders import PEERS

NEEDED = 3 * 2**30
"""Bytes that must be free before an environment with torch is made."""


class PeerFailed(Exception):
    """A peer could not be installed, prepared or run; the text stands in the results in its place."""


@contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Two runs at a time would disturb each other's times and replace each other's files: SystemExit for the second."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another run of this benchmark is under way in {cache}") from None
        yield


def python(name: str, cache: Path) -> Path:
    """The interpreter of an environment, made or made again where its requirements have changed.

    Raises PeerFailed with pip's own words.
    """
    folder = cache / name
    requirements = PEERS / f"{name}.txt"
    text = requirements.read_text()
    interpreter = folder / "venv" / "bin" / "python"
    stamp = folder / "installed"
    wanted = hashlib.sha256(text.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return interpreter
    if shutil.disk_usage(cache).free < NEEDED:
        raise PeerFailed(f"{cache} has less than {NEEDED >> 30} GiB free")
    print(f"installing {name}", file=sys.stderr)
    _call([sys.executable, "-m", "venv", "--clear", str(folder / "venv")])
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    if "\ntorch==" in text:
        # First and alone: with a CPU build in place nothing pulls a GPU build in.
        _call([*pip, "--constraint", str(requirements), "torch"])
    _call([*pip, "--requirement", str(requirements)])
    stamp.write_text(wanted)
    return interpreter


def versions(interpreter: Path) -> dict[str, str]:
    """Every package of an environment."""
    listed = _call([str(interpreter), "-m", "pip", "freeze", "--disable-pip-version-check"])
    return dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)


def _call(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-3:]
        raise PeerFailed(" ".join(errors))
    return done.stdout

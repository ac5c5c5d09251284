"""`.ci/run` with a `make` that only talks: skipped tests fail it, and it ends with make's own status."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/run"


def run(folder: Path, closing: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it where `make test` prints `closing` and ends with `status`, and apt-get installs nothing."""
    make = f'[ "$1" = test ] || exit 0\necho "{closing}"\nexit {status}'
    for name, text in {"make": make, "apt-get": "", "sudo": ""}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CI": "true"}
    return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)


def test_all_passed(tmp_path: Path) -> None:
    assert run(tmp_path, "==== 7 passed, 2 warnings in 3.21s ====").returncode == 0


@pytest.mark.parametrize("kind", ["skipped", "xfailed", "deselected"])
def test_a_test_that_did_not_run_fails(tmp_path: Path, kind: str) -> None:
    done = run(tmp_path, f"==== 7 passed, 1 {kind} in 3.21s ====")
    assert done.returncode == 1
    assert f"1 {kind}" in done.stderr


def test_no_closing_line_fails(tmp_path: Path) -> None:
    done = run(tmp_path, "make: nothing to be done")
    assert done.returncode == 1
    assert "pytest did not say" in done.stderr


def test_the_status_of_make_is_kept(tmp_path: Path) -> None:
    done = run(tmp_path, "==== 1 failed, 7 passed in 3.21s ====", status=2)
    assert done.returncode == 2
    assert "1 failed" in done.stdout

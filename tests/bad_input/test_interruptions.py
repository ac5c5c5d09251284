"""Ctrl-C, kill -9 and full disks in the middle of the work."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from edgec_command import Done, assert_refused, edgec, started, tree

from edgec.target import Target

RECIPE = """\
edgec: 1
model: {{source: {model}}}
data: {{calibrate: {{text: texts.txt}}}}
passes: [quantize]
targets: [{target}]
"""


@pytest.fixture
def work(models: Path, foreign: Target, tmp_path: Path) -> Path:
    """A folder with a recipe for a machine that is not here, so that nothing is measured."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.format(model=models / "embedding", target=foreign.name))
    (folder / "texts.txt").write_text("Ada walked to the old house.\nThe train from Bern was late.\n")
    return folder


def compress(folder: Path, *args: str) -> Done:
    return edgec("compress", "--recipe", "recipe.yaml", "--out", "out", *args, cwd=folder)


def stop(folder: Path, line: str, number: signal.Signals, *args: str) -> tuple[Done, int]:
    """Start compress, send its process group a signal when stderr says `line`, and wait for its end."""
    with started("compress", "--recipe", "recipe.yaml", "--out", "out", *args, cwd=folder) as running:
        deadline = time.monotonic() + 120
        while line not in running.stderr.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(running.pid, number)
        done = running.end()
    assert line in done.stderr, done
    return done, running.pid


def group(leader: int) -> list[str]:
    """The command lines of the processes of a group that still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, parent_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(parent_group) == leader and state != "Z":
                found.append((process / "cmdline").read_text())
        except OSError:  # it has just ended
            continue
    return found


def test_kill_then_ctrl_c_then_resume(work: Path, here: Target) -> None:
    before = tree(work)

    done, _ = stop(work, "export for", signal.SIGKILL)
    assert done.code == -signal.SIGKILL
    assert not (work / "out").exists()
    left = [path for path in work.iterdir() if path.name.startswith(".out.") and path.name != ".out.passes"]
    for path in left:  # nobody is there to remove the unfinished folder; it does not bear the final name
        shutil.rmtree(path)

    done, leader = stop(work, "warming up", signal.SIGINT, "--set", f"targets=[{here.name}]")
    assert_refused(done, 130, "error: interrupted", "--resume")
    deadline = time.monotonic() + 10
    while group(leader) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert group(leader) == []
    assert [name for name in tree(work) if "/" not in name] == [".out.passes", *before]

    done = compress(work, "--resume")
    assert done.code == 0, done.stderr
    assert "pass quantize: taken from the interrupted run" in done.stderr
    assert [name for name in tree(work) if "/" not in name] == ["out", *before]
    bundle = next((work / "out" / "bundles").iterdir())
    assert (bundle / "manifest.json").is_file()


def test_disk_that_fills(work: Path, small_disk: Path) -> None:
    done = edgec("compress", "--recipe", "recipe.yaml", "--out", small_disk / "out", cwd=work)
    assert_refused(done, 3, str(small_disk), "No space left on device")
    assert tree(small_disk) == []


def test_file_that_may_not_grow(models: Path, here: Target, tmp_path: Path) -> None:
    """The other way a write fails half-way: a limit on the size of a file."""
    command = ["export", models / "embedding", "--target", here.name, "--out", "out"]
    done = edgec(*command, cwd=tmp_path, file_limit=16 * 1024)
    assert_refused(done, 3, "File too large")
    assert tree(tmp_path) == []


def test_a_polite_kill_cleans_up_as_ctrl_c_does(work: Path) -> None:
    before = tree(work)
    done, _ = stop(work, "export for", signal.SIGTERM)
    assert_refused(done, 130, "error: interrupted")
    assert [name for name in tree(work) if "/" not in name] == [".out.passes", *before]

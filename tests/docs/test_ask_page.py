"""docs/ask.md: its commands and its snippet run on a tiny bundle, and its recipe is one."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from decoupled_bundle import write_decoupled
from pages import ROOT, command_lines, fences

from edgec.cli.main import invoke
from edgec.passes import PASSES
from edgec.recipe import check_passes, load_recipe

PAGE = ROOT / "docs/ask.md"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_decoupled(tmp_path / "build/my-reader/bundles/x86_64-vnni", max_length=64)
    for name in ("notes/a.txt", "notes/old.txt", "more/b.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"Ada works in Bern . {name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"who works in Bern ?\n")))
    return tmp_path


def test_commands_run(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in command_lines(PAGE, "edgec") if "compress" not in line and "ray" not in line]
    assert len(lines) == 7  # those with Ray are run by tests/test_sharding.py
    for line in lines:
        command = line.replace("BUNDLE", "build/my-reader/bundles/x86_64-vnni")
        assert invoke(shlex.split(command)[1:]) == 0, capfd.readouterr().err
        assert capfd.readouterr().out


def test_the_snippet_runs(workspace: Path) -> None:
    (body,) = fences(PAGE, "python")
    done = subprocess.run([sys.executable, "-c", body], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_recipe_is_one(tmp_path: Path) -> None:
    (text,) = fences(PAGE, "yaml")
    (tmp_path / "my-reader.yaml").write_text(text)
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_text('{"data": []}')
    recipe = load_recipe(tmp_path / "my-reader.yaml")
    assert [type(one).__name__ for one in check_passes(recipe, PASSES)] == ["Finetune", "Decouple", "Quantize"]

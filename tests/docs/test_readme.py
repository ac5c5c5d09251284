"""The README's commands run, in their order, on a tiny model; so do the snippets that use what they wrote."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, command_lines, fences, name, text
from tiny_models import SENTENCES, sentence_transformer

from edgec.cli.main import invoke
from edgec.report import COLUMNS

README = ROOT / "README.md"
COMMANDS = command_lines(README, "edgec")
COMPRESS = "edgec compress --recipe my-model.yaml"
# Tested where doctor is: it tries every import in a process of its own.
ELSEWHERE = ("edgec doctor --repair",)
USED_BY_APPS = (README, ROOT / "docs/embedding.md", ROOT / "runtime/README.md")
SNIPPETS = [(page, body) for page in USED_BY_APPS for body in fences(page, "python")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that "Your own model" speaks of, after its `edgec compress`.

    Only an arm64 target is exported, so that nothing is timed, with weights that saturate on no machine; its bundle
    then stands for that of x86_64-vnni.
    """
    folder = tmp_path_factory.mktemp("readme")
    sentence_transformer(folder / "my-model")
    (folder / "calibrate.txt").write_text("\n".join(SENTENCES[:4]) + "\n", encoding="utf-8")
    (folder / "evaluate.txt").write_text("\n".join(SENTENCES[4:]) + "\n", encoding="utf-8")
    recipe, classifier = fences(README, "yaml")
    assert len(recipe.splitlines()) == 10
    (folder / "my-classifier.yaml").write_text(classifier, encoding="utf-8")
    for file in ("train.csv", "test.csv"):
        rows = [f'"{text}",{("calm", "glad")[len(text) % 2]}' for text in SENTENCES]
        (folder / file).write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "my-model.yaml").write_text(recipe, encoding="utf-8")
    arm64 = (ROOT / "targets/arm64.yaml").read_text(encoding="utf-8")
    target = arm64.replace("name: arm64", "name: other").replace("reduce_range: false", "reduce_range: true")
    (folder / "other.yaml").write_text(target, encoding="utf-8")
    assert COMPRESS in COMMANDS
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert invoke([*shlex.split(COMPRESS)[1:], "--set", "targets=[other.yaml]"]) == 0
    bundles = folder / "build/my-model/bundles"
    shutil.copytree(bundles / "other", bundles / "x86_64-vnni")
    return folder


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in (COMPRESS, *ELSEWHERE)])
def test_commands_run(
    line: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    code = invoke(shlex.split(line)[1:])
    said = capfd.readouterr()
    assert code == 0, said.err
    assert said.out or "written to" in said.err


def test_the_recipe_of_a_classifier_runs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    small = ["model.source=./my-model", "targets=[arm64]", "passes.0.steps=2", "passes.1.keep=1", "passes.1.steps=2"]
    overrides = [word for override in small for word in ("--set", override)]
    assert invoke(["compress", "--recipe", "my-classifier.yaml", *overrides]) == 0
    report = json.loads((workspace / "build/my-classifier/report.json").read_text(encoding="utf-8"))
    assert [step["name"] for step in report["passes"]] == ["finetune", "distill", "quantize"]
    assert report["bundles"][0]["quality"]["metric"] == "accuracy"


@pytest.mark.parametrize(("page", "body"), SNIPPETS, ids=[f"{name(page)}-{i}" for i, (page, _) in enumerate(SNIPPETS)])
def test_snippets_run(page: Path, body: str, workspace: Path) -> None:
    # The runtime's README stands beside the bundles that it speaks of.
    folder = workspace / "build/my-model" if page.parent.name == "runtime" else workspace
    done = subprocess.run([sys.executable, "-c", body], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "print(vectors.shape)" in body:
        assert done.stdout == "(2, 32)\n"
    if "TruncationWarning" in body:
        assert "were cut" in done.stdout


@pytest.mark.parametrize("quick", ["edgec --help", "edgec --version", "edgec targets list", "edgec recipes list"])
def test_the_first_commands_of_a_new_user(quick: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert invoke(quick.split()[1:]) == 0
    assert capfd.readouterr().out


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("demo", ["edgec compress --recipe minilm-int8 --out build/minilm-int8 --force"]),
        ("test", ["ruff check", "mypy", "lint-imports", "pytest"]),
    ],
)
def test_make_has_the_two_commands(target: str, parts: list[str]) -> None:
    assert f"make {target}" in command_lines(README, "make")
    # A make that runs the tests would hand its own flags down.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS")}
    done = subprocess.run(["make", "-n", target], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in parts:
        assert part in done.stdout


def test_the_transcript_has_the_table_that_the_command_prints() -> None:
    (transcript,) = fences(README, "text")
    (header,) = [line for line in transcript.splitlines() if "p50 ms" in line]
    assert header.split() == " ".join(COLUMNS).split()
    for target in ("x86_64-vnni", "x86_64-avx2", "arm64"):
        assert any(line.split()[:1] == [target] for line in transcript.splitlines())


def test_it_is_short() -> None:
    assert len(text(README).splitlines()) < 200

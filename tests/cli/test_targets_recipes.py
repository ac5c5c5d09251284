from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgec import pipeline, resources
from edgec.cli import recipes, targets
from edgec.errors import RecipeError, UserError

BAD = """\
edgec: 1
model: {source: org/name}
passes:
  - quantize: {shceme: static}
  - quantise
targets: [arm46]
"""


def targets_command(*arguments: str) -> Result:
    return CliRunner().invoke(targets.app, arguments)


def recipes_command(*arguments: str) -> Result:
    return CliRunner().invoke(recipes.app, arguments)


def test_targets_list_names_all_and_says_what_is_verified() -> None:
    result = targets_command("list", "--json", "-")
    assert result.exit_code == 0
    found = {target["name"]: target for target in json.loads(result.stdout)}
    assert sorted(found) == sorted(resources.names("target"))
    assert found["raspberry-pi-4"]["verified"] is False
    assert found["raspberry-pi-4"]["emulated"] == {"qemu_cpu": "cortex-a72"}


def test_lists_are_tables_without_json() -> None:
    for result, kind in ((targets_command("list"), "target"), (recipes_command("list"), "recipe")):
        assert result.exit_code == 0
        assert all(name in result.stdout for name in resources.names(kind))  # type: ignore[arg-type]


def test_show_prints_the_file_itself() -> None:
    shown = targets_command("show", "arm64")
    assert shown.stdout == resources.find("target", "arm64").read_text()
    shown = recipes_command("show", "minilm-int8")
    assert shown.stdout == (resources.recipes_dir() / "minilm-int8.yaml").read_text()


def test_show_as_json_has_the_defaults_too() -> None:
    values = json.loads(recipes_command("show", "minilm-int8", "--json", "-").stdout)
    written = yaml.safe_load((resources.recipes_dir() / "minilm-int8.yaml").read_text())
    assert values["passes"] == written["passes"] and values["seed"] == 0


def test_detect_names_a_target_that_fits_this_machine(tmp_path: Path) -> None:
    from edgec_runtime.machine import facts

    from edgec.target import load_target, misfits

    file = tmp_path / "detected.json"
    result = targets_command("detect", "--json", str(file))
    assert result.exit_code == 0
    name = result.stdout.strip()
    assert not misfits(load_target(name), facts())
    found = json.loads(file.read_text())
    assert found["target"] == name and found["device"] == "local" and found["reasons"]


def test_detect_refuses_an_unknown_kind_of_device() -> None:
    result = targets_command("detect", "--on", "ftp://host")
    assert isinstance(result.exception, UserError)


def test_check_accepts_every_shipped_recipe() -> None:
    names = resources.names("recipe")
    result = recipes_command("check", *names)
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines() == [f"{name}: ok" for name in names]


def test_check_reports_every_problem_of_every_file(tmp_path: Path) -> None:
    bad, missing, report = tmp_path / "bad.yaml", tmp_path / "missing.yaml", tmp_path / "report.json"
    bad.write_text(BAD)
    result = recipes_command("check", str(bad), str(missing), "minilm-int8", "--json", str(report))
    assert isinstance(result.exception, RecipeError)
    message = result.exception.message
    assert f"{bad}:4: passes.0.quantize.shceme: unknown key; did you mean 'scheme'?" in message
    assert f"{bad}:5: passes.1: there is no pass 'quantise'; did you mean 'quantize'?" in message
    assert f"{bad}:6: targets.0: there is no target named 'arm46'" in message
    assert f"{missing} does not exist" in message
    assert result.stdout.splitlines() == ["minilm-int8: ok"]
    assert [len(entry["problems"]) for entry in json.loads(report.read_text())] == [1, 1, 0]


def test_check_knows_what_the_task_cannot_do(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "edgec: 1\nmodel: {source: org/name, task: fill-mask}\nexport: {null_answers: true}\ntargets: [arm64]\n"
    )
    result = recipes_command("check", str(recipe))
    assert isinstance(result.exception, RecipeError)
    assert f"{recipe}: export.null_answers is for question-answering" in result.exception.message


def test_check_reads_the_target_files_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("edgec: 1\nmodel: {source: org/name}\ntargets: [board.yaml]\n")
    (tmp_path / "board.yaml").write_text("edgec: 1\nname: board\narch: arm64\n")
    result = recipes_command("check", str(recipe))
    assert isinstance(result.exception, RecipeError)
    assert "board.yaml:3: arch: should be x86_64 or aarch64" in result.exception.message


@pytest.mark.parametrize("command", [targets_command, recipes_command])
def test_a_misspelt_name_gets_the_nearest(command: object) -> None:
    assert callable(command)
    name = "arm6" if command is targets_command else "minilm-int"
    result = command("show", name)
    assert isinstance(result.exception, UserError)
    assert "did you mean" in result.exception.hint


def test_check_takes_the_task_that_the_passes_end_with(tmp_path: Path) -> None:
    (tmp_path / "d.conll").write_text("a O\n")
    path = tmp_path / "mine.yaml"
    text = (
        "edgec: 1\nmodel: {source: org/name, task: feature-extraction}\ntargets: [arm64]\n"
        "data: {train: {text: d.conll}, evaluate: {text: d.conll}}\n"
    )
    path.write_text(text + "passes: [{finetune: {task: token-classification}}]\n")
    assert recipes_command("check", str(path)).exit_code == 0
    path.write_text(text)
    result = recipes_command("check", str(path))
    assert isinstance(result.exception, RecipeError)
    assert [part in result.exception.message for part in ("data.train is of", "data.evaluate is conll")] == [True, True]


def test_check_finds_passes_in_an_order_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    start = "edgec: 1\nmodel: {source: org/name}\ntargets: [arm64]\npasses:\n"
    for passes, told in (
        ("- quantize: {scheme: dynamic}\n- quantize: {scheme: dynamic}\n", "keep one quantize pass"),
        ("- quantize: {scheme: dynamic}\n- prune: {sparsity: 0.5}\n", "put it before quantize"),
        ("- decouple: {split: 1}\n- lora\n", "put it before decouple"),
    ):
        path.write_text(start + passes)
        result = recipes_command("check", str(path))
        assert isinstance(result.exception, RecipeError)
        assert f"{path}:6: passes.1." in result.exception.message and "(line 5) leaves" in result.exception.message
        assert result.exception.hint == told
        with pytest.raises(RecipeError, match=r"passes\.1\."):
            pipeline.compress(path, out=tmp_path / "out")


def test_check_reads_the_data_and_asks_the_passes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    (tmp_path / "d.csv").write_text("text,lang\nAda walked,en\n")
    start = "edgec: 1\nmodel: {source: org/name}\ntargets: [arm64]\n"
    for rest, told in (
        ("passes: [quantize]\n", f"{path}:4: passes.0.quantize: static quantization needs calibration texts"),
        ("data: {calibrate: {text: d.csv, text_column: words}}\n", "d.csv: there is no column 'words'"),
        (
            "data: {evaluate: {text: d.csv, text_column: text, group_column: language}}\n",
            "d.csv: there is no column 'language'",
        ),
    ):
        path.write_text(start + rest)
        result = recipes_command("check", str(path))
        assert isinstance(result.exception, RecipeError) and told in result.exception.message

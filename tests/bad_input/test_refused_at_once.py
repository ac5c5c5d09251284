"""Mistakes in words, recipes, targets, data and paths: told before torch is imported, which takes seconds."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from edgec_command import Done, assert_refused, edgec, tree

RECIPE = """\
edgec: 1
model: {source: someone/model}
data:
  calibrate: {text: texts.txt}
passes:
  - quantize: {scheme: static}
targets: [arm64]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    (work / "recipe.yaml").write_text(RECIPE)
    (work / "texts.txt").write_text("Ada walked to the old house.\n")
    return work


def quick(folder: Path, *args: str | Path) -> Done:
    return edgec(*args, cwd=folder, torch=False)


def compress(folder: Path, *args: str | Path) -> Done:
    return quick(folder, "compress", "--recipe", "recipe.yaml", "--out", "out", *args)


USAGE = [
    (["frobnicate"], "No such command 'frobnicate'"),
    (["compress"], "--recipe"),
    (["export", "model"], "--target"),
    (["run"], "BUNDLE"),
    (["bench", "bundle", "--rounds", "many"], "--rounds"),
    (["bench", "bundle", "--tokens", "16,some"], "--tokens '16,some' is no list of sizes"),
    (["run", "bundle", "text", "--threads", "0"], "--threads"),
    (["audit", "bundle", "--threads", "99999"], "--threads"),
    (["compress", "--recipe", "minilm-int8", "--turbo"], "--turbo"),
    (["targets", "show"], "NAME"),
    (["recipes", "remove"], "No such command 'remove'"),
]


@pytest.mark.parametrize(("args", "word"), USAGE, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_unknown_commands_and_options(args: list[str], word: str, folder: Path) -> None:
    done = quick(folder, *args)
    assert_refused(done, 2, *([] if word.isupper() else [word]))
    assert word.lower() in done.stderr.lower()


def test_no_command_shows_the_help(folder: Path) -> None:
    done = quick(folder)
    assert done.code == 2 and "compress" in done.stderr and "error" not in done.stderr


BAD_RECIPES = {
    "unknown key": (("edgec: 1", "edgec: 1\nmodle: {}"), "recipe.yaml:2: modle: unknown key; did you mean 'model'?"),
    "unknown option": (("scheme: static", "shceme: static"), "recipe.yaml:6: passes.0.quantize.shceme: unknown key"),
    "unknown pass": (("quantize", "quantise"), "recipe.yaml:6: passes.0: there is no pass 'quantise'"),
    "wrong type": (("targets: [arm64]", "targets: 7"), "recipe.yaml:7: targets: should be a list, not 7"),
    "wrong value": (("static", "statik"), "recipe.yaml:6: passes.0.quantize.scheme: should be static or dynamic"),
    "unknown target": (("arm64", "arm46"), "recipe.yaml:7: targets.0: there is no target named 'arm46'"),
    "missing data file": (("texts.txt", "gone.txt"), "recipe.yaml:4: data.calibrate.text: there is no file gone.txt"),
    "newer format": (
        ("edgec: 1", "edgec: 9"),
        "recipe.yaml:1: edgec: the file is of format 9; this edgec reads up to 1",
    ),
    "no YAML": (("[arm64]", "[arm64"), "recipe.yaml:8: is not YAML"),
    "windows of no use": (
        ("someone/model}", "someone/model, task: fill-mask}\nexport: {long_text: window}"),
        "recipe.yaml: export.long_text is window, which fill-mask cannot do",
    ),
    "nothing": ((RECIPE, ""), "recipe.yaml: is empty"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipe(case: str, folder: Path) -> None:
    (old, new), told = BAD_RECIPES[case]
    assert old in RECIPE
    (folder / "recipe.yaml").write_text(RECIPE.replace(old, new, 1))
    assert_refused(compress(folder), 2, told)
    assert tree(folder) == ["recipe.yaml", "texts.txt"]


def test_every_mistake_of_a_recipe_is_told_at_once(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("arm64", "arm46").replace("scheme", "shceme"))
    assert_refused(compress(folder), 2, "has 2 problems", "recipe.yaml:6:", "recipe.yaml:7:")


def test_missing_recipe(folder: Path) -> None:
    assert_refused(quick(folder, "compress", "--recipe", "gone.yaml"), 2, "the recipe file gone.yaml does not exist")
    assert_refused(quick(folder, "compress", "--recipe", "minilm-in8"), 2, "'minilm-in8'", "'minilm-int8'")
    assert_refused(quick(folder, "recipes", "check", "gone.yaml"), 2, "gone.yaml does not exist")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("passes.5.scheme=dynamic", "--set passes.5.scheme=dynamic: the list has no entry 5"),
        ("scheme", "--set scheme: should be KEY=VALUE"),
        ("modle.task=fill-mask", "--set modle.task=fill-mask: modle: unknown key"),
        ("passes.0.scheme.x=1", "--set passes.0.scheme.x=1: x would be below a plain value"),
        ("targets=[arm64", "--set targets=[arm64: is not YAML"),
    ],
)
def test_bad_override(setting: str, told: str, folder: Path) -> None:
    done = compress(folder, "--set", setting)
    assert done.code == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {told.partition(': is not')[0]}") and "hint: " in done.stderr


def test_unknown_target(folder: Path) -> None:
    assert_refused(quick(folder, "export", "model", "--target", "arm46"), 2, "'arm46'", "did you mean 'arm64'?")
    (folder / "mine.yaml").write_text("edgec: 2\nname: mine\narch: aarch64\n")
    assert_refused(quick(folder, "export", "model", "--target", "mine.yaml"), 2, "mine.yaml", "format 2")


CALIBRATION = {
    "empty": ("texts.txt", "", "texts.txt: the file has no rows"),
    "blank lines": ("texts.txt", "\n\n", "texts.txt: the file has no rows"),
    "header alone": ("texts.csv", "text,label\n", "texts.csv: the file has no rows"),
    "wrong column": ("texts.csv", "sentence,label\nAda,1\n", "texts.csv: which column holds the text?"),
    "no text": ("texts.jsonl", '{"text": 7}\n', "texts.jsonl:1: 'text' is not a text"),
    "not UTF-8": ("texts.txt", "Ada\nZ\udcfcrich\n", "texts.txt:2: the text is not valid UTF-8"),
    "no format": ("texts.data", "Ada\n", "texts.data does not tell the format"),
    "not gzip": ("texts.txt.gz", "Ada\n", "texts.txt.gz: cannot be unpacked"),
}


@pytest.mark.parametrize("case", CALIBRATION)
def test_calibration_data_that_cannot_be_used(case: str, folder: Path) -> None:
    name, content, told = CALIBRATION[case]
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    assert_refused(compress(folder, "--set", f"data.calibrate.text={name}"), 2, told)
    assert not (folder / "out").exists()


def test_column_that_is_not_there(folder: Path) -> None:
    (folder / "texts.csv").write_text("sentence,label\nAda,1\n")
    data = ["--set", "data.calibrate.text=texts.csv", "--set", "data.calibrate.text_column=txt"]
    assert_refused(compress(folder, *data), 2, "there is no column 'txt'", "the columns are sentence, label")


def test_output_folder_that_exists_is_left_alone(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine").write_text("precious")
    assert_refused(compress(folder), 2, "out exists", "--force")
    assert_refused(quick(folder, "export", "m", "--target", "arm64", "--out", "out"), 2, "out exists", "--force")
    assert (folder / "out" / "mine").read_text() == "precious"
    assert_refused(quick(folder, "compress", "--recipe", "recipe.yaml", "--out", "texts.txt"), 2, "texts.txt exists")
    taken = quick(folder, "compress", "--recipe", "recipe.yaml", "--out", "texts.txt", "--force")
    assert_refused(taken, 2, "texts.txt is not a folder")
    assert tree(folder) == ["out", "out/mine", "recipe.yaml", "texts.txt"]


def test_output_folder_below_a_file(folder: Path) -> None:
    done = quick(folder, "compress", "--recipe", "recipe.yaml", "--out", "texts.txt/out")
    assert_refused(done, 3, "texts.txt: Not a directory")


def test_output_folder_that_cannot_be_written(folder: Path, read_only: Path) -> None:
    for out in (read_only / "out", read_only / "deep" / "out"):
        done = quick(folder, "compress", "--recipe", "recipe.yaml", "--out", out)
        assert_refused(done, 3, str(read_only), "write elsewhere")
        done = quick(folder, "export", "model", "--target", "arm64", "--out", out)
        assert_refused(done, 3, str(read_only), "write elsewhere")
    assert tree(read_only) == []


def test_json_path_that_cannot_be_written(folder: Path, read_only: Path) -> None:
    for path, told in [
        (read_only / "found.json", "read-only"),
        (folder / "texts.txt" / "found.json", "is not a folder"),
        (folder, "is a folder"),
    ]:
        assert_refused(quick(folder, "targets", "list", "--json", path), 3, str(path), told)
        assert_refused(compress(folder, "--json", path), 3, str(path), told)


def test_device_that_is_none(folder: Path) -> None:
    (folder / "bundle").mkdir()
    for command in (["verify", "bundle"], ["bench", "bundle"], ["targets", "detect"]):
        done = quick(folder, *command, "--on", "ftp://host")
        assert_refused(done, 2, "no such kind of device: 'ftp://host'", "local, ssh://user@host[:port], qemu://CPU")
    assert_refused(compress(folder, "--on", "raspberry"), 2, "no such kind of device: 'raspberry'")
    assert_refused(compress(folder, "--on", "ssh://"), 2, "not an ssh device: 'ssh://'")
    assert_refused(compress(folder, "--on", "qemu://"), 2, "'qemu://' names no emulated CPU")
    assert not (folder / "out").exists()


@pytest.mark.emulated
def test_emulated_cpu_that_is_none(folder: Path) -> None:
    (folder / "bundle").mkdir()
    done = quick(folder, "verify", "bundle", "--on", "qemu://cortex-z99")
    assert_refused(done, 2, "qemu has no CPU 'cortex-z99'", "cortex-a72")


def test_ssh_host_that_cannot_be_reached(folder: Path) -> None:
    (folder / "bundle").mkdir()
    with socket.socket() as closed:  # bound, but not listening: nobody else gets the port
        closed.bind(("127.0.0.1", 0))
        url = f"ssh://127.0.0.1:{closed.getsockname()[1]}"
        assert_refused(quick(folder, "verify", "bundle", "--on", url), 3, f"{url} cannot be reached", "logs in")
        assert_refused(compress(folder, "--on", url), 3, f"{url} cannot be reached")
    assert tree(folder) == ["bundle", "recipe.yaml", "texts.txt"]


def test_bundle_that_is_not_there(folder: Path) -> None:
    for command in (["run", "gone", "text"], ["verify", "gone"], ["bench", "gone"], ["audit", "gone"]):
        assert_refused(quick(folder, *command), 2, "gone")


def test_static_quantization_without_calibration_texts(folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("data:\n  calibrate: {text: texts.txt}\n", ""))
    assert_refused(compress(folder), 2, "static quantization needs calibration texts", "data.calibrate")
    assert tree(folder) == ["recipe.yaml", "texts.txt"]


@pytest.mark.parametrize("command", ["compress", "export"])
def test_forms_that_are_neither_a_word_nor_a_bundle(command: str, folder: Path) -> None:
    words = ["--recipe", "recipe.yaml"] if command == "compress" else ["model", "--target", "arm64"]
    done = quick(folder, command, *words, "--out", "out", "--forms", "measured")
    assert_refused(done, 2, "there are no forms 'measured'", "kept, measure, default")
    assert tree(folder) == ["recipe.yaml", "texts.txt"]

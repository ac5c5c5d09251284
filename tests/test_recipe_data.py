"""The section `data` of a recipe: what is read, and every mistake in it told at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgec.data.load import read_labelled, read_unlabelled
from edgec.errors import RecipeError
from edgec.recipe import EvaluationData, LabelledData, Recipe, TextData, load_recipe

HEAD = "edgec: 1\nmodel: {source: org/name}\ntargets: [arm64]\ndata:\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for language in ("hau", "swa"):
        (tmp_path / language).mkdir()
        (tmp_path / language / "train.conll").write_text(f"{language} O\n\n{language}2 B-PER\n")
        (tmp_path / f"{language}.txt").write_text(f"{language}\n")
    (tmp_path / "rows.csv").write_text("text,label,lang\na,x,en\n")
    (tmp_path / "d.conllu").write_text("\t".join(["1", "a", "_", "NOUN", "NN", *"_____"]) + "\n")
    (tmp_path / "d.json").write_text("{}")
    (tmp_path / "d.tsv.gz").touch()
    (tmp_path / "d.data").touch()
    return tmp_path


def recipe(folder: Path, *lines: str, overrides: tuple[str, ...] = ()) -> Recipe:
    path = folder / "mine.yaml"
    path.write_text(HEAD + "".join(f"  {line}\n" for line in lines))
    return load_recipe(path, overrides=overrides)


def refused(folder: Path, *lines: str) -> list[str]:
    """The problems, without the path."""
    with pytest.raises(RecipeError) as caught:
        recipe(folder, *lines)
    told = caught.value.message.replace(f"{folder}/", "").splitlines()
    return [line.strip() for line in (told if len(told) == 1 else told[1:])]


def test_all_five(folder: Path) -> None:
    data = recipe(
        folder,
        "train: {text: {hau: hau/train.conll, swa: swa/train.conll}, rows: 3, on_error: skip}",
        "validation: {text: d.conllu, label_column: xpos, first_row: 0}",
        "unlabelled: {text: {de: hau.txt, en: swa.txt}, format: parallel}",
        "calibrate: {text: hau/train.conll, first_row: 1}",
        'evaluate: {text: rows.csv, label_column: label, label_separator: "|", metric: micro_f1}',
    ).data
    train, validation, unlabelled, evaluate = data.train, data.validation, data.unlabelled, data.evaluate
    assert train and validation and unlabelled and data.calibrate and evaluate
    assert train.paths == {name: folder / name / "train.conll" for name in ("hau", "swa")}
    assert len(read_labelled(train).examples) == 3 and train.on_error == "skip"
    assert read_labelled(validation).examples[0].tags == ("NN",)  # type: ignore[union-attr]
    assert read_unlabelled(unlabelled) == (("hau", "swa"),)
    assert read_unlabelled(data.calibrate) == ("hau2",)
    assert evaluate.scored and evaluate.label_separator == "|"


def test_to_dict_has_several_files_in_the_shape_of_the_file(folder: Path) -> None:
    files = {"hau": "hau/train.conll", "swa": "swa/train.conll"}
    made = recipe(folder, f"train: {{text: {json.dumps(files)}, group_column: file}}")
    values = json.loads(json.dumps(made.to_dict()))
    assert values["data"]["train"]["text"] == files
    again = folder / "again.yaml"
    again.write_text(json.dumps(values))
    assert load_recipe(again).to_dict() == values


def test_a_file_from_the_command_line_is_sought_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "here.conll").write_text("a O\n")
    monkeypatch.chdir(folder / "sub")
    made = recipe(folder, "train: {text: {hau: hau/train.conll}}", overrides=("data.train.text.swa=here.conll",))
    assert made.data.train
    assert made.data.train.paths == {"hau": folder / "hau" / "train.conll", "swa": Path("here.conll")}


ONE = "{text: hau/train.conll"
WRONG = {
    "no file": ("train: {text: {a: gone.conll, b: d.conllu}, format: conllu}", "train.text.a: there is no file gone"),
    "no file at all": ("train: {text: {}}", "train.text: should be a file, or a mapping of names to files"),
    "a list": ("train: {text: [d.conllu]}", "train.text: should be a file, or a mapping"),
    "a number": ("train: {text: {a: 3}}", "train.text.a: should be a file"),
    "no format": ("calibrate: {text: d.data}", "calibrate.text: d.data does not tell the format"),
    "unknown format": (f"train: {ONE}, format: brat}}", "train.format: should be text or csv or"),
    "several formats": ("train: {text: {a: d.conllu, b: hau/train.conll}}", "train: the files are of several formats"),
    "one side": ("unlabelled: {text: hau.txt, format: parallel}", "unlabelled: format parallel needs two files"),
    "word by name": (f"train: {ONE}, text_column: form}}", "train: text_column is 'form'; columns of the format conll"),
    "tag by name": (f"train: {ONE}, label_column: ner}}", "train: label_column is 'ner'; columns of the format conll"),
    "deprel": ("train: {text: d.conllu, label_column: deprel}", "of the format conllu it is upos or xpos"),
    "form": ("calibrate: {text: d.conllu, text_column: form}", "text_column: the format conllu has no columns"),
    "pairs of words": (
        f"train: {ONE}, text_pair_column: 1}}",
        "text_pair_column is for tables, and the format is conll",
    ),
    "group of words": (f"train: {ONE}, group_column: lang}}", "group_column is 'lang', .* group by 'file'"),
    "file of one": (f"train: {ONE}, group_column: file}}", "group_column is 'file', .* give several files by name"),
    "group of questions": ("calibrate: {text: d.json, group_column: lang}", "questions .* have 'title' alone"),
    "label of answers": ("train: {text: d.json, label_column: answer}", "label_column: the format squad has no"),
    "separated tags": (f'train: {ONE}, label_separator: "|"}}', "label_separator is for tables"),
    "separated nothing": ('evaluate: {text: rows.csv, label_separator: "|"}', "label_separator needs a label_column"),
    "empty separator": ('evaluate: {text: rows.csv, label_column: label, label_separator: ""}', "separator is empty"),
    "no labels": ("train: {text: rows.csv}", "data: train needs labels: name their label_column"),
    "validation of texts": ("validation: {text: hau.txt}", "data: validation needs labels"),
    "metric": ("evaluate: {text: rows.csv, metric: span_f1}", "the metric span_f1 needs a label_column"),
    "unknown metric": ("evaluate: {text: rows.csv, metric: bleu}", "evaluate.metric: should be cosine or accuracy or"),
    "on_error": (f"train: {ONE}, on_error: ignore}}", "train.on_error: should be raise or skip"),
    "first row": (f"train: {ONE}, first_row: -1}}", "train.first_row: should be at least 0"),
    "labels of texts": ("unlabelled: {text: rows.csv, label_column: label}", "unlabelled.label_column: unknown key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, folder: Path) -> None:
    import re

    line, told = WRONG[case]
    (problem,) = refused(folder, line)
    assert problem.startswith("mine.yaml:5: data") or problem.startswith("mine.yaml:4: data"), problem
    assert re.search(told, problem), problem


def test_everything_is_told_at_once(folder: Path) -> None:
    problems = refused(
        folder,
        f"train: {ONE}, label_column: ner, text_pair_column: 1, group_column: lang}}",
        "calibrate: {text: gone.txt, row: 3}",
        "evaluate: {text: d.data}",
    )
    assert len(problems) == 4
    first = problems[0]
    assert "text_pair_column" in first and "label_column" in first and "group_column" in first
    assert ["data.calibrate" in problems[1], "data.calibrate" in problems[2], "d.data" in problems[3]] == [True] * 3


def test_what_has_labels() -> None:
    assert LabelledData("d.conll.gz").labelled and LabelledData("d.json").labelled
    assert LabelledData("d.tsv", format="conll").labelled
    assert not LabelledData("d.csv").labelled and LabelledData("d.csv", label_column="x").labelled
    assert EvaluationData("d.conll").scored and not EvaluationData("d.conll", metric="cosine").scored
    assert not EvaluationData("d.csv").scored
    assert TextData({"a": "a.conllu"}).known_format == "conllu"


def test_a_build_with_several_files_and_formats_is_loaded_without_torch(folder: Path) -> None:
    import subprocess
    import sys

    made = recipe(folder, "train: {text: {hau: hau/train.conll}}")
    code = (
        "import sys; from edgec.recipe import load_recipe; from edgec.data.load import read_labelled;"
        f"read_labelled(load_recipe({str(made.source_path)!r}).data.train);"
        "assert not {'torch', 'transformers', 'pyarrow', 'sklearn'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

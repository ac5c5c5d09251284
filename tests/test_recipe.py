from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from edgec import resources
from edgec.errors import RecipeError, UserError
from edgec.recipe import Budget, ExportConfig, Recipe, check_passes, load_recipe
from edgec.schema import bounds

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Quantize:
    scheme: Literal["static", "dynamic"] = "dynamic"
    embeddings: bool = True
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prune:
    ratio: float = field(metadata=bounds(at_least=0, below=1))
    teacher: str | None = None


PASSES: dict[str, type] = {"quantize": Quantize, "prune": Prune}

GOOD = """\
edgec: 1
summary: a test
model: {source: org/name, revision: main}
data:
  calibrate: {text: texts.csv, rows: 2, group_column: lang}
  evaluate: {text: pairs.tsv, text_column: 0, text_pair_column: b, group_column: 3, label_column: 2, metric: spearman}
passes:
  - prune: {ratio: 0.25}
  - quantize: {scheme: static, skip: ["*.pooler"]}
export: {opset: 20, max_length: 64, long_text: window, stride: 16, schedule: streams, max_answer_tokens: 9}
targets: [arm64, mine.yaml]
budget: {accuracy_drop: 0.01, size_mb: 25, p50_ms: 5, on_miss: fallback, put_back: weight-only}
seed: 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts.csv").write_text("text,lang\none,en\ntwo,en\n")
    (tmp_path / "pairs.tsv").write_text("a\tb\t1\n")
    (tmp_path / "mine.yaml").write_text("edgec: 1\n")
    return tmp_path


def write(folder: Path, text: str = GOOD) -> Path:
    path = folder / "test.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str = GOOD, **options: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), **options)
    return caught.value.message.replace(f"{folder}/", "")


def test_a_whole_recipe(folder: Path) -> None:
    recipe = load_recipe(write(folder), passes=PASSES)
    assert recipe.name == "test" and recipe.source_path == folder / "test.yaml" and recipe.seed == 7
    assert recipe.model.source == "org/name" and not recipe.model.trust_remote_code
    assert recipe.data.calibrate and recipe.data.calibrate.path == folder / "texts.csv"
    evaluate = recipe.data.evaluate
    assert evaluate and evaluate.path == folder / "pairs.tsv" and evaluate.metric == "spearman"
    assert (evaluate.text_column, evaluate.text_pair_column, evaluate.label_column) == ("0", "b", "2")
    assert (recipe.data.calibrate.group_column, evaluate.group_column) == ("lang", "3")
    assert [(entry.name, entry.line) for entry in recipe.passes] == [("prune", 8), ("quantize", 9)]
    assert recipe.export == ExportConfig(20, 64, "window", 16, "streams", False, 9)
    assert recipe.targets == ("arm64", str(folder / "mine.yaml"))
    assert recipe.budget == Budget(0.01, 25.0, None, 5.0, "fallback", "weight-only")
    assert check_passes(recipe, PASSES) == (Prune(0.25), Quantize("static", True, ("*.pooler",)))


def test_the_least_recipe_is_the_baseline(folder: Path) -> None:
    recipe = load_recipe(write(folder, "edgec: 1\nmodel: {source: org/name}\ntargets: [arm64]\nbudget:\npasses:\n"))
    assert (
        recipe.passes == ()
        and recipe.budget == Budget()
        and recipe.budget.put_back == "float"
        and recipe.export.opset == 23
    )
    assert recipe.data.calibrate is None and recipe.data.evaluate is None


def test_to_dict_is_json_of_the_shape_of_the_file(folder: Path) -> None:
    recipe = load_recipe(write(folder))
    values = json.loads(json.dumps(recipe.to_dict()))
    assert values["passes"] == [
        {"prune": {"ratio": 0.25}},
        {"quantize": {"scheme": "static", "skip": ["*.pooler"]}},
    ]
    again = folder / "again.yaml"
    again.write_text(json.dumps(values))
    assert load_recipe(again).to_dict() == values
    assert str(folder) not in json.dumps({**values, "targets": []})


@pytest.mark.parametrize("name", [path.stem for path in (REPOSITORY / "recipes").glob("*.yaml")])
def test_every_shipped_recipe_is_right(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.summary
    assert recipe.model.sha256 and set(recipe.targets) <= set(resources.names("target"))


def test_the_calibration_texts_are_not_those_of_the_evaluation() -> None:
    data = load_recipe("minilm-int8").data
    assert data.calibrate and data.evaluate
    calibrate, evaluate = (set(one.path.read_text().splitlines()) for one in (data.calibrate, data.evaluate))
    assert len(calibrate) > 100 and len(evaluate) > 100 and not calibrate & evaluate


def test_a_recipe_elsewhere_may_use_shipped_texts(folder: Path) -> None:
    path = write(folder, GOOD.replace("texts.csv, rows: 2, group_column: lang", "data/sentences-calibrate.txt"))
    calibrate = load_recipe(path).data.calibrate
    assert calibrate and calibrate.path == resources.recipes_dir() / "data" / "sentences-calibrate.txt"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("seed: 7", "sede: 7", "test.yaml:13: sede: unknown key; did you mean 'seed'?"),
        ("rows: 2", "row: 2", "test.yaml:5: data.calibrate.row: unknown key; did you mean 'rows'?"),
        ("rows: 2", "metric: cosine", "test.yaml:5: data.calibrate.metric: unknown key; known: "),
        (
            "rows: 2",
            "rows: many",
            "test.yaml:5: data.calibrate.rows: should be a whole number, not the text 'many'",
        ),
        ("texts.csv", "none.csv", "test.yaml:5: data.calibrate.text: there is no file none.csv"),
        ("label_column: 2, ", "", "test.yaml:6: data.evaluate: the metric spearman needs a label_column"),
        (
            "text_column: 0",
            "text_column: [0]",
            "test.yaml:6: data.evaluate.text_column: should be a column's name",
        ),
        ("arm64", "arm46", "test.yaml:11: targets.0: there is no target named 'arm46'; did you mean 'arm64"),
        (
            "mine.yaml",
            "yours.yaml",
            "test.yaml:11: targets.1: the target file yours.yaml does not exist; `edgec targets list`",
        ),
        ("mine.yaml", "arm64", "test.yaml:11: targets.1: names 'arm64' a second time"),
        ("[arm64, mine.yaml]", "[]", "test.yaml:11: targets: should name at least one"),
        ("targets: [arm64, mine.yaml]\n", "", "test.yaml:1: targets: is missing"),
        ("source: org/name, ", "", "test.yaml:3: model.source: is missing"),
        (
            "source: org/name",
            'source: ""',
            "test.yaml:3: model.source: should be a hub id, a folder or pkg://",
        ),
        (
            "revision: main",
            "task: translate",
            "test.yaml:3: model.task: 'translate' is not supported; known: feature",
        ),
        (
            "revision: main",
            "sha256: abc",
            "test.yaml:3: model.sha256: should be 64 hexadecimal digits, not 'abc'",
        ),
        (
            "revision: main",
            "trust_remote_code: 1",
            "test.yaml:3: model.trust_remote_code: should be true or false",
        ),
        ("opset: 20", "opset: 9", "test.yaml:10: export.opset: should be at least 18 and at most 23, not 9"),
        ("stride: 16", "stride: 64", "test.yaml:10: export: stride (64) should be below max_length (64)"),
        ("window", "truncate", "test.yaml:10: export: stride is for long_text: window"),
        (
            "accuracy_drop: 0.01",
            "accuracy_drop: 1%",
            "test.yaml:12: budget.accuracy_drop: should be a number",
        ),
        (
            "fallback",
            "ignore",
            "test.yaml:12: budget.on_miss: should be fail or fallback, not the text 'ignore'",
        ),
        (
            "- prune: {ratio: 0.25}",
            "- prune: 3",
            "test.yaml:8: passes.0.prune: should be a mapping of options",
        ),
        (
            "- prune: {ratio: 0.25}",
            "- {a: , b: }",
            "test.yaml:8: passes.0: should be one pass with its options",
        ),
        (
            "- prune: {ratio: 0.25}",
            "- prnue: {}",
            "test.yaml:8: passes.0: there is no pass 'prnue'; did you mean 'pr",
        ),
        (
            "ratio: 0.25",
            "ratio: 1.0",
            "test.yaml:8: passes.0.prune.ratio: should be at least 0 and below 1, not 1.0",
        ),
        ("{ratio: 0.25}", "", "test.yaml:8: passes.0.prune.ratio: is missing"),
        (
            "scheme: static",
            "shceme: static",
            "test.yaml:9: passes.1.quantize.shceme: unknown key; did you mean 'sch",
        ),
        (
            "scheme: static",
            "scheme: int4",
            "test.yaml:9: passes.1.quantize.scheme: should be static or dynamic, not",
        ),
        ("edgec: 1", "edgec: 2", "test.yaml:1: edgec: the file is of format 2; this edgec reads up to 1"),
        ("edgec: 1", "edgec: 0", "test.yaml:1: edgec: the file is of format 0"),
        ("edgec: 1", "edgec: one", "test.yaml:1: edgec: should be a whole number, not the text 'one'"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, complaint: str, folder: Path) -> None:
    assert old in GOOD
    assert refused(folder, GOOD.replace(old, new, 1), passes=PASSES).startswith(complaint)


def test_all_problems_of_a_recipe_come_together(folder: Path) -> None:
    text = GOOD.replace("org/name", "[]").replace("texts.csv", "none.csv").replace("arm64", "arm46")
    text = text.replace("0.25", "7").replace("static", "statik").replace("seed", "sede")
    message = refused(folder, text, passes=PASSES)
    assert message.splitlines()[0] == "test.yaml has 6 problems"
    places = [line.split(": ")[0].strip() for line in message.splitlines()[1:]]
    assert places == [f"test.yaml:{line}" for line in (3, 5, 8, 9, 11, 13)]


def test_a_later_format_is_refused_before_its_new_keys(folder: Path) -> None:
    assert "format 2" in refused(folder, "edgec: 2\nnew_section: {}\n")


def test_overrides(folder: Path) -> None:
    overrides = [
        "passes.1.scheme=dynamic",
        "passes.1.embeddings=false",
        "budget.speedup=1.5",
        "targets=[arm64]",
    ]
    recipe = load_recipe(write(folder), overrides=overrides, passes=PASSES)
    assert recipe.passes[1].options == {"scheme": "dynamic", "skip": ["*.pooler"], "embeddings": False}
    assert recipe.budget.speedup == 1.5 and recipe.targets == ("arm64",)


def test_a_wrong_override_is_named(folder: Path) -> None:
    message = refused(folder, overrides=["passes.1.scheme=int4", "seed=-1"], passes=PASSES)
    assert message.splitlines()[1:] == [
        "  --set passes.1.scheme=int4: passes.1.quantize.scheme: should be static or dynamic, not the text 'int4'",
        "  --set seed=-1: seed: should be at least 0 and at most 4294967295, not -1",
    ]


def test_paths_of_the_file_start_at_its_folder_those_of_an_override_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "other.tsv").write_text("x\n")
    write(folder, GOOD.replace("org/name", "./model"))
    monkeypatch.chdir(folder / "sub")
    recipe = load_recipe("../test.yaml", overrides=["data.evaluate.text=other.tsv", "data.evaluate.metric=cosine"])
    assert recipe.data.evaluate and recipe.data.evaluate.path == Path("other.tsv")
    assert recipe.data.calibrate and recipe.data.calibrate.path.resolve() == folder / "texts.csv"
    assert Path(recipe.model.source).resolve() == folder / "model" and recipe.model.source.startswith("./")
    here = load_recipe("../test.yaml", overrides=["model.source=./model"])
    assert here.model.source == "./model"


def test_models_that_passes_name_start_there_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def teacher(*overrides: str) -> str:
        return str(check_passes(load_recipe("../test.yaml", passes=PASSES, overrides=overrides), PASSES)[0].teacher)

    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    for name in ("./large", "../large"):
        write(folder, GOOD.replace("{ratio: 0.25}", f"{{ratio: 0.25, teacher: {name}}}"))
        assert Path(teacher()).resolve() == (folder / name).resolve() and teacher().startswith("./")
    assert teacher("passes.0.prune.teacher=./mine") == "./mine"
    write(folder, GOOD.replace("{ratio: 0.25}", "{ratio: 0.25, teacher: org/large}"))
    assert teacher() == "org/large"


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("minilm-in8")
    assert "did you mean 'minilm-int8'?" in caught.value.hint


def test_recipes_and_targets_load_without_torch() -> None:
    code = (
        "import sys; from edgec.recipe import load_recipe; from edgec.target import list_targets;"
        "load_recipe('minilm-int8'); list_targets();"
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_documentation_names_every_key() -> None:
    import dataclasses

    from edgec import recipe as module

    text = (REPOSITORY / "docs" / "recipes.md").read_text()
    for kind in (Recipe, module.ModelSource, module.TextData, module.EvaluationData, ExportConfig, Budget):
        for f in dataclasses.fields(kind):
            if not f.metadata.get("internal"):
                assert f"`{f.name}`" in text, f.name

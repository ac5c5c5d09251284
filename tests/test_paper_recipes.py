"""The published settings: every file of recipes/ at any depth is a recipe that the passes take."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgec.errors import RecipeError, UserError
from edgec.passes import PASSES
from edgec.pipeline import compress
from edgec.recipe import load_recipe
from edgec.resources import recipes_dir
from edgec.sequence import final_task
from edgec.task_rules import check_recipe

RECIPES = sorted(recipes_dir().rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid(path: Path) -> None:
    recipe = load_recipe(path, passes=PASSES)
    check_recipe(recipe, final_task(recipe))


def test_the_papers_are_among_them() -> None:
    names = {path.stem for path in RECIPES if path.parent.name == "papers"}
    assert {"alad-pos-asc", "alad-ner-asc", "alad-qa-asc", "afriberta-pruning", "afriberta-llm-int8"} <= names
    assert "decoupled-squad2" in names
    listed = (recipes_dir() / "papers" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in listed for name in names)


def test_data_sets_are_looked_for_where_their_folder_is_named(tmp_path: Path) -> None:
    path = recipes_dir() / "papers" / "alad-ner-asc.yaml"
    assert len(load_recipe(path).awaited) == 5
    with pytest.raises(RecipeError, match=r"data\.train\.text: there is no file .*multiconer2_en/train\.conll\.gz"):
        load_recipe(path, data=tmp_path)
    for name in load_recipe(path).awaited:
        file = tmp_path / name.removeprefix("data://")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = load_recipe(path, data=tmp_path)
    assert found.awaited == []
    assert found.data.train is not None and found.data.train.path == tmp_path / "multiconer2_en" / "train.conll.gz"


def test_compress_asks_for_the_folder_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a file of a data set") as caught:
        compress(recipes_dir() / "papers" / "alad-ner-asc.yaml", out=tmp_path / "out")
    assert caught.value.hint == "name the folder that holds the data sets: --data DIR"
    assert not (tmp_path / "out").exists()

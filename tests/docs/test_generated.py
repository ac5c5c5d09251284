"""What docs/generate.py writes is what stands in the docs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import types
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, fences, name, text

from edgec.passes import Quantize


@pytest.fixture(scope="module")
def generate() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_current(generate: types.ModuleType) -> None:
    stale = [name(path) for path, content in generate.generated().items() if text(path) != content]
    assert stale == [], "run: python docs/generate.py"


def test_an_option_without_a_meaning_is_refused(generate: types.ModuleType) -> None:
    @dataclasses.dataclass(frozen=True)
    class Prune:
        """Takes heads away. ratio: how many of them, 0 to 1."""

        ratio: float = 0.5
        heads: tuple[str, ...] = ()

    with pytest.raises(ValueError, match="does not explain heads"):
        generate.options_table(Prune)


def test_options_of_an_option_have_rows_of_their_own(generate: types.ModuleType) -> None:
    rows = generate.options_table(Quantize).splitlines()
    place = rows.index("| `training` | mapping or null | `null` | How it learns; when: training. |")
    assert rows[place + 1].startswith("| `training.learning_rate` | number | `5e-05` | ")
    assert any(row.startswith("| `training.steps` | whole number or null |") for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_examples_in_json_and_yaml_are_that(page: Path) -> None:
    for body in fences(page, "json"):
        json.loads(body)
    for body in fences(page, "yaml"):
        yaml.safe_load(body)

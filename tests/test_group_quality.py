"""Quality by group: the worst one counts, by cosine and by labels, in torch and in bundles."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgec_runtime.manifest import GroupQuality, Quality
from float_bundles import write_float_bundle
from tiny_models import LABELS, SENTENCES, tiny

from edgec.data.load import read_sample
from edgec.data.readers import Sample
from edgec.errors import DataError
from edgec.evaluation import Evaluation, bundle_quality, evaluate, quality
from edgec.evaluation.bundles import _lost
from edgec.evaluation.quality import with_groups
from edgec.models import load_model
from edgec.recipe import EvaluationData

TEXTS = [f"{a} {b}" for a in SENTENCES for b in SENTENCES]
GROUPS = [("en", "de", "fr")[i % 3] for i in range(len(TEXTS))]
NAMES = LABELS["text-classification"]


class Answers:
    """A model of one output whose answer to a text is looked up."""

    def __init__(self, answers: dict[str, tuple[float, float]]) -> None:
        self.answers = answers

    def raw(self, requests: Any) -> list[dict[str, np.ndarray]]:
        return [{"out": np.array(self.answers[text], np.float32)} for text in requests]


def turned(cosine: float) -> tuple[float, float]:
    return (cosine, (1 - cosine**2) ** 0.5)


REFERENCE = Answers(dict.fromkeys("abcdef", (1.0, 0.0)))
CANDIDATE = Answers({text: turned(c) for text, c in zip("abcdef", (1.0, 0.9, 0.8, 0.7, 0.99, 0.97), strict=True)})


def test_the_drop_is_that_of_the_worst_group() -> None:
    groups = ["en", "en", "de", "de", "fr", "fr"]
    found = quality(REFERENCE, CANDIDATE, "text-classification", list("abcdef"), groups=groups)
    assert found.group == "de"
    assert found.drop == pytest.approx(0.25)
    assert (found.before, found.after, found.n) == (1.0, pytest.approx(5.36 / 6), 6)
    assert list(found.groups) == ["de", "en", "fr"]
    assert found.groups["en"] == GroupQuality(1.0, pytest.approx(0.95), pytest.approx(0.05), 2)  # type: ignore[arg-type]
    assert found.groups["de"].drop == found.drop
    alone = quality(REFERENCE, CANDIDATE, "text-classification", list("abcdef"))
    assert (alone.group, alone.groups, alone.after) == ("", {}, found.after)
    assert alone.drop == pytest.approx(1 - 5.36 / 6)


def test_both_texts_of_a_pair_are_of_its_group() -> None:
    pairs = [("a", "b"), "c", ("d", "e")]
    found = quality(REFERENCE, CANDIDATE, "feature-extraction", pairs, groups=["x", "y", "x"])
    assert {name: group.n for name, group in found.groups.items()} == {"x": 4, "y": 1}
    assert found.groups["x"].after == pytest.approx((1 + 0.9 + 0.7 + 0.99) / 4)
    assert found.group == "y"


def test_of_equal_groups_the_first_by_name() -> None:
    group = GroupQuality(1.0, 0.9, 0.1, 5)
    assert with_groups(Quality("cosine", 1, 0.9, 0.1, 10), {"b": group, "a": group}).group == "a"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two classifiers of different weights."""
    root = tmp_path_factory.mktemp("bundles")
    folders = []
    for seed in (0, 1):
        state = load_model(tiny("bert", "text-classification", root / f"m{seed}", seed=seed, num_hidden_layers=1))
        folders.append(write_float_bundle(state, root / f"b{seed}", [SENTENCES[0]]))
    return folders[0], folders[1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    rows = [(text, NAMES[random.integers(3)], group) for text, group in zip(TEXTS, GROUPS, strict=True)]
    path = tmp_path / "data.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "lang"), *rows])
    return path


def read(data: Path, **options: Any) -> tuple[EvaluationData, Sample]:
    asked = EvaluationData(str(data), path=data, **options)
    return asked, read_sample(asked)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_labels_by_group(bundles: tuple[Path, Path], data: Path, metric: Any) -> None:
    asked, sample = read(data, text_column="text", label_column="label", group_column="lang", metric=metric)
    found = bundle_quality(*bundles, asked, sample)
    before, after = (evaluate(bundle, data, group_by=["lang"]) for bundle in bundles)
    assert (found.metric, found.before, found.after) == (metric, before.metrics[metric], after.metrics[metric])
    drops = {g: before.groups["lang"][g][metric] - after.groups["lang"][g][metric] for g in ("en", "de", "fr")}
    assert found.group == max(sorted(drops), key=drops.__getitem__)
    assert found.drop == drops[found.group] > before.metrics[metric] - after.metrics[metric]
    assert {name: group.drop for name, group in found.groups.items()} == drops
    assert all(group.n == len(TEXTS) // 3 for group in found.groups.values())


def test_without_a_group_column_all_texts_count(bundles: tuple[Path, Path], data: Path) -> None:
    asked, sample = read(data, text_column="text", label_column="label")
    found = bundle_quality(*bundles, asked, sample)
    assert found.metric == "accuracy"
    assert found.drop == found.before - found.after
    assert (found.group, found.groups, found.n) == ("", {}, len(TEXTS))


def test_rows_are_spread_over_the_groups(bundles: tuple[Path, Path], data: Path) -> None:
    lines = data.read_text(encoding="utf-8").splitlines()
    lines[1:] = sorted(lines[1:], key=lambda line: line.rpartition(",")[2])
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for label in ("label", None):
        asked, sample = read(data, text_column="text", label_column=label, group_column="lang", rows=7)
        found = bundle_quality(*bundles, asked, sample)
        assert {name: group.n for name, group in found.groups.items()} == {"de": 3, "en": 2, "fr": 2}
        assert found.n == 7


def test_cosine_of_bundles_by_group(bundles: tuple[Path, Path], data: Path) -> None:
    asked, sample = read(data, text_column="text", group_column="lang")
    found = bundle_quality(*bundles, asked, sample)
    assert found.metric == "cosine"
    for name, group in found.groups.items():
        mine = [text for text, of in zip(TEXTS, GROUPS, strict=True) if of == name]
        alone = bundle_quality(*bundles, EvaluationData("x"), Sample(tuple(mine)))
        assert (group.after, group.n) == (pytest.approx(alone.after), len(mine))


def test_a_group_that_has_no_figure_is_refused() -> None:
    asked = EvaluationData("pairs.csv", label_column="score", group_column="lang", path=Path("pairs.csv"))
    groups = {"lang": {"en": {"spearman": 0.5, "n": 2}, "de": {"spearman": None, "n": 1}}}
    found = Evaluation({"spearman": 0.5}, groups, 3)
    with pytest.raises(DataError, match=r"pairs\.csv: the group 'de' of lang has no spearman: its 1 rows"):
        _lost(found, found, asked)

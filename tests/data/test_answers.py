"""Exact match and F1 of answers against the published rules."""

from __future__ import annotations

import numpy as np
import pytest
import squad_rules

from edgec.data.answers import answer_f1, answer_scores, exact_match, normalized

TEXTS = [
    "",
    "the",
    "The  Cat!",
    "a cat",
    "cat sat",
    "An IPA, a day",
    "naïve—café",
    "x-ray",
    "x ray",
    "10,000",
    "cat cat",
]


@pytest.mark.parametrize("gold", TEXTS)
@pytest.mark.parametrize("given", TEXTS)
def test_one_answer(gold: str, given: str) -> None:
    assert normalized(gold) == squad_rules.normalize_answer(gold)
    expected = [gold] if squad_rules.normalize_answer(gold) else []
    assert exact_match(expected, given) == squad_rules.compute_exact(gold, given)
    assert answer_f1(expected, given) == pytest.approx(squad_rules.compute_f1(gold, given))


def test_the_best_of_several_counts() -> None:
    assert answer_f1(["a dog", "two black cats"], "black cats") == pytest.approx(0.8)
    assert exact_match(["dog", "The black cats."], "black cats") == 1.0
    assert answer_f1(["the", "dog"], "") == 0.0, "an answer of which nothing is left is none of those expected"
    assert answer_f1(["the"], "") == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_all_scores(seed: int) -> None:
    random = np.random.default_rng(seed)
    golds = [[str(t) for t in random.choice(TEXTS[2:], random.integers(0, 4))] for _ in range(80)]
    given = [str(random.choice([*TEXTS, *gold, *gold])) for gold in golds]
    reference, null = squad_rules.evaluate(golds, given), squad_rules.evaluate(golds, [""] * 80)
    found = answer_scores(golds, given)
    assert {name: round(100 * value, 9) for name, value in found.items()} == {
        name: round(value, 9)
        for name, value in {
            "f1": reference["f1"],
            "exact_match": reference["exact"],
            "f1_answerable": reference["HasAns_f1"],
            "exact_match_answerable": reference["HasAns_exact"],
            "f1_unanswerable": reference["NoAns_f1"],
            "always_null_f1": null["f1"],
        }.items()
    }
    assert (
        next(iter(found)) == "f1" and null["f1"] == null["exact"] and reference["NoAns_f1"] == reference["NoAns_exact"]
    )


def test_figures_without_rows_are_left_out() -> None:
    assert set(answer_scores([["a b"]], ["b"])) == {
        *("f1", "exact_match", "f1_answerable", "exact_match_answerable", "always_null_f1")
    }
    assert answer_scores([[]], [""]) == {"f1": 1, "exact_match": 1, "f1_unanswerable": 1, "always_null_f1": 1}
    with pytest.raises(ValueError, match="as many answers"):
        answer_scores([], [])

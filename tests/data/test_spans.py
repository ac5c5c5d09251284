"""Spans and their F1 against seqeval's default mode."""

from __future__ import annotations

import numpy as np
import pytest
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities

from edgec.data.spans import span_f1, span_macro_f1, spans

SCHEMES = {
    "BIO": ["O", "B-X", "I-X", "B-Y", "I-Y", "B-a-b", "I-a-b"],
    "IOBES": ["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y"],
}


def sentences(scheme: str, seed: int, types: str = "") -> list[list[str]]:
    """Tags at random: most of them do not follow one another as they should."""
    random = np.random.default_rng(seed)
    lengths = np.random.default_rng(1).integers(1, 12, 60)
    return [[str(tag) for tag in random.choice(SCHEMES[scheme], length)] for length in lengths]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_spans(scheme: str) -> None:
    for tags in sentences(scheme, 0):
        assert spans(tags) == get_entities(tags), tags


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(4))
def test_f1(scheme: str, seed: int) -> None:
    expected = sentences(scheme, seed)
    random = np.random.default_rng(seed)
    noise = sentences(scheme, seed + 100)
    predicted = [
        [a if random.random() < 0.8 else b for a, b in zip(*pair, strict=True)]
        for pair in zip(expected, noise, strict=True)
    ]
    expected = [[tag.replace("-Y", "-Z") for tag in tags] if i % 5 else tags for i, tags in enumerate(expected)]
    assert span_f1(expected, predicted) == pytest.approx(seqeval.f1_score(expected, predicted))
    macro = seqeval.f1_score(expected, predicted, average="macro")
    assert span_macro_f1(expected, predicted) == pytest.approx(macro)
    assert 0 < macro < span_f1(expected, predicted) < 1


def test_types_of_one_side_count_in_the_mean() -> None:
    expected, predicted = [["B-X", "O", "B-Y"]], [["B-X", "B-Z", "O"]]
    assert span_macro_f1(expected, predicted) == pytest.approx(1 / 3)
    assert span_f1(expected, predicted) == pytest.approx(2 / 4)


def test_at_the_edges() -> None:
    assert span_f1([["O"]], [["O"]]) == span_macro_f1([["O"]], [["O"]]) == 0.0
    assert spans(["PER", "PER", "O", "LOC"]) == [("PER", 0, 1), ("LOC", 3, 3)]
    assert spans(["B-X", "L-X", "U-X"]) == [("X", 0, 1), ("X", 2, 2)]
    assert spans([]) == []
    with pytest.raises(ValueError, match="as many sentences"):
        span_f1([], [])
    with pytest.raises(ValueError, match="1 tags on one side and 2"):
        span_f1([["O"]], [["O", "O"]])

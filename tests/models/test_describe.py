"""What a manifest says of a model that its configuration does not say outright."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import tiny

from edgec.models import load_model
from edgec.models.describe import describe


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (("O", "B-PER", "I-PER"), "BIO"),
        (("B-PER", "I-PER", "I-LOC"), "BIO"),
        (("O", "S-PER", "E-PER"), "BIO"),
        (("O", "PER", "LOC"), "BIO"),  # words outside of every entity are no spans
        (("NOUN", "VERB", "X"), "plain"),
    ],
)
def test_scheme_of_a_set_of_labels(labels: tuple[str, ...], scheme: str, tmp_path: Path) -> None:
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    state = load_model(tiny("bert", "token-classification", tmp_path, num_hidden_layers=1, **names))
    assert state.spec.labels == labels
    assert describe(state).postprocessing.label_scheme == scheme

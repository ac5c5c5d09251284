"""A decoupled model of a real family, exported: its store answers as the model does, and serves every bundle of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgec_runtime import PassageReader, Reader, load
from tiny_models import SENTENCES, tiny

import edgec
from edgec.exporter import Exporter
from edgec.models import load_model
from edgec.models.decoupled import decoupled
from edgec.passes import Quantize, run_pass
from edgec.state import PassContext
from edgec.target import Target


def test_a_store_serves_all_bundles_of_a_build(here: Target, foreign: Target, tmp_path: Path) -> None:
    state = load_model(tiny("roberta", "question-answering", tmp_path / "model", num_hidden_layers=2))
    state = run_pass(Quantize(), decoupled(state, 1), PassContext(tmp_path / "work", SENTENCES))
    exporter = Exporter(state, name="tiny", null_answers=False)
    for name, target, precision in (("fp32", here, "fp32"), ("int8", here, None), ("foreign", foreign, None)):
        exporter.write(tmp_path / name, target, precision=precision)
    notes = tmp_path / "notes"
    notes.mkdir()
    for number, text in enumerate(SENTENCES):
        (notes / f"{number}.txt").write_text(text)
    store = tmp_path / "store"
    figures = edgec.index(tmp_path / "int8", notes, out=store, states="float16")
    assert figures["documents"] == len(SENTENCES)

    question = "Where was Cara born?"
    for name, tolerance in (("int8", 0.02), ("fp32", 0.5)):
        with PassageReader.open(tmp_path / name, store) as reader, load(tmp_path / name) as model:
            assert isinstance(model, Reader)
            answers = reader.ask(question, 10, "dense")
            assert len(answers) == len(SENTENCES)
            for one in answers:
                whole = model.answer(question, one.context)
                assert one.score == pytest.approx(whole.score, abs=tolerance)
                assert one.null_score == pytest.approx(whole.null_score, abs=tolerance)
    assert edgec.ask(tmp_path / "int8", store, question="zebra")["passages"] == 0  # by words
    with pytest.warns(UserWarning), PassageReader.open(tmp_path / "foreign", store) as reader:
        assert reader.ask(question, search="dense").passages == 5

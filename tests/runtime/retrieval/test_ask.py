"""Answers from a store, compared with what the whole model answers on the same texts."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgec_runtime
import numpy as np
import pytest
from decoupled_bundle import ANSWERS, write_decoupled
from edgec_runtime import Document, PassageReader, TruncationWarning, index, load
from edgec_runtime.__main__ import main
from edgec_runtime.errors import TaskMismatch, TextInvalid
from edgec_runtime.manifest import PassRecord
from edgec_runtime.store import Store, StoreWriter
from edgec_runtime.store.errors import StoreDamaged, StoreEmpty, StoreMismatch
from retrieval_documents import DOCUMENTS

QUESTION = "who works in the house ?"


@pytest.mark.parametrize("k", [1, 2, 10])
@pytest.mark.parametrize("invariant", [True, False])
def test_each_passage_is_answered_as_the_whole_model_does(k: int, invariant: bool, tmp_path: Path) -> None:
    bundle = write_decoupled(tmp_path / "bundle", batch_invariant=invariant)
    index(bundle, DOCUMENTS, tmp_path / "store", states="float16", overlap=0)
    with PassageReader.open(bundle, tmp_path / "store") as reader, load(bundle) as model:
        assert isinstance(model, edgec_runtime.Reader)
        answers = reader.ask(QUESTION, k, "dense")
        assert answers.passages == min(k, len(reader.store)) and (answers or k < 10)
        for one in answers:
            whole = model.answer(QUESTION, one.context)
            assert (one.text, one.start, one.end) == (whole.text, whole.start, whole.end)
            np.testing.assert_allclose((one.score, one.null_score), (whole.score, whole.null_score), atol=0.02)
        margins = [one.score - one.null_score for one in answers]
        assert margins == sorted(margins, reverse=True) and all(margin >= 0 for margin in margins)


def test_the_answers_are_the_words_that_stand_for_one(bundle: Path, kept: Path) -> None:
    texts = {document.id: document.text for document in DOCUMENTS}
    with PassageReader.open(bundle, kept) as reader:
        answers = reader.ask(QUESTION, 10, "dense")
    assert {one.document: one.text for one in answers} == {"ada": "Bern", "cara": "Denmark", "long": "Egypt"}
    assert set(ANSWERS) == {one.text for one in answers}
    for one in answers:
        assert texts[one.document][one.document_start : one.document_end] == one.text
        assert one.context[one.start : one.end] == one.text
        assert one.title == {document.id: document.title for document in DOCUMENTS}[one.document]


@pytest.mark.parametrize(("contrastive", "dense"), [(None, False), (0.0, False), (0.1, True)])
def test_a_model_that_was_trained_to_search_does(
    contrastive: float | None, dense: bool, bundle: Path, kept: Path
) -> None:
    with PassageReader.open(bundle, kept) as reader:
        if contrastive is not None:
            record = PassRecord("decouple", {"contrastive": contrastive}, {})
            reader.model.manifest = replace(reader.model.manifest, passes=(record,))
        # By words alone nothing is found.
        assert (reader.ask("zebra").passages > 0) == dense
        assert reader.ask("\u5de5\u4f5c").passages > 0  # in a script that does not part words


def test_answers_of_passages_without_a_document_are_not_one(bundle: Path, tmp_path: Path) -> None:
    with PassageReader.open(bundle, _two(bundle, tmp_path / "two")) as reader:
        assert [one.passage for one in reader.ask("who works ?", 10, "dense")] == ["a", "b"]


def _two(bundle: Path, folder: Path) -> Path:
    """Two passages with one text, of no document that is known."""
    index(bundle, [Document("ada", "Ada works in Bern .")], folder.with_name("source"))
    with Store.open(folder.with_name("source")) as store:
        one = store.passage(0)
        with StoreWriter.create(folder, store.header) as writer:
            for name in ("a", "b"):
                writer.add(
                    replace(one, id=name, document="", embedding=np.ones(store.header.embedding_dim, np.float32))
                )
    return folder


def test_alone_and_in_a_batch(bundle: Path, kept: Path) -> None:
    """The passage that fits best is the shortest: in a batch it is padded the most."""
    with PassageReader.open(bundle, kept) as reader:
        question = "where is Bern ? in the house"
        together = {one.passage: one for one in reader.ask(question, 10, "bm25")}
        (alone,) = reader.ask(question, 1, "bm25")
    assert len(together) > 1 and alone.passage == "ada#0"
    best = together["ada#0"]
    assert len(best.context) == min(len(one.context) for one in together.values())
    np.testing.assert_allclose((alone.score, alone.null_score), (best.score, best.null_score), atol=1e-5)


def test_int8_states_answer_alike(bundle: Path, kept: Path, store: Path) -> None:
    with PassageReader.open(bundle, kept) as float16, PassageReader.open(bundle, store) as int8:
        for a, b in zip(float16.ask(QUESTION, 10, "dense"), int8.ask(QUESTION, 10, "dense"), strict=True):
            assert (a.text, a.passage) == (b.text, b.passage)
            assert abs(a.score - b.score) < 0.2


def test_no_answer_and_no_match(bundle: Path, kept: Path) -> None:
    with PassageReader.open(bundle, kept) as reader:
        none = reader.ask("what is the green letter ?", 1, "bm25")
        assert (none.answers, none.passages) == ((), 1)
        with load(bundle) as model:
            assert isinstance(model, edgec_runtime.Reader)
            whole = model.answer("what is the green letter ?", DOCUMENTS[3].text)
        assert whole.text == "" and none.null_score == pytest.approx(whole.null_score, abs=0.02)
        unmatched = reader.ask("zebra ! ?", search="bm25")
        assert (unmatched.answers, unmatched.passages, unmatched.null_score) == ((), 0, None)
        assert reader.ask("???", search="bm25").passages == 0


def test_a_model_without_null_answers_always_answers(tmp_path: Path) -> None:
    bundle = write_decoupled(tmp_path / "bundle", null_answers=False)
    index(bundle, DOCUMENTS[3:], tmp_path / "store")
    with PassageReader.open(bundle, tmp_path / "store") as reader:
        assert len(reader.ask(QUESTION, search="dense")) == 1


def test_the_best_answer_is_the_one_farthest_above_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores alone say little of one passage against another."""
    bundle = write_decoupled(tmp_path / "bundle", null_answers=False)
    index(bundle, DOCUMENTS, tmp_path / "store")
    with PassageReader.open(bundle, tmp_path / "store") as reader:
        first = reader.ask(QUESTION, 10, "dense")[0]
        plain = reader._outputs

        def doubtful(question: Any, passages: Any) -> Any:
            outputs = plain(question, passages)
            for passage, output in zip(passages, outputs, strict=True):
                output["start_logits"][0] += 100 * (passage.id == first.passage)
            return outputs

        monkeypatch.setattr(reader, "_outputs", doubtful)
        answers = list(reader.ask(QUESTION, 10, "dense"))
    assert len(answers) > 2 and answers[-1].passage == first.passage
    assert answers[-1].score == first.score == max(one.score for one in answers)


def test_a_span_of_two_passages_comes_once(bundle: Path, tmp_path: Path) -> None:
    text = "the old house . " * 4 + "Bern ." + " the small garden ." * 4
    index(bundle, [Document("a", text)], tmp_path / "store", passage_tokens=18, overlap=12)
    with PassageReader.open(bundle, tmp_path / "store") as reader:
        holders = [row for row in range(reader.store.rows) if "Bern" in reader.store.passage(row).text]
        answers = [one for one in reader.ask("where ?", 10, "dense") if one.text == "Bern"]
    assert len(holders) > 1 and len(answers) == 1


def test_a_question_that_leaves_no_room_is_cut_and_told(bundle: Path, kept: Path) -> None:
    with PassageReader.open(bundle, kept) as reader:
        with pytest.warns(TruncationWarning, match="the question was cut from 20 to"):
            assert reader.ask("who " * 20, 10, "dense").passages > 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.ask("who " * 6, 10, "dense")


def test_refusals(bundle: Path, kept: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    with PassageReader.open(bundle, kept) as reader:
        with pytest.raises(TextInvalid, match="the question has no token"):
            reader.ask("  ")
        with pytest.raises(TextInvalid, match="lone surrogate"):
            reader.ask("\ud800")
        with pytest.raises(ValueError, match="k must be at least 1"):
            reader.ask("who", 0)
        with pytest.raises(ValueError, match="unknown search 'sparse'; known are dense, bm25"):
            reader.ask("who", search="sparse")  # type: ignore[arg-type]
    other = write_decoupled(tmp_path / "other", seed=4)
    with pytest.raises(StoreMismatch, match="build build-3 where build-4 is expected"):
        PassageReader.open(other, kept)
    with pytest.raises(TaskMismatch, match="is one graph, not decoupled"):
        PassageReader.open(bundles["question-answering"], kept)
    with pytest.raises(TaskMismatch, match="was made for fill-mask"):
        PassageReader.open(bundles["fill-mask"], kept)


def test_an_emptied_and_a_damaged_store(bundle: Path, store: Path) -> None:
    from edgec_runtime.retrieval.indexing import delete

    records = store / "records-0.bin"
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 4
    records.write_bytes(content)
    with (
        PassageReader.open(bundle, store) as reader,
        pytest.raises(StoreDamaged, match=r"records-0\.bin: passage of row"),
    ):
        reader.ask(QUESTION, 10, "dense")
    delete(store, ["ada", "cara", "long", "none"])
    with pytest.raises(StoreEmpty):
        PassageReader.open(bundle, store)


def test_the_same_from_the_command_line(
    bundle: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(bundle), str(kept), QUESTION, "zebra", "--search", "bm25", "--k", "3"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with PassageReader.open(bundle, kept) as reader:
        assert [one["text"] for one in found[0]["answers"]] == [one.text for one in reader.ask(QUESTION, 3, "bm25")]
    assert (found[1]["question"], found[1]["passages"], found[1]["null_score"]) == ("zebra", 0, None)
    assert main(["ask", str(bundle), str(tmp_path), QUESTION]) == 2
    assert "holds no store" in capsys.readouterr().err

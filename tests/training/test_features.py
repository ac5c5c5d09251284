"""Labelled examples as rows, against transformers' own tokenization and offsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import CONTEXT, model
from tiny_models import FAMILIES, WORDS

from edgec.data.examples import Answer, Example, Question, Tagged
from edgec.errors import DataError
from edgec.models.heads import with_head
from edgec.training.features import IGNORED, Featurizer, TrainingRow, collate

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def _first_piece(tokenizer: Any, text: str, character: int) -> int:
    """The first token, special ones counted, of the word that begins at `character`: a lone mark of a word's start, if
    there is one, else the one that reaches over the character."""
    offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    found = next(i for i, (start, end) in enumerate(offsets) if start <= character < end)
    start, end = offsets[found - 1]
    return found - 1 if text[start:end] == " " else found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_has_the_label_of_its_first_piece(family: str, tmp_path: Path) -> None:
    state = model("token-classification", tmp_path, family)
    sentence = Tagged(
        ("Ada", "Lovelace", "saw", "xyz-qrs", "in", "Bern's", "old", "house", "."),
        ("B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC", "I-LOC", "I-LOC", "O"),
    )
    (row,) = Featurizer(state).labelled([sentence])
    text = "Ada Lovelace saw xyz-qrs in Bern's old house ."
    assert row.ids.tolist() == state.tokenizer(text)["input_ids"]
    expected = [IGNORED] * len(row.ids)
    for word, tag in zip(sentence.words, sentence.tags, strict=True):
        expected[_first_piece(state.tokenizer, text, text.index(word))] = LABELS.index(tag)
    assert row.targets["labels"].tolist() == expected
    assert sum(label != IGNORED for label in expected) == len(sentence.words)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert"])
def test_windows_of_a_long_sentence_hold_every_word(family: str, tmp_path: Path) -> None:
    state = model("token-classification", tmp_path, family)
    words = tuple(WORDS[i % len(WORDS)] for i in range(100))
    tags = tuple(LABELS[i % 5] for i in range(100))
    rows = Featurizer(state, max_length=24).labelled([Tagged(words, tags)])
    assert len(rows) > 3 and all(len(row.ids) <= 24 for row in rows)
    encoded = state.tokenizer(" ".join(words), verbose=False)
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])]).tolist()
    whole = np.full(len(encoded["input_ids"]), IGNORED)
    for start, tag in zip(starts, tags, strict=True):
        whole[_first_piece(state.tokenizer, " ".join(words), start)] = LABELS.index(tag)
    ids, labels = np.array(encoded["input_ids"])[1:-1], whole[1:-1]
    # Each window is a cut of the whole, between the special tokens, and the cuts leave out nothing.
    reached, room, first = 0, 22, 0
    for row in rows:
        count = len(row.ids) - 2
        assert row.ids[1:-1].tolist() == ids[first : first + count].tolist()
        assert row.targets["labels"][1:-1].tolist() == labels[first : first + count].tolist()
        assert first <= reached
        reached, first = first + count, first + room - 24 // 4
    assert reached == len(ids)


def test_texts_that_are_cut_are_told_once(tmp_path: Path) -> None:
    """A score after the best training on half a text would be put down to the training."""
    said: list[str] = []
    long, short = " ".join(WORDS), "Yes."
    texts = Featurizer(model("text-classification", tmp_path / "one"), max_length=16, say=said.append)
    rows = [Example(text, None, "neutral") for text in (long, short, long)]
    assert {len(row) for row in texts.labelled(rows)} == {16, len(texts.texts([short])[0])}
    texts.labelled(rows)
    pairs = Featurizer(model("feature-extraction", tmp_path / "two"), max_length=16, say=said.append)
    pairs.labelled([Example(short, long, "1")])
    tags = Featurizer(model("token-classification", tmp_path / "three"), max_length=16, say=said.append)
    tags.labelled([Tagged(tuple(WORDS), ("O",) * len(WORDS))])  # windows hold it whole
    cut = "texts to train on are longer than 16 tokens: they are cut there"
    assert said == [f"2 of 3 {cut}", f"1 of 1 {cut}"]


def test_a_window_without_a_labelled_token_is_no_row(tmp_path: Path) -> None:
    state = model("token-classification", tmp_path)
    # One word of 100 letters, of which only the first has a label.
    rows = Featurizer(state, max_length=24).labelled([Tagged(("z" * 90,), ("B-PER",))])
    assert len(rows) == 1 and rows[0].targets["labels"].tolist()[:3] == [IGNORED, 1, IGNORED]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_where_transformers_finds_its_characters(family: str, tmp_path: Path) -> None:
    state = model("question-answering", tmp_path, family)
    asked = "Where was Cara?"
    for answer in ("the old house", "Ada", "garden"):
        start = CONTEXT.index(answer)
        (row,) = Featurizer(state).labelled([Question("1", asked, CONTEXT, (Answer(answer, start),))])
        encoded = state.tokenizer(asked, CONTEXT)
        assert row.ids.tolist() == encoded["input_ids"]
        first = encoded.char_to_token(start, sequence_index=1)
        last = encoded.char_to_token(start + len(answer) - 1, sequence_index=1)
        assert (row.targets["start"], row.targets["end"]) == (first, last)


def test_windows_without_the_answer_point_at_the_first_token(tmp_path: Path) -> None:
    state = model("question-answering", tmp_path)
    asked = Question("1", "Where was Cara?", CONTEXT, (Answer("the garden", CONTEXT.index("the garden")),))
    nowhere = Question("2", "What was cold?", CONTEXT)
    rows = Featurizer(state, max_length=20).labelled([asked, nowhere])
    found = [(row.targets["start"], row.targets["end"]) for row in rows]
    half = len(rows) // 2
    assert found[0] == (0, 0) and set(found[half:]) == {(0, 0)}
    holding = [row for row, span in zip(rows, found, strict=True) if span != (0, 0)]
    assert holding
    for row in holding:
        ids = row.ids[row.targets["start"] : row.targets["end"] + 1]
        assert state.tokenizer.decode(ids) == "the garden"


def test_texts_and_pairs_are_encoded_as_transformers_does(tmp_path: Path) -> None:
    state = model("text-classification", tmp_path)
    first, second = Example("Ada read.", label="neutral"), Example("Ada read.", "The river", "positive")
    single, pair = Featurizer(state).labelled([first, second])
    for row, encoded in ((single, state.tokenizer("Ada read.")), (pair, state.tokenizer("Ada read.", "The river"))):
        assert row.ids.tolist() == encoded["input_ids"] and row.type_ids.tolist() == encoded["token_type_ids"]
    assert (single.targets["label"], pair.targets["label"]) == (1, 2)
    assert Featurizer(state).texts(["Ada read.", ("Ada read.", "The river")])[1].ids.tolist() == pair.ids.tolist()


def test_a_text_may_have_several_labels_or_none(tmp_path: Path) -> None:
    state = with_head(
        model("text-classification", tmp_path), "text-classification", labels=("a", "b", "c"), multi_label=True
    )
    rows = Featurizer(state).labelled(
        [Example("Ada", label="a|c", labels=("a", "c")), Example("Bern", label="", labels=())]
    )
    assert [row.targets["label"].tolist() for row in rows] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_pairs_with_scores_are_two_rows(tmp_path: Path) -> None:
    state = model("feature-extraction", tmp_path)
    rows = Featurizer(state).labelled([Example("Ada read.", "The river", "2.5"), Example("Bern", "Ada walked", "5")])
    batch = collate(rows, state.tokenizer.pad_token_id)
    assert batch["score"].tolist() == [2.5, 5.0]
    for prefix, texts in (("", ["Ada read.", "Bern"]), ("other_", ["The river", "Ada walked"])):
        expected = state.tokenizer(texts, padding=True, return_tensors="pt")
        assert batch[f"{prefix}input_ids"].tolist() == expected["input_ids"].tolist()
        assert batch[f"{prefix}attention_mask"].tolist() == expected["attention_mask"].tolist()
    # Without scores, each text of a pair is a row of its own.
    assert len(Featurizer(state).texts([("Ada read.", "The river"), "Bern"])) == 3


def test_a_batch_is_padded_to_its_longest_row() -> None:
    rows = [
        TrainingRow(np.array([5, 6, 7], np.int32), np.array([0, 0, 1], np.int32), {"labels": np.array([-100, 2, 3])}),
        TrainingRow(np.array([8], np.int32), np.array([1], np.int32), {"labels": np.array([4])}),
    ]
    batch = collate(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]


@pytest.mark.parametrize(
    ("task", "example", "message"),
    [
        ("text-classification", Example("a", label="angry", line=7, path="x.csv"), "angry"),
        ("token-classification", Tagged(("a",), ("B-ORG",), line=3), "B-ORG"),
        ("feature-extraction", Example("a", "b", "near", line=2), "near"),
        (
            "token-classification",
            Example("a", label="O"),
            "a text, or a pair without a score, cannot train a model for token-classification",
        ),
        ("feature-extraction", Example("a", label="1"), "cannot train a model for feature-extraction"),
        ("question-answering", Tagged(("a",), ("O",)), "a tagged sentence cannot train a model for question-answering"),
    ],
)
def test_rows_that_do_not_fit_are_refused(task: str, example: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        Featurizer(model(task, tmp_path)).labelled([example])

"""The five tasks on graphs whose answers can be worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from edgec_runtime import (
    Answer,
    Classifier,
    EmbeddingModel,
    MaskFiller,
    Reader,
    Span,
    Tagger,
    TruncationWarning,
    load,
)
from edgec_runtime.errors import TextInvalid
from edgec_runtime.tasks.tag import merge_windows, word_tokens
from edgec_runtime.text import Encoded, Row
from tiny_bundles import (
    GOLDEN,
    SPECIALS,
    byte_bpe,
    graph,
    metaspace_unigram,
    random_table,
    wordpiece,
    write_bundle,
)
from tokenizers import Tokenizer


def test_the_type_follows_the_task(bundles: dict[str, Path]) -> None:
    kinds = (EmbeddingModel, Classifier, Tagger, Reader, MaskFiller)
    assert tuple(type(load(bundles[task])) for task in GOLDEN) == kinds


def reference(bundle: Path, *texts: str) -> list[np.ndarray]:
    """The graph run by hand on the tokenizer's own encoding."""
    encoding = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(*texts)
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {
        "input_ids": np.array([encoding.ids], np.int32),
        "attention_mask": np.ones((1, len(encoding.ids)), "int32"),
    }
    return [np.asarray(value)[0] for value in session.run(None, feeds)]


def test_embed(bundles: dict[str, Path]) -> None:
    path = bundles["feature-extraction"]
    texts = ["the fox", "", "a dog and a fox"]
    vectors = load(path).embed(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (3, 8)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(vector, reference(path, text)[0], atol=1e-6)


def test_prompts(tmp_path: Path) -> None:
    prompts = {"query": "the quick ", "passage": "lazy "}
    path = write_bundle(tmp_path / "b", "feature-extraction", pre={"prompts": prompts, "default_prompt": "query"})
    model = load(path)
    np.testing.assert_array_equal(model.embed(["fox"])[0], model.embed(["the quick fox"], prompt="")[0])
    np.testing.assert_array_equal(model.embed(["fox"], prompt="passage")[0], model.embed(["lazy fox"], prompt="")[0])
    assert model.ids(["fox"])[0].tolist() == model.encoder.tokenizer.encode("the quick fox").ids
    with pytest.raises(TextInvalid, match="unknown prompt 'title'"):
        model.embed(["fox"], prompt="title")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_classify(tmp_path: Path, activation: str) -> None:
    path = write_bundle(tmp_path / "b", "text-classification", post={"activation": activation})
    model = load(path)
    labels = model.classify(["the fox", ("the fox", "a dog")])
    for label, texts in zip(labels, [("the fox",), ("the fox", "a dog")], strict=True):
        logits = reference(path, *texts)[0].astype(float)
        expected = 1 / (1 + np.exp(-logits)) if activation == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
        assert label.label == ("negative", "neutral", "positive")[int(expected.argmax())]
        assert label.score == pytest.approx(expected.max(), abs=1e-6)
    assert model.classify([]) == []


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
WORDS = {
    "Ada": 1,
    "Love": 2,
    "##lace": 0,
    "lived": 0,
    "in": 0,
    "New": 3,
    "York": 4,
    "and": 0,
    "Rome": 3,
    ".": 0,
    "Jo": 4,
}


def tagger(
    folder: Path,
    scheme: str = "BIO",
    *,
    tags: tuple[str, ...] = TAGS,
    words: dict[str, int] = WORDS,
    **pre: object,
) -> Tagger:
    tokenizer = wordpiece(list(words))
    table = np.zeros((len(SPECIALS) + len(words), len(tags)))
    for i, label in enumerate(words.values()):
        table[len(SPECIALS) + i, label] = 4
    path = write_bundle(
        folder,
        "token-classification",
        tokenizer=tokenizer,
        model=graph("token-classification", table, context=0.0),
        labels=tags,
        pre=dict(pre),
        post={"label_scheme": scheme},
    )
    model = load(path)
    assert isinstance(model, Tagger)
    return model


def test_tag_entities(tmp_path: Path) -> None:
    text = "Ada  Lovelace lived in New York, and Rome. Jo"
    score = pytest.approx(np.exp(4) / (np.exp(4) + 4), abs=1e-6)
    assert tagger(tmp_path / "b").tag(text) == [
        Span("Ada  Lovelace", "PER", 0, 13, score),
        Span("New York", "LOC", 23, 31, score),
        Span("Rome", "LOC", 37, 41, score),
        Span("Jo", "LOC", 43, 45, score),  # an I- without a beginning begins one
    ]


@pytest.mark.parametrize(
    "tags",
    [
        ("O", "B-PER", "E-PER", "B-LOC", "E-LOC", "S-LOC"),  # IOBES
        ("O", "B-PER", "L-PER", "B-LOC", "L-LOC", "U-LOC"),  # BILOU
    ],
)
def test_tag_entities_with_ends_and_single_words(tmp_path: Path, tags: tuple[str, ...]) -> None:
    model = tagger(tmp_path / "b", tags=tags, words=WORDS | {"Rome": 5, "Jo": 5})
    spans = model.tag("Ada Lovelace lived in New York and Rome Jo")
    found = [(s.text, s.label) for s in spans]
    assert found == [("Ada Lovelace", "PER"), ("New York", "LOC"), ("Rome", "LOC"), ("Jo", "LOC")]


def test_tag_entities_without_prefixes(tmp_path: Path) -> None:
    words = WORDS | {"Love": 1, "New": 2, "York": 2, "Rome": 2, "Jo": 1}
    spans = tagger(tmp_path / "b", tags=("O", "PER", "LOC"), words=words).tag("Ada Lovelace lived in New York. Rome Jo")
    found = [(s.text, s.label) for s in spans]
    assert found == [("Ada Lovelace", "PER"), ("New York", "LOC"), ("Rome", "LOC"), ("Jo", "PER")]


def test_tag_words(tmp_path: Path) -> None:
    spans = tagger(tmp_path / "b", "plain").tag("Ada Lovelace lived.")
    assert [(s.text, s.label) for s in spans] == [
        ("Ada", "B-PER"),
        ("Lovelace", "I-PER"),
        ("lived", "O"),
        (".", "O"),
    ]


def test_tag_long_texts(tmp_path: Path) -> None:
    text = "lived in Rome and " * 40 + "Ada Lovelace"
    spans = tagger(tmp_path / "w", max_length=12, stride=4).tag(text)
    assert [s.text for s in spans] == ["Rome"] * 40 + ["Ada Lovelace"]
    assert all(text[s.start : s.end] == s.text for s in spans)
    with pytest.warns(TruncationWarning):
        assert len(tagger(tmp_path / "t", max_length=12, long_text="truncate").tag(text)) == 2
    assert tagger(tmp_path / "e").tag("") == []


def test_label_words(tmp_path: Path) -> None:
    model = tagger(tmp_path / "b")
    words = ["Ada", "Love-lived", "\x07", "in", "New York", "Rome", "."]
    assert model.label_words(words) == ["B-PER", "I-PER", "O", "O", "B-LOC", "B-LOC", "O"]
    assert model.label_words([]) == []
    assert model.label_words(("Ada",)) == ["B-PER"]
    for wrong in ("Ada lived", ["Ada", 3], ["\ud800"]):
        with pytest.raises(TextInvalid):
            model.label_words(wrong)  # type: ignore[arg-type]


def test_label_words_of_long_sentences(tmp_path: Path) -> None:
    words = ["lived", "in", "Rome"] * 40
    expected = ["O", "O", "B-LOC"] * 40
    assert tagger(tmp_path / "w", max_length=12, stride=4).label_words(words) == expected
    cut = tagger(tmp_path / "t", max_length=12, long_text="truncate")
    with pytest.warns(TruncationWarning):
        assert cut.label_words(words) == [*expected[:10], *["O"] * 110]
    plain = tagger(tmp_path / "p", "plain", tags=("X", "Y"), words=dict.fromkeys(WORDS, 1))
    assert plain.label_words(["lived", "\x07"]) == ["Y", "X"], "no token: the first label where there is no O"


@pytest.mark.parametrize("make", [wordpiece, byte_bpe, metaspace_unigram])
def test_every_word_of_a_sentence_has_its_first_token(tmp_path: Path, make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    model = load(write_bundle(tmp_path / "b", "token-classification", tokenizer=tokenizer))
    words = ["Paris,", "fox", "e-mail", "日本", "antidisestablishmentarianism", "(of", "...", "नमस्ते"]
    encoded = model.encode(" ".join(words))
    found = word_tokens(words, encoded.content, len(encoded.content))
    offsets = encoded.content.encoding.offsets
    start = 0
    for word, token in zip(words, found, strict=True):
        # The first token that reaches into the word; a mark of the space before it belongs to the word, too.
        touching = [i for i, (a, b) in enumerate(offsets) if a < start + len(word) and b > start]
        assert token in (touching[0], touching[0] - 1), word
        assert offsets[token][0] in (start - 1, start)
        start += len(word) + 1


@pytest.mark.parametrize("make", [wordpiece, byte_bpe, metaspace_unigram])
@pytest.mark.parametrize(
    "text", ["Paris, unbelievable fox!  (of 🦊 machine.) 日本 e-mail", " a\tb\n", "...", "नमस्ते fox"]
)
def test_words_of_any_tokenizer(tmp_path: Path, make: object, text: str) -> None:
    """Every character that is no white space is in one word, and no word crosses white space or
    punctuation."""
    tokenizer = make()  # type: ignore[operator]
    path = write_bundle(tmp_path / "b", "token-classification", tokenizer=tokenizer)
    spans = load(path).tag(text)
    assert "".join(s.text for s in spans) == "".join(text.split())
    assert all(s.text == text[s.start : s.end] for s in spans)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(s.text.isalnum() or len(s.text) == 1 or "्" in text for s in spans)


def test_a_label_comes_from_the_window_with_most_context() -> None:
    rows = tuple(Row(np.zeros(7, np.int32), np.zeros(7, np.int32), 1, first, 5) for first in (0, 3, 6))
    encoded = Encoded(rows, content=None)  # type: ignore[arg-type]
    logits = [np.full((7, 1), i) for i in range(3)]
    # tokens 3, 4 are in windows 0 [0, 5) and 1 [3, 8); 6, 7 in 1 and 2 [6, 11)
    assert merge_windows(encoded, logits).ravel().tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]


ANSWERS = {"who": (0, 0), "Ada": (5, 1), "Lovelace": (2, 6), "in": (1, 1), "Rome": (3, 4), "far": (0, 0)}


def reader(folder: Path, cls: tuple[float, float] = (0, 0), *, null: bool = False, **pre: object) -> Reader:
    tokenizer = wordpiece(list(ANSWERS))
    table = np.zeros((len(SPECIALS) + len(ANSWERS), 2))
    table[2] = cls
    table[3] = (9, 9)  # a separator is never an answer
    table[len(SPECIALS) :] = list(ANSWERS.values())
    path = write_bundle(
        folder,
        "question-answering",
        tokenizer=tokenizer,
        model=graph("question-answering", table, context=0.0),
        pre=dict(pre),
        post={"null_answers": null, "max_answer_tokens": 3},
        requests=[{"question": "who", "context": "Ada in Rome"}],
    )
    model = load(path)
    assert isinstance(model, Reader)
    return model


def test_answer(tmp_path: Path) -> None:
    model = reader(tmp_path / "b", (1, 2))
    assert model.answer("who", "in Ada Lovelace Rome") == Answer("Ada Lovelace", 3, 15, 11.0, 3.0)
    # The best end stands before the best start: the pair has to be in order.
    assert model.answer("who", "Lovelace Ada") == Answer("Lovelace", 0, 8, 8.0, 3.0)
    # Four tokens are too many.
    assert model.answer("who", "Ada in in Lovelace").text in ("in in Lovelace", "Lovelace")
    # The question's own words never count.
    assert model.answer("Ada Lovelace", "Rome").text == "Rome"
    assert model.answer("who", "") == Answer("", 0, 0, 3.0, 3.0)


def test_no_answer(tmp_path: Path) -> None:
    sure = reader(tmp_path / "s", (6, 6), null=True)
    assert sure.answer("who", "Ada Lovelace") == Answer("", 0, 0, 11.0, 12.0)
    assert reader(tmp_path / "f", (6, 6)).answer("who", "Ada Lovelace").text == "Ada Lovelace"
    assert reader(tmp_path / "l", (5, 5), null=True).answer("who", "Ada Lovelace").text == "Ada Lovelace"


def test_answers_in_long_contexts(tmp_path: Path) -> None:
    context = "far " * 200 + "Ada Lovelace" + " far" * 30
    model = reader(tmp_path / "w", max_length=16, stride=6)
    assert model.answer("who", context) == Answer("Ada Lovelace", 800, 812, 11.0, 0.0)
    with pytest.warns(TruncationWarning):
        short = reader(tmp_path / "t", max_length=16, long_text="truncate").answer("who", context)
    assert short.text != "Ada Lovelace"


@pytest.mark.parametrize("make", [wordpiece, byte_bpe])
def test_fill_mask(tmp_path: Path, make: object) -> None:
    tokenizer: Tokenizer = make()  # type: ignore[operator]
    mask = "[MASK]" if make is wordpiece else "<mask>"
    text = f"the quick {mask} fox {mask}."
    path = write_bundle(
        tmp_path / "b",
        "fill-mask",
        tokenizer=tokenizer,
        model=graph("fill-mask", random_table(tokenizer)),
        post={"mask_token": mask, "mask_id": 4},
        requests=[text],
    )
    model = load(path)
    fills = model.fill_mask(text, top_k=3)
    logits = reference(path, text)[0].astype(float)
    positions = np.flatnonzero(np.array(tokenizer.encode(text).ids) == 4)
    assert len(fills) == 6
    for number, position in enumerate(positions):
        scores = np.exp(logits[position] - logits[position].max())
        best = np.argsort(-scores)[:3]
        mine = fills[3 * number : 3 * number + 3]
        assert [f.token for f in mine] == [tokenizer.id_to_token(int(i)) for i in best]
        assert [f.score for f in mine] == pytest.approx((scores / scores.sum())[best].tolist(), abs=1e-6)
        start = text.index(mask) if number == 0 else text.rindex(mask)
        for fill in mine:
            assert fill.start == start
            assert fill.text[:start] == text[:start] and fill.text.endswith(text[start + 6 :])
    assert model.raw([text])[0]["logits"].shape == (2, tokenizer.get_vocab_size())


def test_masks_that_are_not_there(bundles: dict[str, Path]) -> None:
    model = load(bundles["fill-mask"])
    with pytest.raises(TextInvalid, match=r"no \[MASK\]"):
        model.fill_mask("the fox")
    with pytest.raises(TextInvalid, match="beyond the 32 tokens"):
        model.fill_mask("[MASK] " + "fox " * 60 + "[MASK]")
    with pytest.raises(ValueError, match="top_k"):
        model.fill_mask("[MASK]", top_k=0)

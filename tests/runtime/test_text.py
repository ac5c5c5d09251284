"""Ids against the tokenizer's own truncation; windows against their definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgec_runtime import TruncationWarning, load
from edgec_runtime.errors import ExtraMissing, ManifestInvalid, TextInvalid
from edgec_runtime.manifest import Preprocessing
from edgec_runtime.text import Encoder
from tiny_bundles import LINES, byte_bpe, metaspace_unigram, wordpiece
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

TEXTS = [*LINES, "", " ", "\x00\x07\u200b", "fox", "a fox [MASK] [SEP] dog", "日本語 and 🦊🦊", "x" * 500, "of " * 80]


def encoder(tokenizer: Tokenizer, **settings: Any) -> Encoder:
    # A tokenizer file with truncation and padding of its own, which must not count.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    settings = {"max_length": 20, "pad_id": 0, "pairs": True} | settings
    made = Encoder(tokenizer.to_str().encode(), Preprocessing("tokenizer.json", **settings))
    tokenizer.no_padding()
    return made


@pytest.mark.parametrize("make", [wordpiece, byte_bpe, metaspace_unigram])
@pytest.mark.parametrize("max_length", [8, 9, 20, 1000])
def test_rows_are_those_of_the_tokenizer(make: Callable[[], Tokenizer], max_length: int) -> None:
    tokenizer = make()
    ours = encoder(tokenizer, max_length=max_length)
    tokenizer.enable_truncation(max_length)
    for text in TEXTS:
        encoded, expected = ours.single(text), tokenizer.encode(text)
        assert encoded.rows[0].ids.tolist() == expected.ids
        assert encoded.rows[0].type_ids.tolist() == expected.type_ids
        assert encoded.dropped == sum(len(e.ids) - 2 for e in expected.overflowing)
        for other in TEXTS:
            row, pair = ours.pair(text, other).rows[0], tokenizer.encode(text, other)
            assert row.ids.tolist() == pair.ids
            assert row.type_ids.tolist() == pair.type_ids
            assert row.ids.dtype == row.type_ids.dtype == np.int32


@pytest.mark.parametrize("make", [wordpiece, byte_bpe, metaspace_unigram])
def test_windows_are_those_of_the_tokenizer(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    ours = encoder(tokenizer, max_length=12, stride=4)
    tokenizer.enable_truncation(12, stride=4)
    for text in TEXTS:
        first = tokenizer.encode(text)
        assert [row.ids.tolist() for row in ours.windows(text).rows] == [
            window.ids for window in (first, *first.overflowing)
        ]


@pytest.mark.parametrize("make", [wordpiece, byte_bpe, metaspace_unigram])
def test_windows_over_a_context(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    ours = encoder(tokenizer, max_length=16, stride=3)
    tokenizer.enable_truncation(16, stride=3, strategy="only_second")
    context = " ".join(LINES)
    first = tokenizer.encode("fox", context)
    encoded = ours.pair_windows("fox", context)
    assert [row.ids.tolist() for row in encoded.rows] == [w.ids for w in (first, *first.overflowing)]
    assert len(encoded.rows) > 2
    for row in encoded.rows:
        inside = row.ids[row.start : row.start + row.count]
        assert inside.tolist() == encoded.content.ids[row.first : row.first + row.count].tolist()


def test_a_question_leaves_half_of_the_row() -> None:
    ours = encoder(wordpiece(), max_length=13, stride=12)
    encoded = ours.pair_windows("fox " * 50, "dog " * 12)
    covered = set()
    for row in encoded.rows:
        assert len(row.ids) <= 13
        covered |= set(range(row.first, row.first + row.count))
    assert covered == set(range(len(encoded.content)))
    assert encoded.dropped == len(ours.content("fox " * 50)) - 5


def test_offsets_point_into_the_original_text() -> None:
    text = "Ünïcode  FOX\tdog"
    content = encoder(wordpiece(["unicode", "fox", "dog"])).content(text.lower())
    assert [text[a:b] for a, b in content.encoding.offsets][-2:] == ["FOX", "dog"]
    content = encoder(byte_bpe()).content("a brown fox")
    starts = {start for start, _ in content.encoding.offsets}
    assert {0, 2, 8} <= starts and not {1, 7} & starts  # words begin after their space


@pytest.mark.parametrize("text", ["", "\x00", "\x1b[2J", "a" * 100_000, "the fox " * 12_500, "🦊" * 100_000])
def test_extreme_texts_succeed(bundles: dict[str, Path], text: str) -> None:
    model = load(bundles["feature-extraction"])
    if len(text) > 1000 and " " in text:
        with pytest.warns(TruncationWarning):
            vectors = model.embed([text])
    else:
        vectors = model.embed([text])
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("task", ["embed", "classify", "tag", "answer", "fill_mask"])
def test_lone_surrogates_are_refused(bundles: dict[str, Path], task: str) -> None:
    text = "fine \ud83e broken [MASK]"
    calls = {
        "embed": lambda: load(bundles["feature-extraction"]).embed(["ok", text]),
        "classify": lambda: load(bundles["text-classification"]).classify([("ok", text)]),
        "tag": lambda: load(bundles["token-classification"]).tag(text),
        "answer": lambda: load(bundles["question-answering"]).answer("ok", text),
        "fill_mask": lambda: load(bundles["fill-mask"]).fill_mask(text),
    }
    with pytest.raises(TextInvalid, match=r"U\+D83E\) at character 5"):
        calls[task]()


def test_what_is_no_list_of_texts(bundles: dict[str, Path]) -> None:
    model = load(bundles["feature-extraction"])
    with pytest.raises(TextInvalid, match="not one text") as caught:
        model.embed("a text")
    assert "[text]" in caught.value.hint
    with pytest.raises(TextInvalid, match=r"input 1: .* not int"):
        model.embed(["a", 3])
    with pytest.raises(TextInvalid, match="not set"):
        model.embed({"a"})
    with pytest.raises(TextInvalid, match="neither a text nor a pair"):
        load(bundles["text-classification"]).classify([("a", "b", "c")])
    assert model.embed([]).shape == (0, 8)


def test_truncation_is_never_silent(bundles: dict[str, Path]) -> None:
    model = load(bundles["feature-extraction"])
    long = "fox " * 100
    tokens = len(model.encoder.content(long))
    with pytest.warns(TruncationWarning, match=rf"1 of 2 inputs .* 32 tokens; {tokens - 30} tokens") as caught:
        model.embed(["short", long])
    assert caught[0].filename == __file__
    assert model.encode(long).dropped == tokens - 30


def test_a_model_for_single_texts_refuses_pairs() -> None:
    with pytest.raises(TextInvalid, match="single texts"):
        encoder(wordpiece(), pairs=False).pair("a", "b")


def test_a_text_without_tokens_and_special_tokens() -> None:
    tokenizer = wordpiece()
    tokenizer.post_processor = None  # type: ignore[assignment]
    assert encoder(tokenizer).single("").rows[0].ids.tolist() == [0]


def test_what_is_no_tokenizer() -> None:
    with pytest.raises(ManifestInvalid, match=r"tokenizer\.json"):
        Encoder(b"{}", Preprocessing("tokenizer.json", 8, 0))


def test_without_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ExtraMissing) as caught:
        Encoder(b"{}", Preprocessing("tokenizer.json", 8, 0))
    assert 'pip install "edgec-runtime[text]"' in caught.value.hint


TYPED = ("$A:0 </s>:0 </s>:1 $B:1 </s>:1", "<s>:0 $A:0 </s>:0 </s>:1 $B:1 </s>:1", "<s>:0 $A:0 </s>:0 $B:1 </s>:1")


@pytest.mark.parametrize("pair", TYPED)
def test_a_side_by_itself_is_what_a_row_has_of_it(pair: str) -> None:
    tokenizer = metaspace_unigram()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    ours = encoder(tokenizer, max_length=40)
    for question, passage in (("how many texts", "a quick fox"), ("", "a dog"), ("fox", "")):
        row = ours.pair_windows(question, passage).rows[0]
        for side, text in enumerate((question, passage)):
            content = ours.content(text)
            ids, place = ours.side(side, content.ids)
            assert ids.tolist() == row.ids[row.type_ids == side].tolist()
            assert ids[place].tolist() == content.ids.tolist()

"""Tokenizers with fewer pieces, made by hand so that it shows why a piece has to stay."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edgec.errors import PassError, UserError
from edgec.models.vocabulary import Vocabulary, with_backend


def _wordpiece(*pieces: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _unigram(*pieces: tuple[str, float], byte_fallback: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces], 0, byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def _bpe(merges: Iterable[str], *others: str, byte_fallback: bool = False) -> Tokenizer:
    pairs = [(left, right) for left, right in (merge.split() for merge in merges)]
    letters = sorted({letter for pair in pairs for letter in "".join(pair)})
    products = ["".join(pair) for pair in pairs]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *others, *letters, *dict.fromkeys(products)])}
    model = models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def _kept(vocabulary: Vocabulary, texts: Iterable[str]) -> set[int]:
    """The fixed pieces and those that the texts need."""
    kept = set(vocabulary.fixed)
    for text in texts:
        for index in vocabulary.needed(text, vocabulary.backend.encode(text)):
            kept |= vocabulary.behind(index)
    return kept


def _trimmed(tokenizer: Tokenizer, *texts: str) -> Tokenizer:
    vocabulary = Vocabulary(tokenizer)
    return vocabulary.trimmed(_kept(vocabulary, texts))[0]


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """By their ids: the tokens of an encoding spell an unknown piece, and the spaces an added token takes in."""
    return [str(tokenizer.id_to_token(index)) for index in tokenizer.encode(text, add_special_tokens=False).ids]


def test_wordpiece_keeps_what_was_used() -> None:
    tokenizer = _wordpiece("[UNK]", "un", "una", "##a", "##ble", "##able", "able", "b")
    assert _pieces(tokenizer, "unable able") == ["una", "##ble", "able"]
    trimmed = _trimmed(tokenizer, "unable able")
    assert trimmed.get_vocab() == {"[UNK]": 0, "una": 1, "##ble": 2, "able": 3}
    assert _pieces(trimmed, "unable able") == ["una", "##ble", "able"]
    assert _pieces(trimmed, "b") == ["[UNK]"]


def test_an_unknown_word_stays_unknown() -> None:
    """ "ab" fits first and leaves "x", which nothing fits. Without "ab", "a" and "##bx" would."""
    tokenizer = _wordpiece("[UNK]", "a", "ab", "##bx", "c")
    assert _pieces(tokenizer, "abx c") == ["[UNK]", "c"]
    vocabulary = Vocabulary(tokenizer)
    short = vocabulary.trimmed({0, 1, 3, 4})[0]
    assert _pieces(short, "abx") == ["a", "##bx"]
    trimmed = _trimmed(tokenizer, "abx c", "a")
    assert _pieces(trimmed, "abx c") == ["[UNK]", "c"]
    assert set(trimmed.get_vocab()) == {"[UNK]", "a", "ab", "c"}


def test_an_unknown_word_is_looked_at_as_the_normalizer_leaves_it() -> None:
    tokenizer = _wordpiece("[UNK]", "a", "ab", "##bx", "c")
    tokenizer.normalizer = normalizers.Lowercase()
    assert "ab" in _trimmed(tokenizer, "ABX").get_vocab()


def test_unigram_keeps_the_dearest_piece() -> None:
    """An unknown character costs 10 more than it, and would be cheap without: "xa" + "b" costs 40, an unknown "x" and
    "ab" only 38 where the dearest piece left costs 20."""
    tokenizer = _unigram(("▁", -2.0), ("xa", -20.0), ("b", -20.0), ("x", -35.0), ("ab", -8.0), ("c", -3.0))
    assert _pieces(tokenizer, "xab ab") == ["▁", "xa", "b", "▁", "ab"]
    vocabulary = Vocabulary(tokenizer)
    dearest = tokenizer.token_to_id("x")
    kept = _kept(vocabulary, ["xab ab"])
    assert _pieces(vocabulary.trimmed(kept - {dearest})[0], "xab ab") == ["▁", "<unk>", "ab", "▁", "ab"]
    trimmed = vocabulary.trimmed(kept)[0]
    assert set(trimmed.get_vocab()) == {"<unk>", "▁", "xa", "b", "x", "ab"}
    assert _pieces(trimmed, "xab ab") == ["▁", "xa", "b", "▁", "ab"]
    scores = dict(json.loads(trimmed.to_str())["model"]["vocab"])
    assert (scores["xa"], scores["ab"]) == (-20.0, -8.0)


def test_bytes_of_unigram() -> None:
    bytes_ = [(f"<0x{value:02X}>", -9.0) for value in range(256)]
    tokenizer = _unigram(("▁", -2.0), ("a", -3.0), ("b", -3.0), *bytes_, byte_fallback=True)
    assert _pieces(tokenizer, "aé") == ["▁", "a", "<0xC3>", "<0xA9>"]
    trimmed = _trimmed(tokenizer, "aé")
    assert _pieces(trimmed, "aé") == ["▁", "a", "<0xC3>", "<0xA9>"]
    assert _pieces(trimmed, "ab") == ["▁", "a", "<unk>"]
    assert len(Vocabulary(tokenizer).characters) == 259


def test_bpe_keeps_what_a_piece_is_merged_from() -> None:
    tokenizer = _bpe(["▁ l", "o w", "▁l ow", "e r", "▁low er", "l ow", "ow e"])
    assert _pieces(tokenizer, "lower") == ["▁lower"]
    vocabulary = Vocabulary(tokenizer)
    behind = vocabulary.behind(tokenizer.get_vocab()["▁lower"])
    # "low" and "owe" are not on the way: "▁ l" and "o w" come first, then "▁l ow" and "e r".
    names = {"▁", "l", "o", "w", "e", "r", "▁l", "ow", "▁low", "er", "▁lower"}
    assert {vocabulary.pieces[index] for index in behind} == names
    trimmed = _trimmed(tokenizer, "lower")
    assert set(trimmed.get_vocab()) == names | {"<unk>"}
    assert _pieces(trimmed, "lower") == ["▁lower"]
    assert _pieces(trimmed, "xlow") == ["▁", "<unk>", "l", "ow"]


def test_bytes_of_bpe() -> None:
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = _bpe(["▁ a", "a b"], *bytes_, byte_fallback=True)
    assert _pieces(tokenizer, "ab é") == ["▁a", "b", "▁", "<0xC3>", "<0xA9>"]
    trimmed = _trimmed(tokenizer, "ab é")
    assert set(trimmed.get_vocab()) == {"<unk>", "▁", "a", "b", "▁a", "<0xC3>", "<0xA9>"}
    assert _pieces(trimmed, "ab é") == ["▁a", "b", "▁", "<0xC3>", "<0xA9>"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_any_vocabulary_and_any_texts(kind: str, seed: int) -> None:
    """Random pieces of few letters overlap in every way: here an argument with a hole would show."""
    chance = random.Random(seed)

    def word(longest: int) -> str:
        return "".join(chance.choices("abcd", k=chance.randint(1, longest)))

    texts = [" ".join(word(9) for _ in range(6)) for _ in range(30)]
    if kind == "wordpiece":
        words = sorted({word(4) for _ in range(60)} - {"d"})
        tokenizer = _wordpiece("[UNK]", *words, *(f"##{word}" for word in words if chance.random() < 0.7))
    elif kind == "unigram":
        words = sorted({word(4) for _ in range(60)} - {"d"})
        tokenizer = _unigram(("▁", -2.5), *((word, chance.uniform(-20, -1)) for word in words))
    else:
        symbols, merges = list("▁abcd"), []
        for _ in range(40):
            left, right = chance.choice(symbols), chance.choice(symbols)
            if f"{left} {right}" not in merges and not right.startswith("▁"):
                merges.append(f"{left} {right}")
                symbols.append(left + right)
        tokenizer = _bpe(merges)
    trimmed = _trimmed(tokenizer, *texts[:10])
    assert trimmed.get_vocab_size() < tokenizer.get_vocab_size()
    assert [_pieces(trimmed, text) for text in texts[:10]] == [_pieces(tokenizer, text) for text in texts[:10]]


def _special(tokenizer: Tokenizer) -> Tokenizer:
    """With added tokens of which one stands in the vocabulary and one behind it."""
    tokenizer.add_special_tokens([AddedToken("[UNK]", special=True), AddedToken("[M]", special=True, lstrip=True)])
    tokenizer.add_tokens([AddedToken("b-b", single_word=True, normalized=False)])
    return tokenizer


@pytest.mark.parametrize(
    "processor",
    [
        processors.TemplateProcessing("c:0 $A:0 e", "c:0 $A:0 e:0 $B:1 e:1", [("c", 3), ("e", 5)]),
        processors.BertProcessing(("e", 5), ("c", 3)),
        processors.RobertaProcessing(("e", 5), ("c", 3), add_prefix_space=False),
        processors.Sequence(
            [processors.ByteLevel(), processors.TemplateProcessing("c $A e", "c $A e $B:1", [("c", 3), ("e", 5)])]
        ),
    ],
    ids=["template", "bert", "roberta", "sequence"],
)
def test_what_stands_around_a_text_follows(processor: processors.PostProcessor) -> None:
    tokenizer = _special(_wordpiece("x", "a", "[UNK]", "c", "y", "e", "b"))
    tokenizer.post_processor = processor
    tokenizer.enable_padding(pad_id=4, pad_token="y")
    trimmed = _trimmed(tokenizer, "b")
    assert set(trimmed.get_vocab()) == {"[UNK]", "c", "y", "e", "b", "[M]", "b-b"}
    for texts in (("b",), ("b   [M]", "z b-b b")):
        before, after = tokenizer.encode(*texts), trimmed.encode(*texts)
        assert after.tokens == before.tokens and after.type_ids == before.type_ids
        assert after.special_tokens_mask == before.special_tokens_mask
        assert [trimmed.id_to_token(i) for i in after.ids] == [tokenizer.id_to_token(i) for i in before.ids]
    assert trimmed.padding is not None and trimmed.padding["pad_id"] == trimmed.token_to_id("y") == 2
    old, new = (json.loads(one.to_str())["added_tokens"] for one in (tokenizer, trimmed))
    assert [dict(token, id=0) for token in new] == [dict(token, id=0) for token in old]


def test_all_of_a_vocabulary_gives_the_same_file() -> None:
    for tokenizer in (
        _special(_wordpiece("[UNK]", "a", "##b")),
        _unigram(("a", -1.0), ("b", -2.5)),
        _bpe(["a b", "ab a"]),
    ):
        vocabulary = Vocabulary(tokenizer)
        assert vocabulary.trimmed(vocabulary.pieces)[0].to_str() == tokenizer.to_str()


def test_characters() -> None:
    vocabulary = Vocabulary(_wordpiece("[UNK]", "a", "##a", "é", "##ab", "ab", "##", "#"))
    assert {vocabulary.pieces[index] for index in vocabulary.characters} == {"a", "##a", "é", "#"}


def test_kinds_that_are_not_known() -> None:
    with pytest.raises(UserError, match="the tokenizer is a WordLevel, whose vocabulary cannot be trimmed"):
        Vocabulary(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    model = models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>")
    with pytest.raises(UserError, match=r"marks pieces with '</w>' \(end_of_word_suffix\)"):
        Vocabulary(Tokenizer(model))


def test_a_vocabulary_with_gaps_is_refused() -> None:
    """An added token below the pieces of the model gets another id when the file is read."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 3, "a": 4}, unk_token="[UNK]"))
    tokenizer.add_tokens(["b"])
    assert tokenizer.token_to_id("b") == 2
    with pytest.raises(PassError, match=r"the piece '.*' has another id in the trimmed tokenizer"):
        vocabulary = Vocabulary(tokenizer)
        vocabulary.trimmed({2, 3, 4})


def test_settings_of_a_tokenizer_are_taken_over() -> None:
    backend = _wordpiece("[UNK]", "a", "p", "m", "x")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="p",
        mask_token=AddedToken("m", lstrip=True, special=True),
        extra_special_tokens=["x"],
        model_max_length=17,
        model_input_names=["input_ids", "attention_mask"],
    )
    made = with_backend(tokenizer, Vocabulary(tokenizer.backend_tokenizer).trimmed({0, 2, 3, 4})[0])
    assert made.special_tokens_map == tokenizer.special_tokens_map
    assert (made.pad_token_id, made.mask_token_id, made.unk_token_id) == (1, 2, 0)
    assert made.extra_special_tokens == ["x"] and made.all_special_ids == [0, 1, 2, 3]
    assert (made.model_max_length, made.model_input_names) == (17, ["input_ids", "attention_mask"])
    assert (made.padding_side, made.truncation_side) == ("right", "right")
    assert made.added_tokens_decoder[2].lstrip

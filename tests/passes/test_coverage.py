"""Which texts a smaller vocabulary cuts otherwise, told on tokenizers of a few pieces."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgec.passes.coverage import CHUNK, chunks, coverage


def _words(*pieces: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(("[UNK]", *pieces))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_words_that_are_cut_otherwise() -> None:
    before = _words("tree", "tre", "##e", "##es", "house", "h", "##s")
    after = _words("tre", "##e", "h", "##s")
    kept = {before.get_vocab()[piece] for piece in after.get_vocab()}
    found = coverage(["h tree  tree", "house h", "h trees"], before, after, kept, "[UNK]")
    assert found.to_dict("here") == {
        "source": "here",
        "texts": 3,
        "changed_texts": 3,
        "pieces": 8,  # h tree tree, house h, h tree ##s
        "kept_share": 0.5,
        "unknown_before": 0,
        "unknown_after": 1,
    }
    assert found.listed(2) == [
        {"text": "tree", "count": 3, "before": ["tree"], "after": ["tre", "##e"]},
        {"text": "house", "count": 1, "before": ["house"], "after": ["[UNK]"]},
    ]
    assert found.listed(0) == []


def test_a_character_that_becomes_unknown_is_a_change() -> None:
    """The tokens of both encodings spell it alike."""
    before = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0, False))
    after = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))
    found = coverage(["ab"], before, after, {0, 1}, "<unk>")
    assert (found.changed_texts, found.unknown_before, found.unknown_after) == (1, 0, 1)
    assert list(found.changes) == [("b", ("b",), ("<unk>",))]


def test_bytes_of_one_character_are_one_stretch() -> None:
    letters = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    before = Tokenizer(models.BPE({**letters, "Ã©": 256}, [("Ã", "©")]))
    after = Tokenizer(models.BPE(letters, []))
    for tokenizer in (before, after):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    found = coverage(["aéb", "ab"], before, after, set(range(256)), None)
    assert list(found.changes) == [("é", ("Ã©",), ("Ã", "©"))]
    assert (found.pieces, found.kept, found.changed_texts) == (5, 4, 1)


def test_what_is_dropped_is_a_change() -> None:
    """A byte without a piece, in a tokenizer without an unknown one, leaves nothing behind."""
    before = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
    after = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    found = coverage(["abc", "c"], before, after, {0, 1}, None)
    assert set(found.changes) == {("c", ("c",), ())}


def test_no_texts() -> None:
    tokenizer = _words("a")
    assert coverage([], tokenizer, tokenizer, {0, 1}, "[UNK]").to_dict("here")["kept_share"] == 1.0
    assert [len(chunk) for chunk in chunks(["a"] * (2 * CHUNK + 1))] == [CHUNK, CHUNK, 1]

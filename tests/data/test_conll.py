"""Sentences with a tag a word, from CoNLL columns and from CoNLL-U."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import write
from seqeval.metrics.sequence_labeling import get_entities

from edgec.data.conll import Columns, Universal, repair
from edgec.data.examples import Tagged
from edgec.errors import DataError


def pairs(sentence: Tagged) -> list[tuple[str, str]]:
    return list(zip(sentence.words, sentence.tags, strict=True))


@pytest.mark.parametrize("name", ["d.conll", "d.conll.gz"])
def test_two_columns(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, "\ufeffAda B-PER\nI-PER O\n\n\n \t\nBern B-LOC\r\n. O")
    found = list(Columns(path))
    assert [pairs(one) for one in found] == [[("Ada", "B-PER"), ("I-PER", "O")], [("Bern", "B-LOC"), (".", "O")]]
    assert [one.line for one in found] == [1, 6] and found[0].path == str(path)


def test_columns_go_by_number(tmp_path: Path) -> None:
    path = write(tmp_path, "d.conll", "1\tEcce homo\tB-OTH\tO\n2\tJesu\tB-PER\tB-LOC\n")
    assert pairs(next(iter(Columns(path, word="1", tag="2")))) == [("Ecce homo", "B-OTH"), ("Jesu", "B-PER")]
    assert next(iter(Columns(path, word="1"))).tags == ("O", "B-LOC")
    assert next(iter(Columns(path, word="1", tag="-2"))).tags == ("B-OTH", "B-PER")


def test_only_spaces_and_tabs_part_columns_and_only_line_feeds_lines(tmp_path: Path) -> None:
    words = ["a\x94b", "\x85", "c\u2028d", "e\u00a0f", "g\x0bh"]
    path = write(tmp_path, "d.conll", "".join(f"{word} O\n" for word in words))
    assert next(iter(Columns(path))).words == tuple(words)
    tabs = write(tmp_path, "t.conll", "".join(f"{word}\tO\n" for word in words))
    assert next(iter(Columns(tabs))).words == tuple(words)


def test_a_word_may_be_a_number_sign(tmp_path: Path) -> None:
    plain = write(tmp_path, "plain.conll", "# O\n1 O\n\n# B-X\n")
    assert [pairs(one) for one in Columns(plain)] == [[("#", "O"), ("1", "O")], [("#", "B-X")]]
    multiconer = "# id 28c6\tdomain=en\n# _ _ O\nfdr _ _ B-X\n\n# id 28c7\tdomain=en\na _ _ O\n# _ _ O\n"
    found = list(Columns(write(tmp_path, "ids.conll", multiconer)))
    assert [one.words for one in found] == [("#", "fdr"), ("a", "#")]
    assert [one.line for one in found] == [2, 6]
    spaces = write(tmp_path, "spaces.conll", "# id 28c6 domain=en\na _ _ O\n\n# text = b\nb _ _ O\n")
    assert [one.words for one in Columns(spaces)] == [("a",), ("b",)]
    with pytest.raises(DataError, match=r"late\.conll:3: 3 fields"):  # the file does not begin with a comment
        list(Columns(write(tmp_path, "late.conll", "a O\n\n# id 7\nb O\n")))


def test_document_starts_are_no_sentences(tmp_path: Path) -> None:
    path = write(tmp_path, "d.conll", "-DOCSTART- -X- -X- O\n\nEU NNP B-NP I-ORG\nrejects VBZ B-VP O\n")
    (sentence,) = Columns(path)
    assert pairs(sentence) == [("EU", "B-ORG"), ("rejects", "O")]


TAGS = ["O", "B-X", "I-X", "I-Y", "B-Y", "O", "I-X", "I-X", "I-Y", "I-Y", "B-Y", "I-X"]


def test_repaired_tags_spell_the_same_spans(tmp_path: Path) -> None:
    mended = repair(TAGS)
    assert mended == ["O", "B-X", "I-X", "B-Y", "B-Y", "O", "B-X", "I-X", "B-Y", "I-Y", "B-Y", "B-X"]
    assert get_entities(mended) == get_entities(TAGS)
    assert repair(mended) == mended
    reader = Columns(write(tmp_path, "d.conll", "".join(f"w {tag}\n" for tag in TAGS)))
    (sentence,) = reader
    assert (sentence.tags, reader.repaired) == (tuple(mended), 4)


@pytest.mark.parametrize(
    ("bad", "line", "cause"),
    [
        ("b\n", 5, "1 fields, where there are 2 columns"),
        ("b x O\n", 5, "3 fields"),
        ("\tO\n", 5, "the word is empty"),
        ("b\t\n", 5, "the tag is empty"),
    ],
)
def test_a_malformed_sentence_is_named_or_counted_as_a_whole(tmp_path: Path, bad: str, line: int, cause: str) -> None:
    path = write(tmp_path, "d.conll", f"a O\n\nwhole O\nof O\n{bad}it O\n\nc O\n")
    with pytest.raises(DataError) as caught:
        list(Columns(path))
    assert caught.value.message.startswith(f"{path}:{line}: ") and cause in caught.value.message
    reader = Columns(path, on_error="skip")
    assert [one.words for one in reader] == [("a",), ("c",)] and reader.skipped == 1


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, "d.conll", "a O\n")
    for tag, told in ("2", "there is no column 2"), ("-3", "no column -3"), ("ner", "no column 'ner'.*by number"):
        with pytest.raises(DataError, match=told):
            list(Columns(path, tag=tag))
    with pytest.raises(DataError, match="the same column, 0"):
        list(Columns(write(tmp_path, "one.conll", "a\nb\n")))
    with pytest.raises(DataError, match="no rows"):
        list(Columns(write(tmp_path, "empty.conll", "\n\n")))
    with pytest.raises(DataError, match=":1: the text is not valid UTF-8"):
        list(Columns(write(tmp_path, "bytes.conll", b"\xff O\n")))


def line(number: str, word: str, upos: str, xpos: str = "_") -> str:
    return "\t".join([number, word, "_", upos, xpos, "_", "_", "_", "_", "_"]) + "\n"


UD = (
    "# newdoc id = 1\n\n# sent_id = 1\n# genre = news\n"
    + line("1-2", "zum", "_")
    + line("1", "zu", "ADP", "APPR")
    + line("2", "dem", "DET", "ART")
    + line("2.1", "ghost", "VERB")
    + line("3", "# New York", "PROPN", "NE")
    + "\n# sent_id = 2\n# genre = wiki\n"
    + line("1", "Ja", "INTJ", "ITJ")
)


def test_conllu(tmp_path: Path) -> None:
    path = write(tmp_path, "d.conllu.gz", UD)
    found = list(Universal(path, group_by=["genre"]))
    assert [pairs(one) for one in found] == [
        [("zu", "ADP"), ("dem", "DET"), ("# New York", "PROPN")],
        [("Ja", "INTJ")],
    ]
    assert [one.groups for one in found] == [{"genre": "news"}, {"genre": "wiki"}]
    assert [one.line for one in found] == [3, 11]
    assert next(iter(Universal(path, tag="xpos"))).tags == ("APPR", "ART", "NE")
    with pytest.raises(DataError, match="no tag 'deprel'"):
        Universal(path, tag="deprel")


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        ("1\tzu\tADP\n", "3 fields, where CoNLL-U has 10"),
        (line("x", "zu", "ADP"), "'x' is no number of a word"),
        (line("1", " ", "ADP"), "the word is empty"),
        (line("1", "zu", "_"), "the word has no upos"),
    ],
)
def test_malformed_conllu(tmp_path: Path, bad: str, cause: str) -> None:
    path = write(tmp_path, "d.conllu", f"{UD}\n{bad}\n{UD}")
    with pytest.raises(DataError) as caught:
        list(Universal(path))
    assert caught.value.message.startswith(f"{path}:15: ") and cause in caught.value.message
    reader = Universal(path, on_error="skip")
    assert (len(list(reader)), reader.skipped) == (4, 1)


def test_a_comment_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":3: the sentence has no comment '# author"):
        list(Universal(write(tmp_path, "d.conllu", UD), group_by=["author"]))

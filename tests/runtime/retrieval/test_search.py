"""Dense search and BM25, compared with loops that compute what they are defined as."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgec_runtime.retrieval import dense
from edgec_runtime.retrieval.bm25 import BM25, has_words
from edgec_runtime.retrieval.dense import Approximate, Exact, open_dense
from edgec_runtime.retrieval.search import Query, fingerprint, open_search
from edgec_runtime.store import Header, InputComponent, Passage, Store, StoreWriter, compact
from edgec_runtime.store import delete as delete_passages
from edgec_runtime.store.errors import StoreMismatch

DIMENSION = 8
HEADER = Header(InputComponent("build", 2), embedding_dim=DIMENSION)
TEXTS = [
    "Ada works in Bern, in an old house in Bern",
    "The train to Bern was late",
    "Cara lives in Denmark",
    "Music at night, music in the morning and coffee",
    "Ein Café in Zürich",
    "the the the",
]


def passage(number: int, text: str = "a text", title: str = "") -> Passage:
    random = np.random.default_rng(number)
    embedding = random.normal(size=DIMENSION).astype(np.float32)
    return Passage(f"p{number}", text, np.array([[0, 1]], np.int32), np.ones((1, 2), np.float32), embedding, title)


def write(folder: Path, passages: list[Passage], header: Header = HEADER) -> Path:
    with StoreWriter.resume(folder, header) as writer:
        for one in passages:
            writer.add(one)
    return folder


def questions(count: int) -> list[Query]:
    return [Query("", row) for row in np.random.default_rng(9).normal(size=(count, DIMENSION)).astype(np.float32)]


def nearest(query: Query, rows: list[int], k: int) -> list[tuple[int, float]]:
    """By cosine similarity, one passage at a time."""
    scored = []
    for row in rows:
        vector = passage(row).embedding
        assert vector is not None
        cosine = float(vector @ query.embedding / (np.linalg.norm(vector) * np.linalg.norm(query.embedding)))
        scored.append((row, cosine))
    return sorted(scored, key=lambda pair: -pair[1])[:k]


def test_vowel_signs_belong_to_their_words(tmp_path: Path) -> None:
    texts = [
        "\u092e\u0947\u0930\u093e \u0918\u0930 \u092f\u0939\u093e\u0901 \u0939\u0948",
        "\u0939\u093f\u092e\u093e\u0932\u092f \u090a\u0901\u091a\u093e \u0939\u0948",
        "Cafe\u0301 in Bern",
    ]
    folder = write(tmp_path / "s", [passage(number, text) for number, text in enumerate(texts)])
    with Store.open(folder) as store:
        search = BM25(store)

        def found(text: str) -> list[int]:
            return [match.row for match in search.find(Query(text, np.zeros(DIMENSION, np.float32)), 9)]

        assert found("\u0939\u093f\u092e\u093e\u0932\u092f \u0915\u0939\u093e\u0901") == [1]
        assert found("\u0915\u0939\u093e\u0901") == []
        # An accent makes no other word, however it is written.
        assert found("cafe") == found("caf\u00e9") == found("cafe\u0301") == [2]


def test_emoji_are_in_no_words_way(tmp_path: Path) -> None:
    texts = ["\u2714\ufe0fBluetooth headset", "\u2600\ufe0f sun", "e\u0301"]
    folder = write(tmp_path / "s", [passage(number, text) for number, text in enumerate(texts)])
    with Store.open(folder) as store:
        search = BM25(store)

        def found(text: str) -> list[int]:
            return [match.row for match in search.find(Query(text, np.zeros(DIMENSION, np.float32)), 9)]

        assert found("bluetooth") == found("I \u2764\ufe0f\u2714\ufe0fBluetooth") == [0]
        assert found("\u2764\ufe0f Paris") == found("\u0301") == []


@pytest.mark.parametrize(
    ("text", "parted"),
    [
        ("who works ?", True),
        ("\u7389\u5a49\u5728\u54ea\u91cc\u5de5\u4f5c\uff1f", False),
        ("\u304b\u306a", False),
        ("\u0e44\u0e17\u0e22", False),
        ("\ud55c\uad6d \uc0ac\ub78c", True),
        ("\u0939\u093f", True),
    ],
)
def test_scripts_that_part_words(text: str, parted: bool) -> None:
    assert has_words(text) == parted


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_exact_search(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BLOCK", 7)
    header = replace(HEADER, embedding=kind)  # type: ignore[arg-type]
    folder = write(tmp_path / "s", [passage(i) for i in range(50)], header)
    delete_passages(folder, ["p3", "p20"])
    with Store.open(folder) as store:
        search = Exact(store)
        for query in questions(5):
            expected = nearest(query, [i for i in range(50) if i not in (3, 20)], 60)
            found = search.find(query, 60)
            assert [match.row for match in found[:10]] == [row for row, _ in expected[:10]]
            np.testing.assert_allclose([m.score for m in found], [score for _, score in expected], atol=2e-3)
            assert len(search.find(query, 4)) == 4


def test_usearch_finds_nearly_all_and_grows_with_the_store(tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    folder = write(tmp_path / "s", [passage(i) for i in range(300)])

    def recall() -> float:
        with Store.open(folder) as store:
            search, exact = Approximate(store), Exact(store)
            hits = [
                len({m.row for m in search.find(query, 10)} & {m.row for m in exact.find(query, 10)})
                for query in questions(20)
            ]
            return sum(hits) / 200

    assert recall() >= 0.95
    first = (folder / dense.INDEX).read_bytes()
    assert recall() >= 0.95 and (folder / dense.INDEX).read_bytes() == first  # used as it is
    write(folder, [passage(i) for i in range(300, 400)])
    assert recall() >= 0.95 and len((folder / dense.INDEX).read_bytes()) > len(first)
    delete_passages(folder, [f"p{i}" for i in range(0, 400, 2)])
    assert recall() >= 0.95
    with Store.open(folder) as store:
        assert all(match.row % 2 for query in questions(5) for match in Approximate(store).find(query, 150))
    compact(folder)
    assert recall() >= 0.95


@pytest.mark.parametrize("name", ["dense", "bm25"])
@pytest.mark.parametrize("fault", ["flip", "cut", "gone", "facts", "other store"])
def test_an_index_that_does_not_fit_is_made_again(
    name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "dense":
        pytest.importorskip("usearch")
    monkeypatch.setattr(dense, "EXACT_ROWS", 0)
    monkeypatch.setattr(open_dense, "__defaults__", (0,))
    passages = [passage(i, TEXTS[i % len(TEXTS)]) for i in range(60)]
    folder = write(tmp_path / "s", passages)
    query = Query("Bern", questions(1)[0].embedding)
    with Store.open(folder) as store:
        expected = open_search(store, name).find(query, 5)  # type: ignore[arg-type]
    file = folder / {"dense": "dense.usearch", "bm25": "bm25.sqlite"}[name]
    whole = file.read_bytes()
    if fault == "flip":
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif fault == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif fault == "gone":
        file.unlink()
    elif fault == "facts":
        file.with_name(f"{file.name}.json").write_text('{"rows": "many"')
    else:
        other = write(tmp_path / "other", [passage(i + 100, TEXTS[i % 2]) for i in range(60)])
        with Store.open(other) as store:
            open_search(store, name).find(query, 5)  # type: ignore[arg-type]
        for path in (other / file.name, other / f"{file.name}.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    with Store.open(folder) as store:
        assert open_search(store, name).find(query, 5) == expected  # type: ignore[arg-type]
    assert file.read_bytes() == whole


def test_small_stores_and_those_without_usearch_are_searched_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "s", [passage(i) for i in range(10)])
    with Store.open(folder) as store:
        assert isinstance(open_dense(store), Exact)
        monkeypatch.setitem(sys.modules, "usearch", None)
        assert isinstance(open_dense(store, exact_rows=0), Exact)
    bare = write(tmp_path / "bare", [replace(passage(0), embedding=None)], replace(HEADER, embedding_dim=0))
    with Store.open(bare) as store, pytest.raises(StoreMismatch, match="keeps no embeddings"):
        open_search(store, "dense")


def bm25(question: str, documents: dict[int, str]) -> list[tuple[int, float]]:
    """Robertson and Zaragoza's formula with k1 1.2 and b 0.75; rare and frequent words as FTS5 weighs them."""
    plain = str.maketrans("éü", "eu")
    words = {row: re.findall(r"\w+", text.lower().translate(plain)) for row, text in documents.items()}
    mean = sum(map(len, words.values())) / len(words)
    scores: Counter[int] = Counter()
    for word in set(re.findall(r"\w+", question.lower())):
        holders = [row for row, found in words.items() if word in found]
        if not holders:
            continue
        idf = max(math.log((len(words) - len(holders) + 0.5) / (len(holders) + 0.5)), 1e-6)
        for row in holders:
            count = words[row].count(word)
            scores[row] += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words[row]) / mean))
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize("question", ["Who works in Bern?", "music coffee", "cafe ZURICH", "the", "OR NOT NEAR(Bern*)"])
def test_bm25(question: str, tmp_path: Path) -> None:
    titles = ["", "Trains", "", "Bern", "", ""]
    folder = write(tmp_path / "s", [passage(i, text, titles[i]) for i, text in enumerate(TEXTS)])
    documents = {i: f"{titles[i]} {text}".strip() for i, text in enumerate(TEXTS)}
    with Store.open(folder) as store:
        found = BM25(store).find(Query(question, questions(1)[0].embedding), 10)
    expected = bm25(question, documents)
    assert [match.row for match in found] == [row for row, _ in expected]
    np.testing.assert_allclose([match.score for match in found], [score for _, score in expected], rtol=1e-6)


def test_bm25_grows_with_the_store_and_passes_over_what_was_deleted(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [passage(i, TEXTS[i]) for i in range(3)])
    query = Query("Bern", questions(1)[0].embedding)

    def rows(k: int = 10) -> list[int]:
        with Store.open(folder) as store:
            return [match.row for match in open_search(store, "bm25").find(query, k)]

    assert rows() == [0, 1]
    write(folder, [passage(3, "Bern Bern"), passage(4, "nothing")])
    assert rows() == [3, 0, 1]
    delete_passages(folder, ["p3"])
    assert rows() == [0, 1] and rows(1) == [0]
    compact(folder)
    assert rows() == [0, 1]
    with Store.open(folder) as store:
        assert open_search(store, "bm25").find(Query("?!", query.embedding), 3) == []
        assert open_search(store, "bm25").find(Query("zebra", query.embedding), 3) == []


def test_a_folder_that_cannot_be_written_is_searched_all_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [passage(i, TEXTS[i]) for i in range(3)])
    for name in ("bm25.sqlite", "bm25.sqlite.json"):
        (folder / name).mkdir()  # no file can take its place
    with Store.open(folder) as store:
        assert [match.row for match in BM25(store).find(Query("Bern", questions(1)[0].embedding), 3)] == [0, 1]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_a_fingerprint_names_the_content(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [passage(i) for i in range(3)])
    b = write(tmp_path / "b", [passage(0), passage(1), passage(2, "b text")])
    with Store.open(a) as one, Store.open(b) as other:
        assert fingerprint(one, 2) == fingerprint(other, 2)
        assert fingerprint(one) != fingerprint(other) != fingerprint(other, 2)


def test_unknown_searches(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [passage(0)])
    with Store.open(folder) as store, pytest.raises(ValueError, match="unknown search 'sparse'"):
        open_search(store, "sparse")  # type: ignore[arg-type]

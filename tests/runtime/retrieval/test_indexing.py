"""What is in a store after indexing, and what interruptions and faulty documents do to it."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from decoupled_bundle import write_decoupled
from edgec_runtime import Document, index, load
from edgec_runtime.decoupled import Components
from edgec_runtime.errors import BundleError, TextInvalid
from edgec_runtime.retrieval.indexing import delete
from edgec_runtime.store import Store, StoreWriter
from edgec_runtime.store.errors import (
    DuplicateId,
    PassageInvalid,
    PassageUnknown,
    StoreDamaged,
    StoreEmpty,
    StoreExists,
    StoreFull,
    StoreInUse,
    StoreMismatch,
    StoreNotFound,
)
from retrieval_documents import DOCUMENTS, LONG

DATA = ("header.bin", "state.bin", "index-0.bin", "ids-0.bin", "records-0.bin", "embeddings-0.bin", "deleted-0.bin")


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in DATA}


def test_passages_are_windows_over_the_document(bundle: Path, kept: Path) -> None:
    with load(bundle) as model, Store.open(kept) as store:
        words = model.encoder.content(LONG)
        rows = [store.row(name) for name in store.ids if name.startswith("long#")]
        covered: set[int] = set()
        for number, row in enumerate(rows):
            passage = store.passage(row)
            first = number * (21 - 5)  # 32 tokens less 3 special ones and 8 for the question; a quarter is shared
            inside = words.encoding.offsets[first : first + 21]
            assert passage.id == f"long#{number}" and passage.document == "long" and passage.title == "A walk"
            assert (passage.start, passage.text) == (inside[0][0], LONG[inside[0][0] : inside[-1][1]])
            assert [LONG[passage.start + a : passage.start + b] for a, b in passage.offsets[:-1].tolist()] == [
                LONG[a:b] for a, b in inside
            ]
            assert passage.offsets[-1].tolist() == [len(passage.text)] * 2  # [SEP]
            covered |= set(range(first, first + len(inside)))
        assert covered == set(range(len(words))) and len(rows) == 4
        assert store.header.overlap == 5


def test_states_are_those_of_the_passage_row(bundle: Path, kept: Path) -> None:
    with load(bundle) as model, Store.open(kept) as store:
        engine = model.runner.engine
        assert isinstance(engine, Components)
        row = model.encoder.pair_windows("", DOCUMENTS[1].text).rows[0]
        outputs = engine.encode([row.ids[row.type_ids == 1]], 1)
        passage = store.passage(store.row("cara#0"))
        np.testing.assert_allclose(passage.states, outputs["states"][0], atol=2e-3)
        assert passage.embedding is not None
        np.testing.assert_array_equal(passage.embedding, outputs["text_embedding"][0])


def test_figures_and_progress(bundle: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    found = index(bundle, DOCUMENTS, tmp_path / "a", progress=lambda done, total: told.append((done, total)))
    with Store.open(tmp_path / "a") as store:
        assert (found.documents, found.passages, found.tokens, found.skipped) == (4, len(store), store.tokens, 0)
        assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert told[0] == (0, 4) and told[-1] == (4, 4)
    told.clear()
    index(bundle, iter(DOCUMENTS), tmp_path / "b", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (4, None) and content(tmp_path / "a") == content(tmp_path / "b")


def test_threads_do_not_show(bundle: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        index(bundle, DOCUMENTS * 1, tmp_path / str(threads), threads=threads)
    assert content(tmp_path / "1") == content(tmp_path / "3")


def test_a_killed_run_goes_on_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    many = [replace(one, id=f"{one.id}-{i}") for i in range(30) for one in DOCUMENTS]
    index(bundle, many, tmp_path / "whole")
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from edgec_runtime import Document, index
from edgec_runtime.retrieval import indexing
indexing._COMMIT_SECONDS = 0.0
def progress(done, total):
    if done > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
documents = [Document(*one) for one in {[(one.id, one.text, one.title) for one in many]!r}]
index({str(bundle)!r}, documents, sys.argv[1], mode="resume", threads=1, progress=progress)
"""
    folder = tmp_path / "killed"
    for after in (20, 70):
        done = subprocess.run([sys.executable, "-c", script, str(folder), str(after)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        with Store.open(folder, empty_ok=True) as store:
            store.verify()
            assert 0 < len(store) < 200
    found = index(bundle, many, folder, mode="resume")
    assert found.skipped > 0 and found.passages > 0
    assert content(folder) == content(tmp_path / "whole")
    assert index(bundle, many, folder, mode="resume").passages == 0


def test_append_resume_and_delete(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    index(bundle, DOCUMENTS[:2], folder, states="float16", overlap=3)
    index(bundle, DOCUMENTS[2:], folder, mode="append")
    index(bundle, DOCUMENTS, tmp_path / "once", states="float16", overlap=3)
    assert content(folder) == content(tmp_path / "once")
    with pytest.raises(DuplicateId, match="document 'ada' is in the store already"):
        index(bundle, [Document("new", "the train"), DOCUMENTS[0]], folder, mode="append")
    assert content(folder) == content(tmp_path / "once")

    gone = delete(folder, ["long", "ada#0"])
    assert gone == [*(f"long#{i}" for i in range(4)), "ada#0"]
    with pytest.raises(PassageUnknown, match="neither a document nor a passage 'ada'"):
        delete(folder, ["cara", "ada"])
    with Store.open(folder) as store:
        assert store.ids == ["cara#0", "none#0"]
    index(bundle, [DOCUMENTS[0]], folder, mode="append")
    with pytest.raises(StoreMismatch, match="has another text of document 'cara'"):
        index(bundle, [Document("cara", "the river")], folder, mode="resume")
    with pytest.raises(StoreMismatch, match="or other passages of it"):
        index(bundle, DOCUMENTS[1:2], folder, mode="resume", passage_tokens=5)
    with pytest.raises(StoreMismatch, match="states float16 where int8"):
        index(bundle, DOCUMENTS[1:2], folder, mode="resume", states="int8")


def test_ids_that_look_like_those_of_passages(bundle: Path, tmp_path: Path) -> None:
    index(
        bundle,
        [Document("a", "the train"), Document("a#0", "the river"), Document("a#0#1", "the house")],
        tmp_path / "s",
    )
    assert delete(tmp_path / "s", ["a"]) == ["a#0"]
    assert delete(tmp_path / "s", ["a#0"]) == ["a#0#0"]


@pytest.mark.parametrize(
    ("documents", "kind", "message"),
    [
        ([], StoreEmpty, "there is no document to index"),
        ([Document("a", "Ada"), Document("b", " \n")], PassageInvalid, "document 'b': its text is empty"),
        ([Document("a", "\u200d\x07")], PassageInvalid, "document 'a': its text has no token"),
        ([Document("a", "Ada"), Document("", "Bern")], PassageInvalid, "document 1 has no id"),
        ([Document("a", "Ada"), Document("a", "Bern")], DuplicateId, "two documents have the id 'a'"),
        ([Document("a", "Ada"), Document("b", "Be\ud800rn")], PassageInvalid, "document 'b': the text has a lone"),
    ],
)
@pytest.mark.parametrize("once", [False, True])
def test_faulty_documents(
    documents: list[Document], kind: type[BundleError], message: str, once: bool, bundle: Path, tmp_path: Path
) -> None:
    given: list[Document] | Iterator[Document] = iter(documents) if once else documents
    with pytest.raises(kind, match=message) as caught:
        index(bundle, given, tmp_path / "store")
    assert caught.value.exit_code == 2 and caught.value.hint
    if (tmp_path / "store").exists():  # what came before the fault could be kept
        with Store.open(tmp_path / "store", empty_ok=True) as store:
            store.verify()
    elif not documents:
        assert not list(tmp_path.iterdir())


def test_what_is_too_long_is_split_or_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(PassageInvalid, match="document 'long': its text has 69 tokens; a passage has at most 21"):
        index(bundle, DOCUMENTS, tmp_path / "store", split=False)
    assert not (tmp_path / "store").exists()
    assert index(bundle, DOCUMENTS[:2], tmp_path / "store", split=False).passages == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passage_tokens": 22}, "a passage of 22 tokens does not fit: 21 of 32 are left beside a question of 8"),
        ({"question_tokens": 29}, "29 tokens for a question leave 0 of 32"),
        ({"question_tokens": 0}, "0 tokens for a question"),
        ({"overlap": 21}, "passages of 21 tokens cannot share 21 with the next"),
    ],
)
def test_options_that_leave_no_room(options: dict[str, int], message: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TextInvalid, match=message):
        index(bundle, DOCUMENTS, tmp_path / "store", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


def test_stores_that_are_in_the_way(bundle: Path, store: Path, tmp_path: Path) -> None:
    before = content(store)
    with pytest.raises(StoreExists, match="holds a store"):
        index(bundle, DOCUMENTS, store)
    with pytest.raises(StoreNotFound):
        index(bundle, DOCUMENTS, tmp_path / "nothing", mode="append")
    other = write_decoupled(tmp_path / "other", seed=4)
    for mode in ("append", "resume"):
        with pytest.raises(StoreMismatch, match="build build-3 where build-4 is expected"):
            index(other, [Document("new", "Ada")], store, mode=mode)  # type: ignore[arg-type]
    with StoreWriter.open(store), pytest.raises(StoreInUse):
        index(bundle, [Document("new", "Ada")], store, mode="append")
    assert content(store) == before


def test_a_damaged_store_is_not_added_to(bundle: Path, store: Path) -> None:
    ids = store / "ids-0.bin"
    ids.write_bytes(ids.read_bytes()[:-1])
    with pytest.raises(StoreDamaged, match=r"ids-0\.bin is cut short"):
        index(bundle, [Document("new", "Ada")], store, mode="append")
    ids.write_bytes(ids.read_bytes() + b"!")
    with pytest.raises(StoreDamaged, match=r"ids-0\.bin: passage of row"):
        index(bundle, [Document("new", "Ada")], store, mode="append")


def test_a_full_disk_damages_nothing(bundle: Path, store: Path) -> None:
    before = content(store)
    many = [Document(f"m{i}", LONG) for i in range(20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(StoreFull):
            index(bundle, many, store, mode="append")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    with Store.open(store) as whole:
        whole.verify()
        assert len(whole) == 7 and before["state.bin"] == (store / "state.bin").read_bytes()
    assert index(bundle, many, store, mode="append").passages == 80

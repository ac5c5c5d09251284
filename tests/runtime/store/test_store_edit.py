"""Deleting, compacting and merging."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from edgec_runtime.store import Store, StoreWriter, compact, delete, merge
from edgec_runtime.store.errors import (
    DuplicateId,
    PassageUnknown,
    StoreDamaged,
    StoreEmpty,
    StoreExists,
    StoreMismatch,
)
from store_passages import BARE, FLOAT16, INT8, files, passage, passages, write


def test_delete(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(6))
    records = (folder / "records-0.bin").read_bytes()
    delete(folder, ["p4é", "p1é", "p4é"])
    with Store.open(folder) as store:
        assert store.ids == ["p0é", "p2é", "p3é", "p5é"] and store.live.tolist() == [0, 2, 3, 5]
        assert (len(store), store.rows) == (4, 6)
        assert store.row("p5é") == 5 and store.passage(5).text == passage(5).text
        assert store.embeddings().shape == (6, 4)
        store.verify()
    assert (folder / "records-0.bin").read_bytes() == records


def test_delete_is_all_or_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(3))
    before = files(folder)
    with pytest.raises(PassageUnknown, match=r"no passage 'x' \(1 of 2 are not there\); nothing was deleted"):
        delete(folder, ["p1é", "x"])
    delete(folder, [])
    assert files(folder) == before


def test_a_deleted_id_may_come_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(3))
    new = dataclasses.replace(passage(1), title="second edition")
    with StoreWriter.open(folder) as writer:
        writer.delete(["p1é"])
        writer.add(new)
        writer.add(passage(3))
        writer.delete(["p3é"])  # before it was committed
    with Store.open(folder) as store:
        assert store.ids == ["p0é", "p2é", "p1é"]
        assert store.passage(store.row("p1é")).title == "second edition"


@pytest.mark.parametrize("header", [INT8, FLOAT16, BARE], ids=["int8", "float16", "no embeddings"])
def test_compact(tmp_path: Path, header: object) -> None:
    folder = write(tmp_path / "store", passages(6, header), header)
    delete(folder, ["p0é", "p3é"])
    before = Store.open(folder)
    compact(folder)
    assert before.ids == ["p1é", "p2é", "p4é", "p5é"] and before.passage(4).text == passage(4, header).text
    kept = [one for one in passages(6, header) if one.id not in ("p0é", "p3é")]
    written = files(write(tmp_path / "expected", kept, header))
    expected = {name.replace("-0", "-1"): content for name, content in written.items() if name != "state.bin"}
    found = files(folder)
    assert found.pop("state.bin") != written["state.bin"]  # of its generation
    assert found == expected
    with Store.open(folder) as store:
        assert store.ids == [one.id for one in kept] and store.rows == 4 and store.generation == 1
        store.verify()


def test_compact_of_all_and_of_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(2))
    before = files(folder)
    compact(folder)
    assert files(folder) == before
    delete(folder, ["p0é", "p1é"])
    compact(folder)
    assert (folder / "records-1.bin").stat().st_size == 0
    write(folder, passages(2))
    assert Store.open(folder).ids == ["p0é", "p1é"]


def test_a_writer_goes_on_after_it_compacted(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(3))
    with StoreWriter.open(folder) as writer:
        writer.delete(["p0é"])
        writer.add(passage(3))
        writer.compact()
        writer.add(passage(4))
        writer.delete(["p2é"])
    with Store.open(folder) as store:
        assert store.ids == ["p1é", "p3é", "p4é"] and store.live.tolist() == [0, 2, 3]


def test_opening_while_another_compacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files go away between the reading of state.bin and of themselves."""
    from edgec_runtime.store import reader

    folder = write(tmp_path / "store", passages(3))
    delete(folder, ["p0é"])
    read_state = reader.read_state

    def then_compact(path: Path, crc: int) -> object:
        state = read_state(path, crc)
        monkeypatch.undo()
        compact(folder)
        return state

    monkeypatch.setattr(reader, "read_state", then_compact)
    with Store.open(folder) as store:
        assert store.ids == ["p1é", "p2é"] and store.generation == 1
        store.verify()


@pytest.mark.parametrize("header", [INT8, FLOAT16, BARE], ids=["int8", "float16", "no embeddings"])
def test_merge_is_what_one_writer_would_have_written(tmp_path: Path, header: object) -> None:
    counts = [3, 0, 1, 4]
    shards, first = [], 0
    for number, count in enumerate(counts):
        shards.append(write(tmp_path / f"shard{number}", passages(count, header, first), header))
        first += count
    merge(shards, tmp_path / "merged")
    assert files(tmp_path / "merged") == files(write(tmp_path / "whole", passages(8, header), header))
    merge(shards, tmp_path / "merged")  # as after an interruption right before its end
    assert files(tmp_path / "merged") == files(tmp_path / "whole")


def test_merge_leaves_deleted_passages_out(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", passages(3)), write(tmp_path / "b", passages(3, first=3))
    delete(a, ["p0é"])
    delete(b, ["p5é"])
    compact(b)
    merge([a, b], tmp_path / "merged")
    assert files(tmp_path / "merged") == files(write(tmp_path / "whole", passages(4, first=1)))


def test_merges_that_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", passages(3)), write(tmp_path / "b", passages(3, first=2))
    float16 = write(tmp_path / "float16", passages(1, FLOAT16), FLOAT16)
    empty = write(tmp_path / "empty", [])
    damaged = write(tmp_path / "damaged", passages(1, first=9))
    (damaged / "records-0.bin").write_bytes(bytes((damaged / "records-0.bin").stat().st_size))
    out = tmp_path / "out"
    for paths, error, says in (
        ([a, b], DuplicateId, f"'p2é' is in {a} and in {b}"),
        ([a, a], DuplicateId, "'p0é'"),
        ([a, float16], StoreMismatch, f"{float16} .*states float16 where int8"),
        ([empty], StoreEmpty, "no passage in"),
        ([], StoreEmpty, "no store to merge"),
    ):
        with pytest.raises(error, match=says):
            merge(paths, out)
        assert not out.exists()
    with pytest.raises(StoreDamaged, match="damaged"):
        merge([a, damaged], out)
    other = write(tmp_path / "other", passages(1, first=7))
    before = files(other)
    with pytest.raises(StoreExists, match="holds other passages"):
        merge([a], other)
    changed = write(tmp_path / "changed", [dataclasses.replace(passage(0), title="another")])
    with pytest.raises(StoreExists, match="holds another passage 'p0é'"):
        merge([a], changed)
    assert files(other) == before

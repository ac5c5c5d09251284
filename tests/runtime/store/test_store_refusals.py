"""Damage, other models, later formats and bad passages: each is refused with cause, place and remedy."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgec_runtime.store import Header, InputComponent, Passage, Store, StoreWriter
from edgec_runtime.store.errors import (
    DuplicateId,
    HeaderInvalid,
    PassageInvalid,
    PassageUnknown,
    StoreDamaged,
    StoreEmpty,
    StoreError,
    StoreExists,
    StoreMismatch,
    StoreNotFound,
    StoreTooNew,
)
from store_passages import BARE, COMPONENT, INT8, files, passage, passages, write


def read_everything(folder: Path) -> None:
    with Store.open(folder) as store:
        store.verify()


def use(folder: Path) -> None:
    """What an app does: it looks for the nearest embedding, and reads passages."""
    with Store.open(folder) as store:
        store.embeddings()
        for row in store.live.tolist():
            store.passage(row)


@pytest.mark.parametrize("read", [read_everything, use])
def test_a_flipped_bit_is_found_in_every_byte(tmp_path: Path, read: Callable[[Path], None]) -> None:
    folder = write(tmp_path / "store", passages(2))
    with StoreWriter.open(folder) as writer:
        writer.add(passage(2))
        writer.delete(["p0é"])
    every = read is read_everything
    if not every:  # the bytes of deleted passages are not used
        with StoreWriter.open(folder) as writer:
            writer.compact()
            writer.delete(["p2é"])
            writer.add(passage(2))
            writer.compact()
    read(folder)
    found = missed = 0
    for name, content in files(folder).items():
        for place in range(0, len(content), 1 if every else 3):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            (folder / name).write_bytes(damaged)
            try:
                read(folder)
                missed += 1
            except StoreDamaged as error:
                assert str(folder) in error.message and "again" in error.hint
                found += 1
        (folder / name).write_bytes(content)
    assert missed == 0 and found > 300
    read(folder)


def test_a_passage_is_refused_where_it_is_damaged_and_the_others_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(4))
    content = bytearray((folder / "records-0.bin").read_bytes())
    content[70] ^= 8
    (folder / "records-0.bin").write_bytes(content)
    with Store.open(folder) as store:
        bad = [row for row in range(4) if not readable(store, row)]
        assert len(bad) == 1
        with pytest.raises(StoreDamaged, match=rf"records-0\.bin: passage of row {bad[0]}: its checksum differs"):
            store.states(bad[0])
        with pytest.raises(StoreDamaged, match=f"passage of row {bad[0]}"):
            store.verify()
    # The remedy that the hint gives:
    with StoreWriter.open(folder) as writer:
        writer.delete([f"p{bad[0]}é"])
        writer.compact()
        writer.add(passage(bad[0]))
    read_everything(folder)


def readable(store: Store, row: int) -> bool:
    try:
        store.passage(row)
    except StoreDamaged:
        return False
    return True


def test_a_row_is_checked_when_it_is_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    crc32 = zlib.crc32
    with Store.open(write(tmp_path / "store", passages(3))) as store:
        monkeypatch.setattr(
            zlib, "crc32", lambda content, start=0: checked.append(len(content)) or crc32(content, start)
        )
        first = store.states(1)
        at_first = len(checked)
        assert (store.states(1) == first).all()
        assert len(checked) - at_first < at_first
        store.states(2)
        assert sum(size >= 64 for size in checked) == 2  # one record each


def test_all_damages_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(6))
    (folder / "embeddings-0.bin").write_bytes(bytes(6 * 16))
    with pytest.raises(StoreDamaged, match=r"row 0: .*row 1: .*row 2: .*; and 3 more"):
        read_everything(folder)


def test_a_store_cut_short(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(3))
    with StoreWriter.open(folder) as writer:
        writer.delete(["p1é"])
    for name, content in files(folder).items():
        if name == "lock":  # empty
            continue
        for size in {0, 1, len(content) // 2, len(content) - 1}:
            (folder / name).write_bytes(content[:size])
            before = files(folder)
            for open_it in (Store.open, StoreWriter.open, lambda path: StoreWriter.resume(path, INT8)):
                with pytest.raises(StoreDamaged, match=f"{name}: (is cut short|.*differs)|{name} is"):
                    open_it(folder)
            assert files(folder) == before
        (folder / name).unlink()
        with pytest.raises((StoreDamaged, StoreNotFound), match=name):
            Store.open(folder)
        (folder / name).write_bytes(content)
    read_everything(folder)


def test_rows_of_another_place_are_found(tmp_path: Path) -> None:
    """Every checksum fits, but the entries stand in another order."""
    folder = write(tmp_path / "store", passages(2, BARE), BARE)
    content = (folder / "index-0.bin").read_bytes()
    (folder / "index-0.bin").write_bytes(content[64:] + content[:64])
    with pytest.raises(StoreDamaged, match="row 0"):
        Store.open(folder).passage(0)


def test_files_of_two_stores_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path / "a", passages(2))
    write(tmp_path / "b", passages(2, dataclasses.replace(INT8, overlap=5)), dataclasses.replace(INT8, overlap=5))
    (tmp_path / "a/header.bin").write_bytes((tmp_path / "b/header.bin").read_bytes())
    with pytest.raises(StoreDamaged, match=r"state\.bin belongs to another header"):
        Store.open(tmp_path / "a")


def test_a_later_format(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(2))
    content = bytearray((folder / "header.bin").read_bytes())
    struct.pack_into("<I", content, 8, 2)
    struct.pack_into("<I", content, 508, zlib.crc32(content[:508]))
    (folder / "header.bin").write_bytes(content)
    before = files(folder)
    for open_it in (Store.open, StoreWriter.open, lambda path: StoreWriter.resume(path, INT8)):
        with pytest.raises(StoreTooNew, match="format 2; this runtime reads up to 1") as refusal:
            open_it(folder)
        assert "update edgec-runtime" in refusal.value.hint
    assert files(folder) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"build_id": "build-8"}, "build build-7 where build-8 is expected"),
        ({"width": 12}, "width of the compressed states 6 where 12 is expected"),
    ],
)
def test_a_store_of_another_model(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    folder = write(tmp_path / "store", passages(1))
    other = dataclasses.replace(COMPONENT, **change)
    with pytest.raises(StoreMismatch, match=says):
        Store.open(folder, expect=other)
    for open_it in (StoreWriter.open, StoreWriter.resume):
        with pytest.raises(StoreMismatch, match=says):
            open_it(folder, dataclasses.replace(INT8, component=other))


def test_a_store_of_other_options(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(1))
    other = dataclasses.replace(INT8, states="float16", overlap=9)
    with pytest.raises(StoreMismatch, match="states int8 where float16 is expected; overlap 2 where 9 is expected"):
        StoreWriter.resume(folder, other)
    assert len(Store.open(folder, expect=other.component)) == 1  # reading needs the same states, not the same options


def _changed(**values: Any) -> Passage:
    return dataclasses.replace(passage(2), **values)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (_changed(id=""), "no id"),
        (_changed(id="\ud800"), "half of a surrogate pair"),
        (_changed(text="a b c \udc00"), "its text has half"),
        (_changed(start=-1), "start -1"),
        (_changed(offsets=np.zeros((0, 2), np.int32), states=np.zeros((0, 6), np.float32)), "has no tokens"),
        (_changed(offsets=np.zeros((3, 3), np.int32)), r"int32 \(3, 3\)"),
        (_changed(offsets=np.zeros((3, 2))), "float64"),
        (_changed(offsets=np.array([[0, 1], [1, 99], [2, 3]])), "token 1 is at characters 1 to 99 of"),
        (_changed(offsets=np.array([[0, 1], [1, 2], [3, 2]])), "token 2 is at characters 3 to 2"),
        (_changed(offsets=np.array([[0, 1], [-1, 2], [3, 2]])), "token 1 is at characters -1 to 2"),
        (_changed(states=np.zeros((3, 7), np.float32)), r"float32 \(3, 7\) for 3 tokens of width 6"),
        (_changed(states=np.zeros((2, 6), np.float32)), r"\(2, 6\) for 3 tokens"),
        (_changed(states=np.zeros((3, 6), np.int8)), "int8"),
        (_changed(states=np.full((3, 6), np.nan, np.float32)), "not all finite"),
        (_changed(states=np.full((3, 6), 1e30, np.float32)), "too large for float16"),
        (_changed(embedding=None), "keeps 4 values"),
        (_changed(embedding=np.zeros(5, np.float32)), r"float32 \(5,\)"),
        (_changed(embedding=np.full(4, np.inf, np.float32)), "embedding is not finite"),
    ],
)
def test_a_passage_that_cannot_be_kept(tmp_path: Path, bad: Passage, says: str) -> None:
    with StoreWriter.create(tmp_path / "store", INT8) as writer:
        writer.add(passage(0))
        with pytest.raises(PassageInvalid, match=says) as refusal:
            writer.add(bad)
        assert refusal.value.hint
        writer.add(passage(1))
    assert files(tmp_path / "store") == files(write(tmp_path / "without", passages(2)))


def test_duplicate_ids(tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "store", INT8) as writer:
        writer.add(passage(0))
        with pytest.raises(DuplicateId, match=r"'p0é' is in .*store already"):
            writer.add(passage(0))
    with StoreWriter.open(tmp_path / "store") as writer, pytest.raises(DuplicateId, match="'p0é'"):
        writer.add(passage(0))
    assert Store.open(tmp_path / "store").ids == ["p0é"]


def test_an_empty_store(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", [])
    with pytest.raises(StoreEmpty, match="holds no passage") as refusal:
        Store.open(folder)
    assert refusal.value.exit_code == 2
    empty = Store.open(folder, empty_ok=True)
    empty.verify()
    assert len(empty) == 0 and empty.ids == [] and empty.embeddings().shape == (0, 4)
    write(folder, passages(1))
    with StoreWriter.open(folder) as writer:
        writer.delete(["p0é"])
    with pytest.raises(StoreEmpty):
        Store.open(folder)


def test_rows_and_ids_that_are_not_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(2))
    with StoreWriter.open(folder) as writer:
        writer.delete(["p0é"])
    store = Store.open(folder)
    for row, says in ((-1, "none of its 2"), (2, "none of its 2"), (0, "row 0 was deleted")):
        with pytest.raises(PassageUnknown, match=says):
            store.states(row)
    with pytest.raises(PassageUnknown, match="'p0é'"):
        store.row("p0é")


def test_places_that_hold_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("")
    for name in ("file", "full", "absent"):
        for open_it in (Store.open, StoreWriter.open):
            with pytest.raises(StoreNotFound):
                open_it(tmp_path / name)
    with pytest.raises(StoreExists, match=r"letter\.txt is in it"):
        StoreWriter.create(tmp_path / "full", INT8)
    with pytest.raises(StoreError):
        StoreWriter.create(tmp_path / "file", INT8)
    with pytest.raises(StoreExists, match="holds a store"):
        StoreWriter.create(write(tmp_path / "store", passages(1)), INT8)
    assert sorted(path.name for path in tmp_path.rglob("*") if "store" not in str(path.relative_to(tmp_path))) == [
        "file",
        "full",
        "letter.txt",
    ]


@pytest.mark.parametrize(
    "header",
    [
        Header(InputComponent("", 6)),
        Header(InputComponent("b" * 128, 6)),
        Header(InputComponent("b\0c", 6)),
        Header(InputComponent("\ud800", 6)),
        Header(InputComponent("b", 0)),
        dataclasses.replace(BARE, embedding_dim=-1),
        dataclasses.replace(BARE, overlap=1 << 32),
        dataclasses.replace(BARE, states="int4"),  # type: ignore[arg-type]
        dataclasses.replace(BARE, embedding="int8"),  # type: ignore[arg-type]
    ],
)
def test_a_header_that_cannot_be_written(tmp_path: Path, header: Header) -> None:
    with pytest.raises(HeaderInvalid) as refusal:
        StoreWriter.create(tmp_path / "store", header)
    assert refusal.value.hint and not (tmp_path / "store").exists()

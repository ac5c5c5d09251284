"""What is read is what was added, and what is in the files depends on the passages and their order alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgec_runtime.store import Header, InputComponent, Store, StoreWriter, append
from store_passages import BARE, COMPONENT, FLOAT16, INT8, files, passage, passages, write


def kept(states: np.ndarray, header: Header) -> np.ndarray:
    """The states as the store keeps them, token by token and value by value."""
    if header.states == "float16":
        return states.astype(np.float16).astype(np.float32)
    rows = []
    for token in states:
        scale = float(np.float16(np.float32(max(abs(token))) / np.float32(127)))
        # Python rounds half to even.
        rows.append([np.float32(max(-127, min(127, round(float(value) / scale)))) * scale for value in token])
    return np.array(rows, np.float32)


@pytest.mark.parametrize("header", [INT8, FLOAT16, BARE], ids=["int8", "float16", "no embeddings"])
def test_round_trip(header: Header, tmp_path: Path) -> None:
    added = passages(7, header)
    with Store.open(write(tmp_path / "store", added, header), expect=COMPONENT) as store:
        assert store.header == header
        assert len(store) == store.rows == 7 and store.live.tolist() == list(range(7))
        assert store.ids == [one.id for one in added] and store.row("p3é") == 3
        assert store.tokens == sum(len(one.offsets) for one in added)
        for row, one in enumerate(added):
            again = store.passage(row)
            for key in ("id", "text", "title", "document", "start"):
                assert getattr(again, key) == getattr(one, key)
            assert again.offsets.dtype == np.int32 and (again.offsets == one.offsets).all()
            words = [again.text[begin:end] for begin, end in again.offsets]
            assert words == one.text.split()
            assert again.states.dtype == np.float32 and (again.states == kept(one.states, header)).all()
            assert (store.states(row) == again.states).all()
            if header.embedding_dim:
                assert (again.embedding == one.embedding.astype(header.embedding)).all()
                assert (store.embeddings()[row] == again.embedding).all()
            else:
                assert again.embedding is None
        assert store.embeddings().shape == (7, header.embedding_dim) and not store.embeddings().flags.writeable
        store.verify()


def test_an_int8_state_is_within_half_a_step() -> None:
    from edgec_runtime.store.quantize import dequantize, quantize

    states = np.random.default_rng(0).normal(size=(50, 96)).astype(np.float32) * np.logspace(-2, 4, 50)[:, None]
    scales, integers = quantize(states.astype(np.float32))
    # The scale's own rounding may put the largest value outside of the integers' range, by 127 * 2 ** -11 steps.
    assert (np.abs(dequantize(scales, integers) - states) <= scales.astype(np.float64)[:, None] * 0.5625).all()
    assert np.abs(integers).max() == 127


def test_halves_go_to_the_even_integer_and_zeros_stay() -> None:
    from edgec_runtime.store.quantize import quantize

    scales, integers = quantize(np.array([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0], [1e-9, 0, 0, -1e-9]], np.float32))
    assert scales.tolist() == [1, 0, 0]
    assert integers.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_token_takes_its_width_and_a_scale() -> None:
    wide = InputComponent("b", width=96)
    assert Header(wide).token_bytes == 96 + 2 and Header(wide, states="float16").token_bytes == 96 * 2
    assert 384 * 2 / Header(wide).token_bytes > 7.6


def test_the_bytes_do_not_tell_how_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files(write(tmp_path / "whole", passages(9)))
    for count in range(10):
        write(tmp_path / f"{count}", passages(count))
        write(tmp_path / f"{count}", passages(9 - count, first=count))
        assert files(tmp_path / f"{count}") == whole
    monkeypatch.setattr(append, "BUFFER_BYTES", 300)
    assert files(write(tmp_path / "small buffer", passages(9))) == whole
    with StoreWriter.create(tmp_path / "commits", INT8) as writer:
        for one in passages(9):
            writer.add(one)
            writer.commit()
            writer.commit()
    assert files(tmp_path / "commits") == whole


def test_doubles_and_wide_integers_are_taken(tmp_path: Path) -> None:
    one = passage(3)
    other = dataclasses.replace(one, states=one.states.astype(np.float64), offsets=one.offsets.astype(np.uint8))
    assert files(write(tmp_path / "a", [one])) == files(write(tmp_path / "b", [other]))


def test_an_exception_leaves_what_was_not_committed(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    with pytest.raises(Stop), StoreWriter.create(tmp_path / "store", INT8) as writer:
        writer.add(passage(0))
        writer.commit()
        writer.add(passage(1))
        assert len(writer) == 2 and "p1é" in writer and writer.ids == ["p0é", "p1é"]
        raise Stop
    with Store.open(tmp_path / "store") as store:
        assert store.ids == ["p0é"]


def test_a_reader_sees_what_was_committed_when_it_opened(tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "store", INT8) as writer:
        writer.add(passage(0))
        writer.commit()
        with Store.open(tmp_path / "store") as before:
            writer.add(passage(1))
            assert len(Store.open(tmp_path / "store")) == 1
            writer.commit()
            assert len(Store.open(tmp_path / "store")) == 2
            assert len(before) == 1 and before.embeddings().shape == (1, 4)
            before.verify()


def test_opening_reads_no_passage(tmp_path: Path) -> None:
    """Damage in every byte of the data files but their length does not show before something is read."""
    folder = write(tmp_path / "store", passages(5))
    for name in ("index-0.bin", "ids-0.bin", "records-0.bin", "embeddings-0.bin"):
        (folder / name).write_bytes(bytes(len((folder / name).read_bytes())))
    assert len(Store.open(folder)) == 5


def test_the_store_stays_out_of_the_way() -> None:
    script = (
        "import sys, edgec_runtime.loading; assert 'edgec_runtime.store' not in sys.modules\n"
        "before = set(sys.modules); import edgec_runtime.store\n"
        "print([m for m in ('tokenizers', 'torch', 'fcntl') if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")

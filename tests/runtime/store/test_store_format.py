"""The files are what docs/store.md says, byte by byte: read with struct, and by the page's own C program."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from edgec_runtime.errors import BundleError
from edgec_runtime.store import Header, Passage, Store, compact, delete, errors
from store_passages import BARE, COMPONENT, FLOAT16, INT8, passages, write

PAGE = (Path(__file__).parents[3] / "docs/store.md").read_text(encoding="utf-8")
LEAVES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.StoreError) and kind is not errors.StoreError
}


def test_every_byte(tmp_path: Path) -> None:
    states = np.array([[127, -63.5, 0.5, 0, 1, 2], [0, 0, 0, 0, 0, -254]], np.float32)
    offsets = np.array([[0, 2], [3, 7]])
    embedding = np.array([1, -2, 0.5, 0], np.float32)
    folder = write(tmp_path / "store", [Passage("é1", "Öl moss", offsets, states, embedding, "t", "d.txt", 5)])
    write(folder, [Passage("x", "a", np.array([[0, 1]]), states[:1], embedding)])
    delete(folder, ["x"])

    texts = b"t" + b"d.txt" + "Öl moss".encode()
    record = struct.pack("<4i", 0, 2, 3, 7) + np.array([1, 2], "<f2").tobytes()
    record += struct.pack("<12b", 127, -64, 0, 0, 1, 2, 0, 0, 0, 0, 0, -127) + texts
    record += bytes(64 - len(record))
    records = (folder / "records-0.bin").read_bytes()
    assert records[:64] == record and len(records) == 128
    assert (folder / "ids-0.bin").read_bytes() == "é1x".encode()
    assert (folder / "embeddings-0.bin").read_bytes() == 2 * struct.pack("<4f", 1, -2, 0.5, 0)
    assert (folder / "deleted-0.bin").read_bytes() == struct.pack("<Q", 1)

    def checked(content: bytes) -> bytes:
        return content + struct.pack("<I", zlib.crc32(content))

    crcs = [zlib.crc32(content) for content in ("é1".encode(), record, struct.pack("<4f", 1, -2, 0.5, 0))]
    entry = checked(struct.pack("<QQIIIIQIIIII", 0, 0, 3, 1, 5, 8, 5, 2, *crcs, 0))
    index = (folder / "index-0.bin").read_bytes()
    assert index[:64] == entry and len(index) == 128
    assert struct.unpack_from("<QQI", index, 64) == (64, 3, 1) and struct.unpack_from("<I", index, 64 + 56) == (1,)

    fields = struct.pack("<8s6I", b"EDGECSTO", 1, 6, 2, 4, 3, 2)
    names = b"build-7"
    header = checked((fields + names).ljust(508, b"\0"))
    assert (folder / "header.bin").read_bytes() == header
    gone = zlib.crc32(struct.pack("<Q", 1))
    state = checked(
        struct.pack("<8sIIQQQQQI", b"EDGECSTA", *struct.unpack("<I", header[-4:]), 0, 2, 3, 128, 4, 1, gone)
    )
    assert (folder / "state.bin").read_bytes() == state


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("header", [INT8, FLOAT16, BARE], ids=["int8", "float16", "no embeddings"])
def test_the_program_in_c(tmp_path: Path, header: Header) -> None:
    (program,) = re.findall(r"^```c\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "read.c").write_text(program, encoding="utf-8")
    options = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-o", "read", "read.c", "-lm"]
    subprocess.run(["cc", *options], cwd=tmp_path, check=True)
    folder = write(tmp_path / "store", passages(9, header), header)
    delete(folder, ["p1é", "p7é"])

    def same() -> None:
        done = subprocess.run([tmp_path / "read", folder], capture_output=True, text=True, check=True, encoding="utf-8")
        with Store.open(folder, expect=COMPONENT) as store:
            read = [store.passage(row) for row in store.live.tolist()]
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        assert [(id, int(tokens), text) for id, tokens, _, text in rows] == [
            (one.id, len(one.offsets), one.text) for one in read
        ]
        assert [np.float32(first) for _, _, first, _ in rows] == [one.states[0, 0] for one in read]

    same()
    compact(folder)
    same()
    content = bytearray((folder / "records-1.bin").read_bytes())
    content[5] ^= 1
    (folder / "records-1.bin").write_bytes(content)
    done = subprocess.run([tmp_path / "read", folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "damaged: records\n")


def test_the_page_has_every_error() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d) \|$", PAGE, re.MULTILINE)
    assert {name: int(code) for name, code in rows} == {name: kind.exit_code for name, kind in LEAVES.items()}
    assert all(issubclass(kind, BundleError) and name in (errors.__doc__ or "") for name, kind in LEAVES.items())

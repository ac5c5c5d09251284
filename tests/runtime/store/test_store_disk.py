"""A full disk and a second writer: a clear error each, and the store is as it was."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgec_runtime.store import Store, StoreWriter, append
from edgec_runtime.store.errors import StoreFull, StoreInaccessible, StoreInUse
from store_passages import INT8, files, passage, passages, write


class FullDisk:
    """Takes the place of os.pwrite: after `calls` whole writes it takes half of one, then nothing more."""

    def __init__(self, calls: int) -> None:
        self.left, self.pwrite = calls, os.pwrite

    def __call__(self, file: int, content: bytes, offset: int) -> int:
        self.left -= 1
        if self.left >= 0:
            return self.pwrite(file, content, offset)
        if self.left == -1 and len(content) > 1:
            return self.pwrite(file, content[: len(content) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def add(folder: Path) -> None:
    with StoreWriter.resume(folder, INT8) as writer:
        for number in range(len(writer), 6):
            writer.add(passage(number))
            if number == 3:
                writer.commit()


def delete(folder: Path) -> None:
    with StoreWriter.open(folder) as writer:
        writer.delete([name for name in ("p0é",) if name in writer])


def compact(folder: Path) -> None:
    with StoreWriter.open(folder) as writer:
        writer.compact()


def test_a_disk_that_does_not_keep_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such pages may be lost, and the next fsync does not say so: nothing may count them."""

    def refuse(*arguments: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = write(tmp_path / "store", passages(1))
    writer = StoreWriter.open(folder)
    writer.add(passage(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreInaccessible, match="Input/output error"):
            writer.commit()
    with pytest.raises(StoreInaccessible, match="has refused to keep what was written"):
        writer.commit()
    writer.close()
    assert len(Store.open(folder)) == 1
    with StoreWriter.open(folder) as again:
        again.add(passage(1))
    assert files(folder) == files(write(tmp_path / "expected", passages(2)))


@pytest.mark.parametrize("action", [add, delete, compact])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Callable[[Path], None]) -> None:
    def prepared(name: str) -> Path:
        folder = write(tmp_path / name, passages(2))
        if action is compact:
            delete(folder)
        return folder

    expected = prepared("expected")
    action(expected)
    refused = 0
    for calls in range(100):
        folder = prepared(f"{calls}")
        present = Store.open(folder).ids
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", FullDisk(calls))
            try:
                action(folder)
                break
            except StoreFull as error:
                assert f"no space left while writing {folder}" in error.message and error.exit_code == 3
                refused += 1
        with Store.open(folder) as store:
            store.verify()
            assert store.ids[: len(present)] == present
        action(folder)
        assert files(folder) == files(expected)
    assert refused > 1


def test_commit_goes_on_when_there_is_space_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append, "BUFFER_BYTES", 500)
    with StoreWriter.create(tmp_path / "store", INT8) as writer:
        for number in range(8):
            with monkeypatch.context() as patch:
                if number % 3 == 2:
                    patch.setattr(os, "pwrite", FullDisk(number % 4))
                try:
                    writer.add(passage(number))
                    writer.commit()
                except StoreFull:
                    assert number % 3 == 2
        writer.commit()
    assert files(tmp_path / "store") == files(write(tmp_path / "expected", passages(8)))


def test_delete_goes_on_when_there_is_space_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "store", passages(3))
    with StoreWriter.open(folder) as writer:
        for calls in (0, 1):  # the tombstone, state.bin
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", FullDisk(calls))
                with pytest.raises(StoreFull):
                    writer.delete(["p0é"])
            assert "p0é" in writer
        writer.add(passage(3))
        writer.delete(["p1é"])
    expected = write(tmp_path / "expected", passages(4))
    with StoreWriter.open(expected) as writer:
        writer.delete(["p1é"])
    assert files(folder) == files(expected)


def test_a_limit_of_the_system(tmp_path: Path) -> None:
    """Not simulated: the system itself takes no file above 4096 bytes from this process."""
    script = (
        "import resource, sys; from pathlib import Path; from store_passages import passages, write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "from edgec_runtime.store.errors import StoreFull\n"
        "try:\n    write(Path(sys.argv[1]), passages(100))\n"
        "except StoreFull as error:\n    print(error.message)"
    )
    folder = write(tmp_path / "store", passages(5))
    before = Store.open(folder).ids
    done = subprocess.run(
        [sys.executable, "-c", script.replace("passages(100)", "passages(100, first=5)"), folder],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.stdout.startswith(f"no space left while writing {folder}/"), done.stderr
    assert Store.open(folder).ids == before
    write(folder, passages(100, first=5))
    assert files(folder) == files(write(tmp_path / "whole", passages(105)))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_two_writers(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(2))
    script = (
        "import sys; from pathlib import Path; from store_passages import INT8; "
        "from edgec_runtime.store import StoreWriter; from edgec_runtime.store.errors import StoreInUse\n"
        "try:\n    StoreWriter.resume(Path(sys.argv[1]), INT8)\n"
        "except StoreInUse as error:\n    print(error.message, error.exit_code)"
    )
    with StoreWriter.open(folder) as writer:
        for open_it in (StoreWriter.open, lambda path: StoreWriter.resume(path, INT8)):
            with pytest.raises(StoreInUse, match="is being written by another writer"):
                open_it(folder)
        done = subprocess.run(
            [sys.executable, "-c", script, folder], capture_output=True, text=True, cwd=Path(__file__).parent
        )
        assert done.stdout == f"{folder} is being written by another writer 3\n", done.stderr
        assert len(Store.open(folder)) == 2  # reading goes on
        writer.add(passage(2))
    with StoreWriter.open(folder) as writer:
        assert len(writer) == 3


def test_a_refusal_gives_the_lock_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", passages(1))
    state = (folder / "state.bin").read_bytes()
    (folder / "state.bin").write_bytes(state[:-1])
    with pytest.raises(Exception, match=r"state\.bin"):
        StoreWriter.open(folder)
    (folder / "state.bin").write_bytes(state)
    StoreWriter.open(folder).close()


def test_a_failure_after_the_step_that_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new state.bin is in its place, but making its name outlive a loss of power fails."""
    from edgec_runtime.store import disk

    def refuse(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = write(tmp_path / "store", passages(3))
    delete(folder)
    with StoreWriter.open(folder) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(disk, "sync_folder", refuse)
            with pytest.raises(StoreInaccessible):
                writer.compact()
        writer.close()
    with Store.open(folder) as store:
        store.verify()
        assert store.ids == ["p1é", "p2é"]

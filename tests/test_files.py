"""Folders appear whole or not at all, and nothing is left beside them."""

from __future__ import annotations

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgec.errors import DataError, OutputExists, SystemFailure
from edgec.files import atomic_folder, require_free, write_whole


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with atomic_folder(out) as work:
        (work / "file").write_text("content")
        assert not out.exists()
        assert work.parent.parent == out.parent  # the same file system, so that the rename is one step
    assert listing(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/file"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError("x"), DataError("x"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_left_after_a_failure(tmp_path: Path, error: BaseException, force: bool) -> None:
    out = tmp_path / "out"
    if force:
        out.mkdir()
        (out / "old").write_text("kept")
    with pytest.raises(type(error)), atomic_folder(out, force=force) as work:
        (work / "half").write_text("")
        raise error
    assert listing(tmp_path) == (["out", "out/old"] if force else [])


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    with atomic_folder(out, force=True) as work:
        (work / "new").write_text("")
        assert listing(out) == ["old"]
    assert listing(tmp_path) == ["out", "out/new"]


def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("")
    out = tmp_path / "out"
    out.symlink_to("real")
    with atomic_folder(out, force=True) as work:
        (work / "new").write_text("")
    assert not out.is_symlink()
    assert listing(tmp_path) == ["out", "out/new", "real", "real/old"]


def test_an_existing_folder_is_in_the_way(tmp_path: Path) -> None:
    for make in (tmp_path.joinpath("folder").mkdir, tmp_path.joinpath("file").touch):
        make()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        with pytest.raises(OutputExists, match=f"{name} exists") as caught:
            require_free(tmp_path / name)
        assert "--force" in caught.value.hint
    for name in ("file", "link"):
        with pytest.raises(OutputExists, match=f"{name} is not a folder"):
            require_free(tmp_path / name, force=True)
    require_free(tmp_path / "folder", force=True)
    require_free(tmp_path / "new" / "deep")
    assert listing(tmp_path) == ["file", "folder", "link"]


def test_a_folder_cannot_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for check in (require_free, lambda out: atomic_folder(out).__enter__()):
        with pytest.raises(SystemFailure, match="file: Not a directory") as caught:
            check(tmp_path / "file" / "out")
        assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("number", "message", "hint"),
    [
        (errno.ENOSPC, "no space left while writing .*model.onnx; .*out was not written", "free some space"),
        (errno.EACCES, "model.onnx: Permission denied", "permissions"),
    ],
)
def test_what_the_file_system_refuses(tmp_path: Path, number: int, message: str, hint: str) -> None:
    with pytest.raises(SystemFailure, match=message) as caught, atomic_folder(tmp_path / "out") as work:
        raise OSError(number, os.strerror(number), str(work / "model.onnx"))
    assert hint in caught.value.hint
    assert listing(tmp_path) == []


def test_a_folder_that_came_into_the_way_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputExists, match="out appeared while it was being written"), atomic_folder(out) as work:
        (work / "mine").write_text("")
        out.mkdir()
        (out / "theirs").write_text("")
    assert listing(tmp_path) == ["out", "out/theirs"]


def test_folders_made_for_nothing_go(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "there" / "a" / "b" / "out"):
        raise ZeroDivisionError
    assert list((tmp_path / "there").iterdir()) == []
    with atomic_folder(tmp_path / "there" / "a" / "out"):
        pass
    assert (tmp_path / "there" / "a" / "out").is_dir()


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    others = {".out.passes", ".out.snapshot", ".other.edgec-abcd1234"}
    for name in (".out.edgec-abcd_123", *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with atomic_folder(tmp_path / "out"):
        assert not (tmp_path / ".out.edgec-abcd_123").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", *others}


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as work:
        (work / "file").write_text("mine")
        with (
            pytest.raises(OutputExists, match=r"another run is writing .*out, in ") as caught,
            atomic_folder(tmp_path / "out"),
        ):
            pass
        assert str(work.parent) in caught.value.message
        with atomic_folder(tmp_path / "other"):
            pass
    assert listing(tmp_path) == ["other", "out", "out/file"]


def test_where_locks_cannot_be_had_nothing_is_removed_and_nobody_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = tmp_path / ".out.edgec-abcd1234"
    left.mkdir()
    with atomic_folder(tmp_path / "out") as work:
        (work / "file").touch()
    assert left.is_dir() and (tmp_path / "out" / "file").is_file()


def test_a_file_is_written_into_what_is_no_file(tmp_path: Path) -> None:
    """A pipe or a device stays what it is, and so does a link."""
    pipe, kept, link = tmp_path / "pipe", tmp_path / "kept", tmp_path / "link"
    os.mkfifo(pipe)
    kept.write_text("old")
    link.symlink_to(kept)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        write_whole(pipe, "new")
        assert read.result(60) == "new" and pipe.is_fifo()
    write_whole(link, "new")
    assert link.is_symlink() and kept.read_text() == "new"
    write_whole(tmp_path / "deep" / "file", "new")
    with pytest.raises(SystemFailure, match=r"^no space left while writing /dev/full$"):
        write_whole(Path("/dev/full"), "new")
    assert Path("/dev/full").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "kept", "link", "pipe"]

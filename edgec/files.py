"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgec.errors import OutputExists, SystemFailure


def require_free(out: Path, *, force: bool = False) -> None:
    """Raises OutputExists where `out` is in the way, and SystemFailure where it could not be written; nothing is left.

    Called before long work, so that it is not lost at its end.
    """
    if out.is_symlink() or out.exists():
        if not force:
            raise OutputExists(
                f"{out} exists", "choose another --out, remove it, or give --force to replace it when done"
            )
        if not out.is_dir():
            raise OutputExists(f"{out} is not a folder", "choose another --out")
    with _as_system_failure(out):
        parent = _existing_parent(out)
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
        with tempfile.TemporaryDirectory(prefix=".edgec-", dir=parent):
            pass


@contextlib.contextmanager
def atomic_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end; on any failure it is removed.

    What a killed run left of its own goes, too. force: replace an existing folder, at the moment when the new one is
    whole. Raises OutputExists, also where another run is writing `out`, and SystemFailure for what the file system
    refuses (no space, no permission).
    """
    require_free(out, force=force)
    made = missing_parents(out)
    prefix = f".{out.name}.edgec-"
    with _as_system_failure(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        around = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        work = around / out.name
        work.mkdir(mode=0o755)
    try:
        with contextlib.ExitStack() as locks:
            locks.enter_context(_claimed(around, out))
            for other in out.parent.glob(f"{glob.escape(prefix)}*"):
                if other != around:
                    with _claimed(other, out) as left:
                        if left:
                            shutil.rmtree(other, ignore_errors=True)
                    if left:  # on network drives an open file, the lock, stays until it is closed
                        shutil.rmtree(other, ignore_errors=True)
            with _as_system_failure(out):
                yield work
                _replace(work, out, force=force)
    finally:
        shutil.rmtree(around, ignore_errors=True)
        remove_empty(made)


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all; its folder is made.

    A device, a pipe and what a link leads to (/dev/stdout) are written into. Raises SystemFailure.
    """
    with _as_system_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_text(text, encoding="utf-8")
            return
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def missing_parents(out: Path) -> list[Path]:
    """The folders that have to be made for `out`, the innermost first."""
    return [parent for parent in out.parents if not parent.exists()]


def remove_empty(made: list[Path]) -> None:
    """Folders that were made for nothing go, unless something else came there."""
    with contextlib.suppress(OSError):
        for parent in made:
            parent.rmdir()


@contextlib.contextmanager
def _claimed(around: Path, out: Path) -> Iterator[bool]:
    """Inside, no other process works in the folder; whether the file system could tell.

    The lock is on a file, not on the folder: so it holds between the machines that share a file system, too. Raises
    OutputExists where another process has it.
    """
    try:
        import fcntl

        handle = os.open(around / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError):
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        known = True
    except BlockingIOError:
        os.close(handle)
        raise OutputExists(
            f"another run is writing {out}, in {around}", "wait until it is done, or choose another --out"
        ) from None
    except OSError:
        known = False
    try:
        yield known
    finally:
        os.close(handle)


def _replace(work: Path, out: Path, *, force: bool) -> None:
    if not force and (out.exists() or out.is_symlink()):
        raise OutputExists(f"{out} appeared while it was being written", "choose another --out, or give --force")
    if force and out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.rename(old / "folder")
        work.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(out)


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


@contextlib.contextmanager
def _as_system_failure(out: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # its reader has what it wanted
        raise
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else str(out)
        place = out if Path(named).name.startswith(".") else named  # not a name that only lives while it is written
        if error.errno == errno.ENOSPC:
            lost = "" if str(place) == str(out) else f"; {out} was not written"
            raise SystemFailure(
                f"no space left while writing {place}{lost}", "free some space, or write elsewhere"
            ) from error
        raise SystemFailure(
            f"{place}: {error.strerror or error}",
            "check the path and its permissions, or write elsewhere",
        ) from error


def megabytes(size: int) -> str:
    """So many bytes in 10**6 bytes: one decimal, and below one megabyte three digits."""
    return f"{size / 1e6:.1f}" if size >= 1e6 else f"{size / 1e6:.3g}"

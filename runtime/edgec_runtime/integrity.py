"""Is the folder the bundle that was written? Paths stay inside it, and every file has the listed size and
sha256.

A file that the manifest does not list is tolerated as long as no graph refers to it (`graph_scan` sees to
that): nothing in it is ever read, while refusing it would make a `.DS_Store` or an editor's backup break a
working bundle.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from .errors import BundleNotFound, FileDamaged, ManifestInvalid, PartMissing, UnsafePath
from .manifest import MANIFEST_FILE, FileInfo, Manifest, parse
from .record import Record

MANIFEST_LIMIT: Final = 16 << 20
_AGAIN: Final = "the bundle was changed or copied incompletely: copy it again"
_NOT_OURS: Final = "do not use this bundle unless you trust where it came from"


class Stamp(Record):
    """What the file system says of a file at the moment it was verified."""

    path: Path
    bytes: int
    identity: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> Stamp:
        s = path.stat()
        return cls(path, s.st_size, (s.st_dev, s.st_ino, s.st_mtime_ns))

    def require_unchanged(self) -> None:
        """Raises FileDamaged where the file is not the one that was verified."""
        try:
            same = Stamp.of(self.path) == self
        except OSError:
            same = False
        if not same:
            raise FileDamaged(f"{self.path} was changed while it was being loaded", "load the bundle again")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle. Raises BundleNotFound, FormatTooNew, ManifestInvalid or UnsafePath."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise BundleNotFound(f"{folder} {what}", "give the folder that holds manifest.json")
    if not (folder / MANIFEST_FILE).exists():
        raise BundleNotFound(f"{folder} holds no {MANIFEST_FILE}", "give the folder of a bundle")
    path = locate(folder, MANIFEST_FILE)
    with path.open("rb") as file:
        data = file.read(MANIFEST_LIMIT + 1)
    if len(data) > MANIFEST_LIMIT:
        raise ManifestInvalid(f"{path} is larger than {MANIFEST_LIMIT >> 20} MiB", _AGAIN)
    try:
        return parse(data.decode("utf-8"), str(path))
    except (ValueError, RecursionError) as error:
        # Bytes that are no UTF-8, escaped surrogates, NaN and very deep nesting: none can come from the
        # writer.
        raise ManifestInvalid(f"{path} cannot be read: {error}", _AGAIN) from None


def locate(folder: Path, relative: str) -> Path:
    """The file `relative` of the bundle, symbolic links resolved.

    Raises UnsafePath where the path or a link in it leaves the folder, PartMissing where there is no such
    file.
    """
    full = folder / require_inside(folder, relative)
    try:
        resolved = full.resolve()
    except (OSError, RuntimeError):  # a loop of links; RuntimeError before Python 3.13
        raise UnsafePath(f"{full} is a link that leads nowhere", _NOT_OURS) from None
    if not resolved.is_relative_to(folder.resolve()):
        raise UnsafePath(f"{full} is a link that leaves the bundle", _NOT_OURS)
    if not resolved.is_file():
        raise PartMissing(f"{full} is missing", _AGAIN)
    return resolved


def require_inside(where: Path, relative: str) -> PurePosixPath:
    """`relative` as a path. Raises UnsafePath where it is not a plain one below the bundle's folder.

    where: the folder or archive, for the message.
    """
    path = PurePosixPath(relative)
    windows = PureWindowsPath(relative)
    plain = relative and "\\" not in relative and "\0" not in relative and str(path) == relative
    if not plain or path.is_absolute() or windows.drive or ".." in path.parts or relative == ".":
        raise UnsafePath(f"{where}: the path {relative!r} may leave the bundle", _NOT_OURS)
    return path


def listing(folder: Path, manifest: Manifest) -> dict[str, FileInfo]:
    """The manifest's files by path. Raises ManifestInvalid for doubles, PartMissing for a part that is not
    listed."""
    files = {info.path: info for info in manifest.files}
    if len(files) != len(manifest.files):
        raise ManifestInvalid(f"{folder / MANIFEST_FILE} lists a file twice", _AGAIN)
    needed = [part.file for part in manifest.parts]
    needed += [manifest.preprocessing.tokenizer, manifest.golden.file]
    for path in needed:
        if path not in files:
            raise PartMissing(f"{folder / MANIFEST_FILE} names {path!r} but does not list it among its files", _AGAIN)
    return files


def verify_files(folder: Path, manifest: Manifest) -> list[Stamp]:
    """Compare every listed file with its size and sha256, and every part and the tokenizer with the list.

    Raises UnsafePath, PartMissing, FileDamaged or ManifestInvalid.
    """
    stamps = []
    for info in listing(folder, manifest).values():
        path = locate(folder, info.path)
        stamp = Stamp.of(path)
        if stamp.bytes != info.bytes:
            raise FileDamaged(f"{path} has {stamp.bytes} bytes instead of {info.bytes}", _AGAIN)
        if _sha256(path) != info.sha256:
            raise FileDamaged(f"{path} does not have the sha256 that the manifest lists", _AGAIN)
        stamps.append(stamp)
    return stamps


def _sha256(path: Path) -> str:
    """Mapped and hashed in one call. Chunk by chunk, the thread that hashes would have to win the interpreter
    back for every chunk from the one that imports, which takes three times as long."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return hashlib.sha256(data).hexdigest()

"""A bundle as one compressed file: a zip archive of its files, manifest.json first, no folders in it.

`edgec compress` writes it where the recipe says `export: {compressed: true}`. Loading maps the weights from a file of
their own, so an app unpacks once, after the download, and loads the folder from then on.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from .errors import BundleNotFound, FileDamaged, FolderInTheWay
from .integrity import MANIFEST_LIMIT, read_manifest, require_inside, verify_files
from .manifest import MANIFEST_FILE

if TYPE_CHECKING:
    import argparse

LEVEL: Final = 6
"""Of deflate."""

_TIME: Final = (1980, 1, 1, 0, 0, 0)
_CHUNK: Final = 1 << 20
_AGAIN: Final = "get the archive again"


def pack(folder: str | Path, archive: str | Path) -> int:
    """Write the bundle `folder` as the file `archive` and return its bytes. The same bundle gives the same file.

    Only files that the manifest lists are in it. Raises a BundleError for a folder that is no whole bundle.
    """
    folder, archive = Path(folder), Path(archive)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    names = [MANIFEST_FILE, *sorted(info.path for info in manifest.files)]
    temporary = archive.with_name(f".{archive.name}.new")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as packed:
            for name in names:
                info = zipfile.ZipInfo(name, _TIME)
                info.create_system, info.external_attr = 3, 0o100644 << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                info.file_size = (folder / name).stat().st_size
                with (folder / name).open("rb") as source, packed.open(info, "w") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
        temporary.replace(archive)
    finally:
        temporary.unlink(missing_ok=True)
    return archive.stat().st_size


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Make the folder of a bundle from its archive and return it; it appears whole and verified, or not at all.

    Raises BundleNotFound where there is no archive, FolderInTheWay where `folder` exists, UnsafePath for an archive
    that would write elsewhere, FileDamaged where its files are not those that its manifest lists.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise BundleNotFound(f"{archive} is not a file", "give the archive of a bundle")
    if folder.is_symlink() or folder.exists():
        raise FolderInTheWay(f"{folder} exists", "remove it, or unpack elsewhere")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with _as_damaged(archive), zipfile.ZipFile(archive) as packed:
            _extract(archive, packed, work)
        verify_files(work, read_manifest(work))
        work.chmod(0o755)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _extract(archive: Path, packed: zipfile.ZipFile, work: Path) -> None:
    """The manifest, and what it lists, no byte more: an archive cannot fill the disk with what nobody announced."""
    entries = packed.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise FileDamaged(f"{archive} holds a file twice", _AGAIN)
    for name in names:
        require_inside(archive, name)
    if MANIFEST_FILE not in names:
        raise BundleNotFound(f"{archive} holds no {MANIFEST_FILE}", "give the archive of a bundle")
    _copy(archive, packed, MANIFEST_FILE, work, MANIFEST_LIMIT)
    sizes = {info.path: info.bytes for info in read_manifest(work).files}
    for name in names:
        if name != MANIFEST_FILE:
            if name not in sizes:
                raise FileDamaged(f"{archive} holds {name!r}, which its manifest does not list", _AGAIN)
            _copy(archive, packed, name, work, sizes[name])


def _copy(archive: Path, packed: zipfile.ZipFile, name: str, work: Path, limit: int) -> None:
    place = work / PurePosixPath(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    left = limit
    # Links and modes of the archive are not taken over: every entry becomes a plain file.
    with packed.open(name) as source, place.open("xb") as target:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise FileDamaged(f"{archive}: {name} is larger than {limit} bytes", _AGAIN)
            target.write(chunk)


@contextlib.contextmanager
def _as_damaged(archive: Path) -> Iterator[None]:
    """What zipfile raises for a file that is no archive, not a whole one, or not packed as `pack` does."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise FileDamaged(f"{archive} cannot be unpacked: {error}", _AGAIN) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", metavar="ARCHIVE")
    parser.add_argument("folder", metavar="FOLDER", help="new; it appears whole or not at all")


def run(options: argparse.Namespace) -> int:
    """The command `unpack`."""
    unpack(options.archive, options.folder)
    return 0

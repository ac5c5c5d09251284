"""What a device is sent: files, named by the sha256 of what is in them."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

from edgec_runtime import integrity
from edgec_runtime.manifest import MANIFEST_FILE


@dataclass(frozen=True)
class Content:
    """A folder on the device. files: path in it to the file here; digest: sha256 over paths and contents."""

    name: str
    files: Mapping[str, Path]
    digest: str

    @classmethod
    def of_bundle(cls, folder: Path) -> Self:
        """The manifest and the files that it lists, nothing else that lies there.

        Raises BundleNotFound for a folder that is no bundle, and another BundleError for a bundle that is not whole
        or has a link out of it.
        """
        manifest = integrity.read_manifest(folder)
        integrity.verify_files(folder, manifest)
        paths = (MANIFEST_FILE, *(info.path for info in manifest.files))
        return cls._of(folder.resolve().name, {path: integrity.locate(folder, path) for path in paths})

    @classmethod
    def of_package(cls, package: Path) -> Self:
        """The sources of a Python package."""
        sources = (path for path in package.rglob("*") if path.is_file() and path.suffix in (".py", ".typed"))
        return cls._of(package.name, {path.relative_to(package).as_posix(): path for path in sources})

    @classmethod
    def _of(cls, name: str, files: Mapping[str, Path]) -> Self:
        ordered = {path: files[path] for path in sorted(files, key=PurePosixPath)}
        whole = hashlib.sha256()
        for path, file in ordered.items():
            with file.open("rb") as stream:
                inner = hashlib.file_digest(stream, "sha256").hexdigest()
            whole.update(f"{inner} {path}\0".encode())
        return cls(name, ordered, whole.hexdigest()[:32])

    def write_tar(self, stream: IO[bytes]) -> None:
        """Write the files as a tar archive below a folder `name`; the user's ids and times stay at home."""

        def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = 0
            info.mode = 0o644
            return info

        with tarfile.open(fileobj=stream, mode="w|", dereference=True) as archive:
            for path, file in self.files.items():
                archive.add(file, f"{self.name}/{path}", filter=anonymous)

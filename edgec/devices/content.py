"""A folder as a device sees it: named by the sha256 of what is in it."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self


@dataclass(frozen=True)
class Content:
    """Files of a folder. name: the folder's name on the device; digest: sha256 over paths and contents."""

    folder: Path
    name: str
    files: tuple[Path, ...]
    digest: str

    @classmethod
    def of(cls, folder: Path, name: str, suffixes: tuple[str, ...] = ()) -> Self:
        """All files below `folder`, or those that end with one of `suffixes`."""
        files = tuple(
            sorted(
                path.relative_to(folder)
                for path in folder.rglob("*")
                if path.is_file() and (not suffixes or path.suffix in suffixes)
            )
        )
        whole = hashlib.sha256()
        for file in files:
            with (folder / file).open("rb") as stream:
                inner = hashlib.file_digest(stream, "sha256").hexdigest()
            whole.update(f"{inner} {file.as_posix()}\0".encode())
        return cls(folder, name, files, whole.hexdigest()[:32])

    def write_tar(self, stream: IO[bytes]) -> None:
        """Write the files as a tar archive below a folder `name`; the user's ids and times stay at home."""

        def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = 0
            info.mode = 0o644
            return info

        with tarfile.open(fileobj=stream, mode="w|", dereference=True) as archive:
            for file in self.files:
                archive.add(self.folder / file, f"{self.name}/{file.as_posix()}", filter=anonymous)

"""A bundle as one file: what comes out is what went in, and an archive that was tampered with leaves nothing."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import edgec_runtime
import pytest
from edgec_runtime import __main__
from edgec_runtime.archive import pack, unpack
from edgec_runtime.errors import (
    BundleError,
    BundleNotFound,
    FileDamaged,
    FolderInTheWay,
    ManifestInvalid,
    PartMissing,
    UnsafePath,
)

Change = Callable[[dict[str, bytes]], None]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rewritten(archive: Path, change: Change) -> Path:
    """A copy of `archive` with other entries."""
    with zipfile.ZipFile(archive) as packed:
        entries = {name: packed.read(name) for name in packed.namelist()}
    change(entries)
    other = archive.with_name("changed.zip")
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return other


@pytest.fixture
def archive(bundle: Path, tmp_path: Path) -> Path:
    pack(bundle, tmp_path / "bundle.zip")
    return tmp_path / "bundle.zip"


def test_round_trip(bundle: Path, archive: Path, tmp_path: Path) -> None:
    folder = edgec_runtime.unpack(archive, tmp_path / "deep" / "again")
    assert folder == tmp_path / "deep" / "again" and _files(folder) == _files(bundle)
    with edgec_runtime.load(folder) as again, edgec_runtime.load(bundle) as before:
        assert (again.embed(["a fox"]) == before.embed(["a fox"])).all()
    assert archive.stat().st_size < sum(map(len, _files(bundle).values()))
    with zipfile.ZipFile(archive) as packed:  # any tool can open it
        assert packed.testzip() is None and packed.namelist()[0] == "manifest.json"


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, archive: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "elsewhere"))
    (copy / "unlisted.txt").write_text("an editor's backup")
    os.utime(copy / "manifest.json", (1e9, 1e9))
    (copy / "tokenizer.json").chmod(0o600)
    assert pack(copy, tmp_path / "other.zip") == archive.stat().st_size
    assert (tmp_path / "other.zip").read_bytes() == archive.read_bytes()


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(FileDamaged):
        pack(bundle, tmp_path / "bundle.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def _rename(name: str, new: str) -> Change:
    def change(entries: dict[str, bytes]) -> None:
        entries[new] = entries.pop(name)

    return change


def _put(name: str, content: bytes) -> Change:
    return lambda entries: entries.update({name: content})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_rename("tokenizer.json", "../tokenizer.json"), UnsafePath, "may leave the bundle"),
        (_rename("tokenizer.json", "/tmp/tokenizer.json"), UnsafePath, "may leave the bundle"),
        (_rename("tokenizer.json", "a\\..\\..\\b"), UnsafePath, "may leave the bundle"),
        (_rename("tokenizer.json", "C:/b"), UnsafePath, "may leave the bundle"),
        (_put("folder/", b""), UnsafePath, "may leave the bundle"),
        (_put("more.txt", b"?"), FileDamaged, "'more.txt', which its manifest does not list"),
        (_put("tokenizer.json", b"0" * (1 << 22)), FileDamaged, "tokenizer.json is larger than"),
        (_put("tokenizer.json", b"{}"), FileDamaged, "2 bytes instead of"),
        (lambda entries: entries.pop("tokenizer.json"), PartMissing, "is missing"),
        (_put("manifest.json", b"{}"), ManifestInvalid, "manifest.json"),
        (_rename("manifest.json", "manifest.txt"), BundleNotFound, "holds no manifest.json"),
    ],
)
def test_what_is_refused_leaves_nothing(
    change: Change, error: type[BundleError], message: str, archive: Path, tmp_path: Path
) -> None:
    other = _rewritten(archive, change)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        unpack(other, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    assert not Path("/tmp/tokenizer.json").exists()


def test_a_link_in_the_archive_becomes_a_plain_file_that_does_not_fit(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        entries = {name: packed.read(name) for name in packed.namelist()}
    other = tmp_path / "link.zip"
    with zipfile.ZipFile(other, "w") as packed:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            is_link = name == "tokenizer.json"
            info.external_attr = (0o120777 if is_link else 0o100644) << 16
            packed.writestr(info, b"/etc/passwd" if is_link else content)
    with pytest.raises(FileDamaged, match="11 bytes instead of"):
        unpack(other, tmp_path / "out")


def test_an_archive_that_is_none_or_not_whole(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    for broken in (b"", b"no zip", content[:-40], content[:500] + b"\0" * 50 + content[550:]):
        (tmp_path / "broken.zip").write_bytes(broken)
        with pytest.raises(FileDamaged, match="cannot be unpacked"):
            unpack(tmp_path / "broken.zip", tmp_path / "out")
    with pytest.raises(BundleNotFound, match="is not a file"):
        unpack(tmp_path / "none.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(bundle: Path, archive: Path) -> None:
    before = _files(bundle)
    with pytest.raises(FolderInTheWay):
        unpack(archive, bundle)
    assert _files(bundle) == before


def test_the_command(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["unpack", str(archive), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert __main__.main(["unpack", str(archive), str(tmp_path / "out")]) == 2
    assert "hint: remove it, or unpack elsewhere" in capsys.readouterr().err

"""What `edgec doctor --install-emulator` says where it cannot work, and that it does no work twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgec.devices import sysroot
from edgec.errors import DeviceError


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    return folder


def script(folder: Path, name: str, text: str = "") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_what_is_missing_is_named_with_its_remedy(tools: Path) -> None:
    with pytest.raises(DeviceError, match="qemu-aarch64") as caught:
        sysroot.install(print)
    assert "qemu-user" in caught.value.hint
    script(tools, "qemu-aarch64")
    with pytest.raises(DeviceError, match="not a Debian system"):
        sysroot.install(print)
    assert "doctor --install-emulator" in (sysroot.missing() or "")


def test_a_failed_download_tells_why_and_leaves_nothing_half_made(tools: Path) -> None:
    script(tools, "qemu-aarch64")
    script(tools, "dpkg-deb")
    script(tools, "apt-get", 'echo "W: noise" >&2; echo "E: Could not resolve host" >&2; exit 100')
    with pytest.raises(DeviceError, match="E: Could not resolve host") as caught:
        sysroot.install(lambda line: None)
    assert "noise" not in caught.value.message
    assert "--install-emulator" in caught.value.hint
    assert not (sysroot.sysroot_folder() / "root").exists()
    assert sysroot.missing() is not None


def test_a_cache_that_cannot_be_written_is_an_error(tools: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("qemu-aarch64", "dpkg-deb", "apt-get"):
        script(tools, name)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "file"))
    with pytest.raises(DeviceError) as caught:
        sysroot.install(lambda line: None)
    assert "EDGEC_CACHE" in caught.value.hint


def test_what_stands_is_not_installed_again(tools: Path) -> None:
    root = sysroot.sysroot_folder() / "root"
    root.mkdir(parents=True)
    said: list[str] = []
    assert sysroot.install(said.append) == root  # no tool is on the PATH: anything that ran one would fail
    assert len(said) == 1


def test_another_version_of_a_wheel_is_another_sysroot(tools: Path, monkeypatch) -> None:
    folder = sysroot.sysroot_folder()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    assert sysroot.sysroot_folder() != folder

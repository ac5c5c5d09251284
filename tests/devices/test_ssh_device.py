"""A throwaway sshd on this machine is a real device: connection, copies, environment, measuring, failures."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sshd
from edgec_runtime.errors import BundleNotFound, UnsafePath
from tiny_bundles import seal, write_bundle

from edgec.devices import compare, open_device
from edgec.devices.ssh import SshDevice
from edgec.errors import DeviceError, UserError

MISSING = sshd.why_not()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    """Its sessions find this test run's python3, with all packages, first in PATH."""
    folder, home = tmp_path_factory.mktemp("sshd"), tmp_path_factory.mktemp("home")
    with sshd.serve(folder, home, f"{Path(sys.executable).parent}:/usr/bin:/bin") as running:
        yield running


@pytest.fixture(autouse=True)
def options(server: sshd.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_SSH_OPTIONS", server.options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "it's a bundle; $HOME", "feature-extraction")


@pytest.fixture
def device(server: sshd.Server) -> Iterator[SshDevice]:
    with open_device(server.url) as opened:
        assert isinstance(opened, SshDevice)
        yield opened


def test_facts_are_those_of_the_device(device: SshDevice) -> None:
    with open_device("local") as local:
        here = local.facts()
    there = device.facts()
    for fact in ("cpu", "arch", "features", "cores", "memory_mb", "versions"):
        assert there[fact] == here[fact]


def test_a_placed_bundle_is_the_same_and_passes_its_check(device: SshDevice, bundle: Path) -> None:
    placed = device.place(bundle)
    assert contents(Path(placed)) == contents(bundle)
    done = device.runtime(["check", placed, "--json", "-"])
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["ok"]


def test_the_same_content_is_copied_once(device: SshDevice, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "some bundle", "feature-extraction")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_bytes(b"\x00content")
    seal(folder)
    first = Path(device.place(folder))
    before = first.stat()
    assert device.place(folder) == str(first)
    assert first.stat() == before
    (folder / "sub" / "file").write_bytes(b"\x00changed")
    seal(folder)
    second = Path(device.place(folder))
    assert second != first
    assert (first / "sub" / "file").read_bytes() == b"\x00content"
    assert (second / "sub" / "file").read_bytes() == b"\x00changed"


def test_only_whole_bundles_are_sent(server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a home folder, nor what a bundle links to outside of itself, nor what lies beside its files."""
    monkeypatch.setenv("EDGEC_DEVICE_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("private")
    folder = write_bundle(tmp_path / "bundle", "feature-extraction")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(home / "letter.txt")
    seal(folder)
    with open_device(server.url) as device:
        for path, error in ((home, BundleNotFound), (folder, UnsafePath)):
            with pytest.raises(error):
                device.place(path)
        assert not contents(tmp_path / "cache")
        (folder / "README.md").unlink()
        seal(folder)
        (folder / "link").symlink_to(home)
        placed = Path(device.place(folder))
    assert sorted(contents(placed)) == ["golden.npz", "manifest.json", "model.onnx", "tokenizer.json"]


def test_bundles_are_measured_there(device: SshDevice, bundle: Path, server: sshd.Server) -> None:
    lines: list[str] = []
    report = compare.bench(device, [bundle, bundle], tokens=(4, 8), rounds=2, cold_start=False, on_line=lines.append)
    assert report.device == server.url
    assert report.data["device"] == server.url
    assert [one.path for one in report.bundles] == [bundle, bundle]
    assert set(report.bundles[0].shapes) == {(1, 4), (1, 8)}
    assert set(report.bundles[0].schedules) == {"streams", "batches"}
    assert lines


def test_nothing_is_left_outside_the_cache_folder(
    server: sshd.Server, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    before = set(Path("/tmp").iterdir())
    with open_device(server.url) as device:
        assert device.runtime(["check", device.place(bundle)]).code == 0
    assert [path.relative_to(server.home).as_posix() for path in folders_with_files(server.home)] == [".cache/edgec"]
    assert not list((server.home / ".cache/edgec/content").glob("new.*"))
    assert not [path for path in set(Path("/tmp").iterdir()) - before if path.name.startswith("edgec-ssh-")]


def test_another_cache_folder(
    server: sshd.Server, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEC_DEVICE_CACHE", str(tmp_path / "a cache"))
    with open_device(server.url) as device:
        assert device.place(bundle).startswith(str(tmp_path / "a cache"))
    monkeypatch.setenv("EDGEC_DEVICE_CACHE", "~/under home")
    with open_device(server.url) as device:
        assert device.place(bundle).startswith(str(server.home / "under home"))
    monkeypatch.setenv("EDGEC_DEVICE_CACHE", "/dev/null/cache")
    with pytest.raises(DeviceError, match="/dev/null/cache"), open_device(server.url):
        pass


def test_a_program_that_fails_reports_its_code_and_words(device: SshDevice, tmp_path: Path) -> None:
    done = device.runtime(["check", str(tmp_path / "no such bundle")])
    assert done.code == 2
    assert "no such bundle" in done.stderr


def test_the_end_of_the_connection_ends_the_program(device: SshDevice, bundle: Path) -> None:
    """As Ctrl-C does: the ssh client goes, and sshd does not tell the program."""
    placed = device.place(bundle)
    with pytest.raises(DeviceError, match="no end after"):
        device.runtime(["bench", placed, "--rounds", "10000000"], timeout=4)
    deadline = time.monotonic() + 20
    while running(placed) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(placed)


def test_a_device_whose_python_lacks_the_packages_gets_them_or_says_why(
    server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a package index: pip's own words, and a half-made environment is not taken for a whole one."""
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("EDGEC_DEVICE_PYTHON", str(bare))
    monkeypatch.setenv("EDGEC_DEVICE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        with (
            open_device(server.url) as device,
            pytest.raises(DeviceError, match="No matching distribution") as failed,
        ):
            device.facts()
    assert "package index" in failed.value.hint
    assert failed.value.exit_code == 3


def test_a_device_without_python(server: sshd.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_DEVICE_PYTHON", "no-such-python")
    monkeypatch.setenv("EDGEC_DEVICE_CACHE", "~/empty")
    with open_device(server.url) as device, pytest.raises(DeviceError, match="no-such-python"):
        device.facts()


def test_a_port_that_nobody_listens_on(server: sshd.Server) -> None:
    with (
        pytest.raises(DeviceError, match="Connection refused") as refused,
        open_device("ssh://me@127.0.0.1:1"),
    ):
        pass
    assert refused.value.exit_code == 3
    assert refused.value.hint


def test_a_host_whose_key_is_not_known(server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_SSH_OPTIONS", f"{server.options} -o UserKnownHostsFile={tmp_path / 'none'}")
    with pytest.raises(DeviceError, match="Host key verification failed"), open_device(server.url):
        pass


def test_no_ssh_client(server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="not installed"), open_device(server.url):
        pass


@pytest.mark.parametrize(
    "url",
    [
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://a@-x",
        "ssh://-l@a",
        "ssh://a b",
        "ssh://a:port",
        "ssh://a/b",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UserError, match="not an ssh device"):
        open_device(url)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folders_with_files(home: Path) -> list[Path]:
    """The folders at depth two, or above where a file stands, that hold files."""
    files = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    return sorted({home.joinpath(*file.parts[:2]) for file in files})


def running(argument: str) -> bool:
    """Whether a process has this argument."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if argument.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    return True
            except OSError:
                continue
    return False

"""The arm64 system that emulated devices run in: Debian's Python, and arm64 wheels of the runtime's needs.

    <cache>/emulator/<versions>/root         shared by all CPUs: Python, numpy, onnxruntime, tokenizers
    <cache>/emulator/<versions>/cpus/<cpu>   links into root, and the /proc and /sys files of one CPU

It is downloaded only on request (`edgec doctor --install-emulator`). apt-get works on a state of its own:
nothing is installed on the host, and its package database is neither read nor written.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgec.errors import DeviceError

QEMU = "qemu-aarch64"
WHEELS = ("numpy", "onnxruntime", "tokenizers")
# Python itself and its libraries come as dependencies; onnxruntime and tokenizers ask for libstdc++.
PACKAGES = ("{python}-minimal", "lib{python}-stdlib", "libstdc++6")
PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
INSTALL = "edgec doctor --install-emulator"
INSTALL_QEMU = "apt-get install qemu-user"
# Raised when what stands in a sysroot changes without a version of a wheel changing.
LAYOUT = 1


def cache_folder() -> Path:
    """Where edgec keeps what it can make again: $EDGEC_CACHE, else ~/.cache/edgec."""
    return Path(os.environ.get("EDGEC_CACHE") or "~/.cache/edgec").expanduser().absolute()


def sysroot_folder() -> Path:
    """The folder of the sysroot that holds the same versions as this Python; it need not exist.

    Raises DeviceError where one of the packages is not installed here.
    """
    versions = "_".join(f"{name}-{version}" for name, version in wheel_versions())
    return cache_folder() / "emulator" / f"{versions}_layout-{LAYOUT}"


def wheel_versions() -> tuple[tuple[str, str], ...]:
    """Name and installed version of each package that the sysroot takes over."""
    try:
        return tuple((name, importlib.metadata.version(name)) for name in WHEELS)
    except importlib.metadata.PackageNotFoundError as error:
        raise DeviceError(
            f"the emulated device copies this Python's version of {error.name}, which is not installed",
            f"pip install {error.name}",
        ) from None


def find_qemu() -> str:
    """The path of the emulator. Raises DeviceError where it is missing."""
    found = shutil.which(QEMU)
    if found is None:
        raise DeviceError(f"{QEMU} is not installed", INSTALL_QEMU)
    return found


def guest_python(root: Path) -> Path:
    """The arm64 interpreter below a sysroot."""
    found = sorted((root / "usr/bin").glob("python3.[0-9]*[0-9]"))
    if not found:
        raise DeviceError(f"{root} holds no Python", f"remove {root.parent} and run `{INSTALL}` again")
    return found[0]


def guest_packages(root: Path) -> Path:
    """Where the arm64 wheels stand in a sysroot."""
    return root / "usr/local/lib/wheels"


def installed_root() -> Path:
    """The root folder of the sysroot. Raises DeviceError where it was not installed."""
    root = sysroot_folder() / "root"
    if not root.is_dir():
        raise DeviceError(f"the arm64 system for emulated devices is not installed ({root})", INSTALL)
    return root


def missing() -> str | None:
    """What emulated devices lack on this machine, and the remedy; None where they work."""
    try:
        find_qemu()
        installed_root()
    except DeviceError as error:
        return f"{error.message}: {error.hint}"
    return None


def install(say: Callable[[str], None]) -> Path:
    """Download and unpack the sysroot (about 60 MB) unless it stands already; returns its root.

    What was downloaded stays for the next try until one succeeds. Raises DeviceError with the remedy where a
    tool is missing or a download fails.
    """
    folder = sysroot_folder()
    root = folder / "root"
    if root.is_dir():
        say(f"the arm64 system is installed: {root}")
        return root
    find_qemu()
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DeviceError(
                f"there is no {tool}: this is not a Debian system",
                "the arm64 system is made of Debian packages; install it on Debian or in a Debian container",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder / "lock"):
            if not root.is_dir():
                _build(folder, say)
    except OSError as error:
        raise DeviceError(f"cannot write the arm64 system to {folder}: {error}", "set EDGEC_CACHE") from error
    return root


def _build(folder: Path, say: Callable[[str], None]) -> None:
    partial = folder / "root.partial"
    shutil.rmtree(partial, ignore_errors=True)
    downloads = folder / "downloads"
    say("downloading Debian arm64 packages")
    for archive in _download_packages(downloads):
        _call(["dpkg-deb", "--extract", str(archive), str(partial)], "unpacking a Debian package failed")
    _merge_library_folders(partial)
    python = guest_python(partial)
    say(f"downloading arm64 wheels: {', '.join(f'{n} {v}' for n, v in wheel_versions())}")
    _install_wheels(guest_packages(partial), python.name.removeprefix("python"))
    _drop_unused(partial)
    partial.rename(folder / "root")
    shutil.rmtree(downloads)
    say(f"the arm64 system is installed: {folder / 'root'}")


def _download_packages(state: Path) -> list[Path]:
    """Fetch the arm64 packages and all they depend on."""
    archives = state / "cache/archives"
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "1",
        "Dir::State": str(state),
        "Dir::State::lists": str(state / "lists"),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state / "cache"),
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    failed = "Debian's arm64 packages could not be downloaded"
    _call(["apt-get", *options, "-qq", "update"], failed)
    depends = _call(["apt-cache", *options, "depends", "python3-minimal"], failed)
    names = [word.removesuffix("-minimal") for word in depends.split() if word.startswith("python3.")]
    if not names:
        raise DeviceError(failed, "the package sources of this system offer no python3 for arm64")
    packages = [package.format(python=names[0]) for package in PACKAGES]
    _call(["apt-get", *options, "-qq", "-y", "--download-only", "install", *packages], failed)
    return sorted(archives.glob("*.deb"))


def _merge_library_folders(root: Path) -> None:
    """Debian 13 packs all below usr, and makes the links that lead there only when a system is installed."""
    for name in ("bin", "lib", "sbin"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")


def _install_wheels(folder: Path, python_version: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--root-user-action=ignore"]
    command += ["--implementation=cp", f"--python-version={python_version}", "--target", str(folder)]
    command += [option for platform in PLATFORMS for option in ("--platform", platform)]
    command += [f"{name}=={version}" for name, version in wheel_versions()]
    _call(command, "the arm64 wheels could not be downloaded")


def _drop_unused(root: Path) -> None:
    for name in ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale"):
        shutil.rmtree(root / name, ignore_errors=True)


def _call(command: Sequence[str], failed: str) -> str:
    """Run a tool and return its stdout; its own last words go into the DeviceError when it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "ERROR:"))] or lines[-1:]
        raise DeviceError(
            f"{failed}: {'; '.join(errors[:3]) or f'{command[0]} ended with code {done.returncode}'}",
            f"check the network and the package sources, then run `{INSTALL}` again: it continues",
        )
    return done.stdout


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Two installations at a time would write into each other's downloads: the second waits for the first."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

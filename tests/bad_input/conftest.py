"""Tiny models, the bundles that `edgec export` made of them, and disks that do not take what is written."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgec_command import edgec, servers

from edgec.target import Target


@pytest.fixture(scope="session", autouse=True)
def command_servers(exports: Path) -> Iterator[None]:
    with servers(exports):
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`embedding`, `classification`, `tags` and `answers`: tiny model folders, not to be changed."""
    from tiny_models import sentence_transformer, tiny

    folder = tmp_path_factory.mktemp("models")
    sentence_transformer(folder / "embedding")
    tiny("bert", "text-classification", folder / "classification", num_hidden_layers=1)
    tiny("bert", "token-classification", folder / "tags", num_hidden_layers=1)
    tiny("bert", "question-answering", folder / "answers", num_hidden_layers=1)
    return folder


@pytest.fixture(scope="session")
def bundles(models: Path, here: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`embedding`, made by the command, `classification`, `tags` and `answers`: fp32 bundles for this machine, not to
    be changed."""
    from float_bundles import write_float_bundle

    from edgec.models import load_model

    folder = tmp_path_factory.mktemp("bundles")
    done = edgec("export", models / "embedding", "--target", here.name, "--out", folder / "embedding", cwd=folder)
    assert done.code == 0, done.stderr
    write_float_bundle(load_model(models / "classification"), folder / "classification", ["Ada walked"])
    write_float_bundle(load_model(models / "tags"), folder / "tags", ["Ada walked"])
    question = {"question": "Who walked?", "context": "Ada walked"}
    write_float_bundle(load_model(models / "answers"), folder / "answers", [question])
    return folder


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    """A copy of the embedding model, to be spoilt."""
    return shutil.copytree(models / "embedding", tmp_path / "model")


@pytest.fixture
def bundle(bundles: Path, tmp_path: Path) -> Path:
    """A copy of the embedding bundle, to be spoilt."""
    return shutil.copytree(bundles / "embedding", tmp_path / "bundle")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to: permissions do not stop root, a read-only disk does."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.getuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
    else:
        _mount(folder, "ro")
        yield folder
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount(folder, "size=64k")
    yield folder
    subprocess.run(["umount", folder], check=True)


def _mount(folder: Path, options: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.strip()}")

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_bundles import GOLDEN, write_bundle


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle of every task; not to be changed."""
    root = tmp_path_factory.mktemp("bundles")
    return {task: write_bundle(root / task, task) for task in GOLDEN}


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A sentence-embedding bundle that the test may damage."""
    return Path(shutil.copytree(bundles["feature-extraction"], tmp_path / "bundle"))

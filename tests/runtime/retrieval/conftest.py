from __future__ import annotations

from pathlib import Path

import pytest
from decoupled_bundle import write_decoupled
from edgec_runtime import index
from retrieval_documents import DOCUMENTS


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoupled bundle that tells where there is no answer; not to be changed."""
    return write_decoupled(tmp_path_factory.mktemp("decoupled") / "bundle")


@pytest.fixture(scope="session")
def kept(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of DOCUMENTS in float16; not to be changed."""
    folder = tmp_path_factory.mktemp("stores") / "kept"
    index(bundle, DOCUMENTS, folder, states="float16")
    return folder


@pytest.fixture
def store(bundle: Path, tmp_path: Path) -> Path:
    """A store of DOCUMENTS that the test may change."""
    index(bundle, DOCUMENTS, tmp_path / "store")
    return tmp_path / "store"

"""One export of each family, which several files look at: tracing takes most of their time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from tiny_models import SENTENCES, tiny

from edgec.exporter import Exporter
from edgec.models import load_model
from edgec.passes import Quantize, run_pass
from edgec.state import PassContext


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exporter]:
    """The Exporter of a family's feature-extraction model, static int8; made once, not to be changed."""

    @cache
    def make(family: str) -> Exporter:
        folder = tmp_path_factory.mktemp(family)
        state = load_model(tiny(family, "feature-extraction", folder / "model"))
        return Exporter(run_pass(Quantize(), state, PassContext(folder, SENTENCES)), name=family)

    return make

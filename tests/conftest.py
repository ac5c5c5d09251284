"""The environment that the tests share, and the one tiny export that several files look at.

torch is imported by the fixtures that need it: most files do without.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# Before torch: on tiny models its threads wait for each other longer than they compute, most of all while other test
# processes want the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where it is set, each of the many processes that the tests start would compile all of edgec's modules once more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import edgec_runtime  # noqa: F401 - before onnxruntime: it sets what onnxruntime reads when it loads
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from second_process import SecondExport

    from edgec.exporter import Exporter
    from edgec.state import ModelState
    from edgec.target import Target


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has them ignore Ctrl-C, and so all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Every training ends with a full garbage collection, which would visit all that torch and transformers have
    loaded: half a second each time."""
    gc.freeze()


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch exported in this test run."""
    own = tmp_path_factory.getbasetemp()  # with xdist a folder in that of the run
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module", autouse=True)
def exported_once(exports: Path) -> None:
    """See traced_once. Where nothing has imported torch by now, nothing of this module exports, or another process."""
    torch: Any = sys.modules.get("torch.onnx")
    if torch is None or hasattr(torch.export, "__wrapped__"):
        return
    from traced_once import once

    torch.export = once(torch.export, exports)


@pytest.fixture(scope="session")
def here() -> Target:
    """The target of this architecture whose int8 sums are exact on all of its machines."""
    from edgec_runtime.cpu import architecture

    from edgec.target import load_target

    return load_target("arm64" if architecture() == "aarch64" else "x86_64-avx2")


@pytest.fixture(scope="session")
def foreign() -> Target:
    """A target of the other architecture: nothing is ever measured for it here."""
    from edgec_runtime.cpu import architecture

    from edgec.target import load_target

    return load_target("x86_64-avx2" if architecture() == "aarch64" else "arm64")


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    """A tiny BERT for feature-extraction, static int8; no layer is small enough to be taken for a head."""
    from tiny_models import SENTENCES, tiny

    from edgec.models import load_model
    from edgec.passes import Quantize, run_pass
    from edgec.state import PassContext

    folder = tmp_path_factory.mktemp("quantized")
    state = load_model(tiny("bert", "feature-extraction", folder / "source", intermediate_size=32))
    return run_pass(Quantize(), state, PassContext(folder, SENTENCES))


@pytest.fixture(scope="session")
def exporter(quantized: ModelState) -> Exporter:
    """Of `quantized`, traced once; not to be changed."""
    from edgec.exporter import Exporter

    return Exporter(quantized, name="tiny")


@pytest.fixture(scope="session")
def second_export(quantized: ModelState, here: Target, tmp_path_factory: pytest.TempPathFactory) -> SecondExport:
    """The bundle of `quantized` for `here`, and its traced graph, made by another process from a saved build."""
    from second_process import export_again

    return export_again(quantized, here, tmp_path_factory.mktemp("second"))

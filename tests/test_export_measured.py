"""`export` that measures: a speed-up that is missed is refused, or fp32 ships."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgec_runtime.check import check
from tiny_models import SENTENCES, tiny

import edgec
from edgec.errors import BudgetMissed, UserError
from edgec.models import load_model, save_build
from edgec.passes import Quantize, run_pass
from edgec.state import PassContext
from edgec.target import Target


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    state = load_model(tiny("bert", "feature-extraction", folder / "plain"))
    save_build(run_pass(Quantize(), state, PassContext(folder, SENTENCES)), folder / "model")
    return folder / "model"


def test_a_missed_speed_up_writes_nothing(build: Path, here: Target, tmp_path: Path) -> None:
    with pytest.raises(BudgetMissed, match=r"x fp32 \(p10 .*x the plain export on local.* where 99x is asked for"):
        edgec.export(build, target=here.name, out=tmp_path / "out", on="local", forms="default", speedup=99)
    assert list(tmp_path.iterdir()) == []


def test_a_missed_speed_up_falls_back(build: Path, here: Target, tmp_path: Path) -> None:
    said: list[str] = []
    manifest = edgec.export(
        build,
        target=here.name,
        out=tmp_path / "out",
        on="local",
        forms="default",
        speedup=99,
        on_miss="fallback",
        say=said.append,
    )
    assert manifest.parts[0].precision == "fp32" and manifest.measured
    assert any("the speed-up is missed, fp32 ships instead" in line for line in said)
    assert check(tmp_path / "out").ok


def test_what_cannot_be_measured_is_told(build: Path, here: Target, foreign: Target, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a device"):
        edgec.export(build, target=here.name, out=tmp_path / "out", speedup=2)
    with pytest.raises(UserError, match=f"local is not of the target {foreign.name}"):
        edgec.export(build, target=foreign.name, out=tmp_path / "out", on="local")
    assert list(tmp_path.iterdir()) == []

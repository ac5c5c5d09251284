"""`edgec.sensitivity` and the command: from a model or a build to a table, a JSON file and a chart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scaled_channel import TEXTS, WORST, plain_model, scale_channel

import edgec
from edgec.cli.main import invoke
from edgec.cli.sensitivity import bar
from edgec.errors import DataError, RecipeError, UserError
from edgec.models import save_build
from edgec.passes import Quantize, run_pass
from edgec.ranking import LayerSensitivity, Ranking
from edgec.ranking.measure import rank
from edgec.ranking.plot import draw
from edgec.ranking.result import spans
from edgec.state import ModelState, PassContext

PATH = WORST.partition(":")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """texts.txt, source (a model in float) and build (quantized without its embeddings)."""
    root = tmp_path_factory.mktemp("source")
    (root / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    state = scale_channel(plain_model(root / "plain", num_hidden_layers=1))
    save_build(state, root / "source")
    step = Quantize(embeddings=False)
    save_build(run_pass(step, state, PassContext(root, TEXTS)), root / "build")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_source_is_quantized_as_asked(folder: Path) -> None:
    found = edgec.sensitivity(
        folder / "source", folder / "texts.txt", rows=6, options=["embeddings=false", "skip=['*.query', '*.key']"]
    )
    state = run_pass(
        Quantize(embeddings=False, skip=("*.query", "*.key")), _source(folder), PassContext(folder, TEXTS[:6])
    )
    assert found.layers == rank(state, TEXTS[:6]).layers
    assert found.layers[0].layer == WORST
    dynamic = edgec.sensitivity(folder / "source", folder / "texts.txt", rows=3, scheme="dynamic")
    assert {layer.scheme for layer in dynamic.layers} == {"dynamic-token", "weight-only"}


def _source(folder: Path) -> ModelState:
    from edgec.models import load_model

    return load_model(folder / "source")


def test_a_build_keeps_its_decision_and_a_run_its_layers(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = edgec.sensitivity(folder / "build", folder / "texts.txt", rows=4)
    assert len(found.layers) == 6
    assert not [layer for layer in found.layers if "embeddings" in layer.layer]
    (kept,) = (cache / "sensitivity").iterdir()
    before = kept.stat().st_mtime_ns
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(line.replace('"drop": 0.', '"drop": 7.') for line in lines) + "\n")
    assert edgec.sensitivity(folder / "build", folder / "texts.txt", rows=4).layers[0].drop > 7, "it was taken up"
    again = edgec.sensitivity(folder / "build", folder / "texts.txt", rows=4, resume=False)
    assert again.layers == found.layers
    assert kept.stat().st_mtime_ns != before
    reduced = edgec.sensitivity(folder / "build", folder / "texts.txt", rows=4, target="x86_64-avx2")
    assert reduced.layers != found.layers


def test_mistakes_are_told(folder: Path) -> None:
    data = folder / "texts.txt"
    with pytest.raises(UserError, match="is quantized already") as caught:
        edgec.sensitivity(folder / "build", data, scheme="static")
    assert "leave the options of quantize out" in caught.value.hint
    with pytest.raises(RecipeError, match="schema: unknown key") as unknown:
        edgec.sensitivity(folder / "absent", data, options=["schema=static", "smooth_alpha=2"])
    assert "docs/passes/quantize.md" in unknown.value.hint
    with pytest.raises(RecipeError, match="the options of quantize: smooth_alpha should be"):
        edgec.sensitivity(folder / "absent", data, options=["smooth_alpha=2"])
    with pytest.raises(RecipeError, match="should be KEY=VALUE"):
        edgec.sensitivity(folder / "absent", data, options=["smooth"])
    with pytest.raises(DataError, match="no such file"):
        edgec.sensitivity(folder / "absent", folder / "absent.txt")
    with pytest.raises(UserError, match="no target"):
        edgec.sensitivity(folder / "absent", data, target="absent")


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["sensitivity", str(folder / "build"), "--data", str(folder / "texts.txt"), "--rows", "4"]
    files = ["--plot", str(tmp_path / "new" / "chart.svg"), "--json", str(tmp_path / "ranking.json")]
    assert invoke([*call, *files]) == 0
    shown = capsys.readouterr()
    assert "written to" in shown.err
    told = json.loads((tmp_path / "ranking.json").read_text())
    rows = [
        line.split() for line in shown.out.splitlines() if line.split()[:1] and line.split()[0].startswith("model.")
    ]
    assert [row[0] for row in rows] == [layer["layer"] for layer in told["layers"]]
    assert rows[0][:2] == [PATH, "static"]
    assert rows[0][2] == f"{told['layers'][0]['drop']:.2e}"
    bars = [line.count("█") for line in shown.out.splitlines() if "█" in line]
    assert bars[0] == 24
    assert bars == sorted(bars, reverse=True)
    chart = (tmp_path / "new" / "chart.svg").read_text()
    assert PATH in chart
    assert invoke([*call, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--plot", "chart.jpg"], "does not tell the format"),
        (["--plot", f"{__file__}/chart.svg"], "is not a folder"),
        (["--rows", "0"], "Invalid value for '--rows'"),
    ],
)
def test_bad_options_are_told_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert invoke(["sensitivity", str(folder / "absent"), "--data", str(folder / "texts.txt"), *more]) in (2, 3)
    assert said in capsys.readouterr().err


def of(*drops: float) -> Ranking:
    layers = [LayerSensitivity(f"p:layer{i}.dense", "static", drop, 0.5, 1, 4) for i, drop in enumerate(drops)]
    return Ranking("made-up", "cosine", 9, tuple(layers), 1.0)


def test_scales() -> None:
    assert spans([0.02, 0.01, 0.0]) == (0.0, 0.02, False)
    assert spans([0.02, 0.0002, -1e-9]) == (0.0, 0.02, False)
    assert spans([0.02, 0.00019]) == (pytest.approx(1e-4), 0.02, True)
    assert spans([0.0, -1e-8])[2] is False
    assert [bar(x, 0.0, 0.02, False) for x in (0.02, 0.01, 0.0, -1.0)] == ["█" * 24, "█" * 12, "", ""]
    assert [len(bar(x, 1e-4, 1e-2, True)) for x in (1e-2, 1e-3, 1e-4, 0.0)] == [24, 12, 0, 0]


@pytest.mark.parametrize("drops", [(0.02, 0.01), (0.5, 0.001, 0.0, -1e-9), (0.0, 0.0)])
def test_charts(tmp_path: Path, drops: tuple[float, ...]) -> None:
    for name in ("a.svg", "b.svg", "c.png", "d.pdf"):
        draw(of(*drops), tmp_path / name)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text(), "no dates, no random names"
    assert all(f"layer{i}.dense" in svg for i in range(len(drops)))
    assert "made-up: what each layer costs" in svg
    assert ("logarithmic" in svg) == (max(drops) / 100 > 0.001)
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "d.pdf").read_bytes()[:4] == b"%PDF"
    with pytest.raises(UserError, match="format of the plot"):
        draw(of(*drops), tmp_path / "e.gif")

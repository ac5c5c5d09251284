"""compress from a recipe to a report on tiny models."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import edgec_runtime
import numpy as np
import pytest
from edgec_runtime import integrity
from edgec_runtime.check import check
from edgec_runtime.manifest import MANIFEST_FILE
from exact import answers_right
from tiny_models import SENTENCES, sentence_transformer, tiny
from typer.testing import CliRunner

import edgec
from edgec.cli.main import app
from edgec.devices import sysroot
from edgec.devices.local import LocalDevice
from edgec.errors import BudgetMissed, GateFailed, ModelError, OutputExists, RecipeError, UserError
from edgec.models import load_model
from edgec.pipeline import require_budget
from edgec.report import Report, rows, warnings
from edgec.target import Target, misfits

pytestmark = pytest.mark.filterwarnings("ignore::edgec_runtime.BundleWarning")


class Workshop:
    """A folder with a tiny sentence-transformer, texts, and recipes written into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sentence_transformer(folder / "model", prompts={"query": "find "}, default_prompt=None)
        (folder / "texts.txt").write_text("\n".join(SENTENCES) + "\n")

    def recipe(self, name: str, targets: list[str], *, budget: str = "{}", evaluate: str = "{text: texts.txt}") -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(
            "edgec: 1\n"
            "model: {source: ./model, task: feature-extraction}\n"
            f"data: {{calibrate: {{text: texts.txt}}, evaluate: {evaluate}}}\n"
            "passes:\n  - quantize: {scheme: static}\n"
            f"targets: [{', '.join(targets)}]\n"
            f"budget: {budget}\n"
        )
        return path


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def fitting(here: Target) -> Target:
    """`here`, where this machine is really of that class."""
    with LocalDevice() as device:
        if reasons := misfits(here, device.facts()):
            pytest.skip(f"this machine is not of the target {here.name}: {reasons[0]}")
    return here


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(workshop: Workshop, fitting: Target, foreign: Target, said: list[str]) -> Report:
    """A whole run: one target that this machine can measure, and one that it cannot."""
    recipe = workshop.recipe(
        "whole", [fitting.name, foreign.name], budget="{accuracy_drop: 0.2, size_mb: 0.001, speedup: 0.001}"
    )
    return edgec.compress(recipe, out=workshop.folder / "out", say=said.append)


def test_what_compress_leaves(report: Report, workshop: Workshop, here: Target, foreign: Target) -> None:
    out = workshop.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("baseline", "bundles", "model", "report.html", "report.json")
    ]
    assert sorted(path.name for path in (out / "bundles").iterdir()) == sorted([here.name, foreign.name])
    assert (report.out, report.measured) == (out, here.name)
    assert [path.name for path in workshop.folder.iterdir() if path.name.startswith(".")] == []
    for folder in (out / "baseline", out / "bundles" / here.name, out / "bundles" / foreign.name):
        assert answers_right(folder)
    assert integrity.read_manifest(out / "baseline").parts[0].precision == "fp32"
    assert report.bundles[here.name] == integrity.read_manifest(out / "bundles" / here.name)
    assert report.bundles[here.name].parts[0].precision == "int8"
    assert report.bundles[here.name].name == "whole"


def test_only_what_ran_here_is_called_measured(report: Report, here: Target, foreign: Target) -> None:
    assert report.bundles[here.name].measured is True
    assert report.bundles[foreign.name].measured is False
    # Nothing was measured for it, so it has the forms that its target says.
    assert report.bundles[foreign.name].parts[0].forms["gelu"] == foreign.forms.gelu
    assert report.baseline.measured is False
    assert report.bundles[here.name].execution.schedule in ("streams", "batches")


def test_quality_is_the_cosine_against_fp32(report: Report, here: Target) -> None:
    with (
        edgec_runtime.load(report.out / "baseline", schedule="streams") as before,
        edgec_runtime.load(report.out / "bundles" / here.name, schedule="streams") as after,
    ):
        a, b = before.embed(SENTENCES), after.embed(SENTENCES)
    cosine = float(np.mean((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))
    quality = report.bundles[here.name].quality
    assert quality is not None and (quality.metric, quality.before, quality.n) == ("cosine", 1.0, len(SENTENCES))
    assert quality.after == pytest.approx(cosine, abs=1e-5)
    assert quality.drop == pytest.approx(1 - cosine, abs=1e-5)


def test_report_json(report: Report, workshop: Workshop, here: Target, foreign: Target) -> None:
    data = json.loads((report.out / "report.json").read_text())
    assert data == json.loads(json.dumps(report.data))
    assert data["command"] == f"edgec compress --recipe {workshop.folder}/whole.yaml"
    assert data["recipe"]["passes"] == [{"quantize": {"scheme": "static"}}]
    assert (data["device"], data["measured"], data["fell_back"]) == ("local", here.name, [])
    assert data["machine"]["arch"] == here.arch
    assert [one["target"] for one in data["bundles"]] == [here.name, foreign.name]
    assert [record["name"] for record in data["passes"]] == ["quantize"]
    assert data["passes"][0]["report"]["left_alone"]
    assert [len(one["shapes"]) for one in data["bench"]["bundles"]] == [2, 2, 2]  # 16 tokens, and the model's 32
    assert data["source"]["sha256"] == load_model(workshop.folder / "model").spec.sha256
    size = sum(path.stat().st_size for path in (report.out / "baseline").iterdir() if path.name != "manifest.json")
    assert data["baseline"]["bytes"] == size


def test_verdicts_of_a_whole_run(report: Report, here: Target, foreign: Target) -> None:
    met = {(v.target, v.what): v.met for v in report.verdicts}
    assert met == {
        (here.name, "accuracy_drop"): True,
        (here.name, "size_mb"): False,
        (here.name, "speedup"): True,
        (foreign.name, "accuracy_drop"): True,
        (foreign.name, "size_mb"): False,
        (foreign.name, "speedup"): None,
    }
    with pytest.raises(BudgetMissed, match=rf"{here.name}: size_mb 0\.\d+ misses the budget of 0\.001") as caught:
        require_budget(report)
    assert foreign.name in caught.value.message and "on_miss: fallback" in caught.value.hint
    assert caught.value.exit_code == 1


def test_the_table_of_a_whole_run(report: Report, here: Target, foreign: Target) -> None:
    baseline, measured, other = rows(report)
    assert baseline[0] == "fp32 baseline" and measured[0] == here.name
    assert "x" in measured[4] and other[4] == "not measured here"


def test_progress_names_every_step(report: Report, said: list[str], here: Target, foreign: Target) -> None:
    steps = [
        "load ",
        "pass quantize",
        "trace",
        f"export for {here.name}",
        f"export for {foreign.name}",
        "save",
        "answer",
    ]
    steps += [f"verify {here.name} on local", f"measure {here.name} against fp32"]
    found = [next(i for i, line in enumerate(said) if line.startswith(step)) for step in steps]
    assert found == sorted(found)
    assert said[-1] == "write the report page"
    assert [line for line in said if line.startswith("verify ")] == [f"verify {here.name} on local"]


def test_what_fits_the_device_was_verified_there(report: Report, here: Target) -> None:
    found = check(report.out / "bundles" / here.name)
    mine, other = (one["verified"] for one in report.data["bundles"])
    # Another process may sum floats from other addresses, which moves the last bits.
    near = {name: pytest.approx(getattr(found, name), abs=1e-6) for name in ("max_abs", "min_cosine")}
    assert mine == {"device": "local", **near}
    assert other is None and "verified" not in report.data["baseline"]


class Strict(LocalDevice):
    """This machine, where every bundle asks for answers nearer than near."""

    def place(self, folder: Path) -> str:
        placed = folder.parent / "placed"
        shutil.copytree(folder, placed)
        manifest = integrity.read_manifest(placed)
        golden = dataclasses.replace(manifest.golden, min_cosine=1.5)
        (placed / MANIFEST_FILE).write_text(dataclasses.replace(manifest, golden=golden).sealed().to_text())
        return str(placed)


def test_answers_that_the_device_does_not_reproduce_end_the_run(
    workshop: Workshop, fitting: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.pipeline.open_device", lambda url: Strict())
    said: list[str] = []
    told = rf"{fitting.name} on local: .*the worst output is 'sentence_embedding'"
    with pytest.raises(GateFailed, match=told) as caught:
        edgec.compress(workshop.recipe("strict", [fitting.name]), out=workshop.folder / "strict", say=said.append)
    assert caught.value.exit_code == 1 and caught.value.hint
    assert said[-1] == f"verify {fitting.name} on local" and not (workshop.folder / "strict").exists()


@pytest.mark.emulated
@pytest.mark.skipif(sysroot.missing() is not None, reason=str(sysroot.missing()))
def test_an_emulated_device_verifies_and_times_nothing(workshop: Workshop) -> None:
    cpu = "qemu://cortex-a72"
    report = edgec.compress(workshop.recipe("emulated", ["arm64"]), out=workshop.folder / "emulated", on=cpu)
    (one,) = report.data["bundles"]
    assert one["verified"]["device"] == cpu and 0 <= one["verified"]["max_abs"] <= one["golden"]["max_abs"]
    assert report.bench is None and report.measured is None and not one["measured"]


def test_a_schedule_of_the_recipe_is_not_measured_over(
    workshop: Workshop, fitting: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.pipeline.SCHEDULE_GAIN", float("inf"))  # by measurement it would be streams
    recipe = workshop.recipe("schedule", [fitting.name])
    report = edgec.compress(recipe, out=workshop.folder / "schedule", overrides=["export.schedule=batches"])
    manifest = report.bundles[fitting.name]
    assert (manifest.measured, manifest.execution.schedule) == (True, "batches")


def test_settings_of_question_answering_reach_the_bundle(foreign: Target, tmp_path: Path) -> None:
    tiny("bert", "question-answering", tmp_path / "model", num_hidden_layers=1)
    recipe = tmp_path / "reader.yaml"
    recipe.write_text(
        f"edgec: 1\nmodel: {{source: ./model}}\ntargets: [{foreign.name}]\n"
        "export: {null_answers: true, max_answer_tokens: 7, stride: 9}\n"
    )
    report = edgec.compress(recipe, out=tmp_path / "out", overrides=["export.compressed=true"])
    manifest = report.bundles[foreign.name]
    archive = tmp_path / "out" / "bundles" / f"{foreign.name}.zip"
    assert report.data["bundles"][0]["archive_bytes"] == archive.stat().st_size
    assert integrity.read_manifest(edgec_runtime.unpack(archive, tmp_path / "unpacked")) == manifest
    post = manifest.postprocessing
    assert (post.null_answers, post.max_answer_tokens, manifest.preprocessing.stride) == (True, 7, 9)
    words = ["export", str(tmp_path / "model"), "--target", foreign.name, "--out", str(tmp_path / "bundle")]
    done = CliRunner().invoke(app, [*words, "--null-answers", "--max-answer-tokens", "5"])
    assert done.exit_code == 0, done.exception
    post = integrity.read_manifest(tmp_path / "bundle").postprocessing
    assert (post.null_answers, post.max_answer_tokens) == (True, 5)


@pytest.mark.parametrize("words", [["export", "--target", "arm64"], ["evaluate", "--data", "texts.txt"]])
def test_a_revision_reaches_the_model_source(words: list[str], workshop: Workshop) -> None:
    done = CliRunner().invoke(app, [*words, str(workshop.folder / "model"), "--revision", "v1"])
    assert isinstance(done.exception, ModelError)
    assert "revision 'v1' was given" in done.exception.message


def test_export_of_a_build_is_what_compress_exported(
    report: Report, foreign: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = edgec.export(report.out, target=foreign.name)
    folder = tmp_path / f"model-{foreign.name}"
    assert answers_right(folder) and manifest == integrity.read_manifest(folder)
    first = report.bundles[foreign.name]
    assert (manifest.build_id, manifest.passes) == (first.build_id, first.passes)
    for name in ("encoder.onnx", "encoder.onnx.data", "tokenizer.json", "golden.npz"):
        assert (folder / name).read_bytes() == (report.out / "bundles" / foreign.name / name).read_bytes()


# Budgets, labels and refusals, for a target that nothing is measured for.


def _compress(workshop: Workshop, name: str, foreign: Target, budget: str, **options: Any) -> Report:
    recipe = workshop.recipe(name, [foreign.name], budget=budget)
    return edgec.compress(recipe, out=workshop.folder / name, **options)


def test_a_missed_budget_falls_back_to_fp32(workshop: Workshop, foreign: Target) -> None:
    report = _compress(
        workshop,
        "fallback",
        foreign,
        "{accuracy_drop: 0, speedup: 9, put_back: none, on_miss: fallback}",
        overrides=["export.schedule=batches"],
    )
    assert report.data["fell_back"] == [foreign.name] and report.measured is None
    shipped = integrity.read_manifest(report.out / "bundles" / foreign.name)
    assert shipped == report.bundles[foreign.name] and shipped.parts[0].precision == "fp32"
    assert shipped.execution.schedule == "batches"
    assert answers_right(report.out / "bundles" / foreign.name)
    require_budget(report)  # what ships is within it
    assert {v.what: v.met for v in report.verdicts} == {"accuracy_drop": False, "speedup": None}
    assert report.data["bundles"][0]["precision"] == "fp32"


def test_a_budget_that_is_met(workshop: Workshop, foreign: Target) -> None:
    report = _compress(workshop, "met", foreign, "{accuracy_drop: 0.2, size_mb: 5, on_miss: fallback}")
    require_budget(report)
    assert report.data["fell_back"] == [] and report.bench is None
    assert report.bundles[foreign.name].parts[0].precision == "int8"
    assert all(verdict.met for verdict in report.verdicts)


def test_refusals_come_before_any_work(workshop: Workshop, foreign: Target, tmp_path: Path) -> None:
    recipe = workshop.recipe("early", [foreign.name])
    (tmp_path / "out").mkdir()

    def never(message: str) -> None:
        raise AssertionError(f"work has begun: {message}")

    with pytest.raises(OutputExists):
        edgec.compress(recipe, out=tmp_path / "out", say=never)
    with pytest.raises(RecipeError, match="smoothing"):
        edgec.compress(recipe, out=tmp_path / "new", overrides=["passes.0.smoothing=[]"], say=never)
    with pytest.raises(UserError, match="no such kind of device"):
        edgec.compress(recipe, out=tmp_path / "new", on="usb://1", say=never)
    with pytest.raises(UserError, match="there is no recipe named 'minilm-int'"):
        edgec.compress("minilm-int", out=tmp_path / "new", say=never)
    with pytest.raises(UserError, match="there is no target named"):
        edgec.export(workshop.folder / "model", target="arm65", out=tmp_path / "new", say=never)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_static_without_texts(workshop: Workshop, foreign: Target, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"edgec: 1\nmodel: {{source: {workshop.folder}/model}}\npasses: [quantize]\ntargets: [{foreign.name}]\n"
    )
    with pytest.raises(UserError, match="static quantization needs calibration texts"):
        edgec.compress(recipe, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_what_passes_cost_before_int8_is_told_apart(workshop: Workshop, foreign: Target) -> None:
    recipe = workshop.recipe(
        "pruned", [foreign.name], budget="{accuracy_drop: 0.0001, put_back: none, on_miss: fallback}"
    )
    report = edgec.compress(
        recipe,
        out=workshop.folder / "pruned",
        overrides=["passes=[{prune: {structure: layers, keep: 1, select: first}}, {quantize: {scheme: static}}]"],
    )
    original = report.data["original"]
    assert original["before_pass"] == "prune" and original["parameters"] > original["parameters_after"]
    quality = original["quality"]
    assert quality["metric"] == "cosine" and quality["before"] == 1.0 and quality["drop"] > 0.001
    assert rows(report)[0][0] == "before prune" and rows(report)[1][7] == f"cosine {quality['after']:.4f}"
    assert any(told.startswith("the passes cost") for told in warnings(report))
    page = (workshop.folder / "pruned" / "report.html").read_text()
    assert "What the passes cost in float" in page

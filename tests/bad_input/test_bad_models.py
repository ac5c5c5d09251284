"""Models that cannot be taken, through the command; tests/models has every way a folder can be broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgec_command import Done, assert_refused, edgec, tree

from edgec.models import FAMILIES, TASKS


def export(folder: Path, source: str | Path, *args: str) -> Done:
    return edgec("export", source, "--target", "arm64", "--out", "out", *args, cwd=folder)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folder_without_weights(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (tmp_path / "recipe.yaml").write_text("edgec: 1\nmodel: {source: ./model}\ntargets: [arm64]\n")
    before = tree(tmp_path)
    done = edgec("compress", "--recipe", "recipe.yaml", "--out", "out", cwd=tmp_path)
    assert_refused(done, 2, "model holds no weights", "model.safetensors")
    assert tree(tmp_path) == before


def test_tokenizer_of_another_model(model: Path, tmp_path: Path) -> None:
    edit(model / "config.json", vocab_size=100)
    assert_refused(export(tmp_path, "model"), 2, "model: the tokenizer does not fit the model", "ids up to")
    assert not (tmp_path / "out").exists()


def test_family_and_task_that_are_not_supported(models: Path, tmp_path: Path) -> None:
    model = shutil.copytree(models / "classification", tmp_path / "model")
    assert_refused(export(tmp_path, "model", "--task", "translation"), 2, "'translation' is not supported", *TASKS)
    edit(model / "config.json", model_type="t5", architectures=["T5EncoderModel"])
    assert_refused(export(tmp_path, "model"), 2, "config.json: the model family 't5' is not supported", *FAMILIES)
    assert not (tmp_path / "out").exists()


def test_model_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(export(tmp_path, "./gone"), 2, "there is no folder ./gone")
    assert_refused(export(tmp_path, "org/gone"), 2, "org/gone is no folder here, and the hub could not be reached")


def test_static_quantization_without_calibration_texts(model: Path, tmp_path: Path) -> None:
    recipe = "edgec: 1\nmodel: {source: ./model}\npasses: [quantize]\ntargets: [arm64]\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    before = tree(tmp_path)
    done = edgec("compress", "--recipe", "recipe.yaml", "--out", "out", cwd=tmp_path)
    assert_refused(done, 2, "static quantization needs calibration texts", "data.calibrate")
    assert tree(tmp_path) == before

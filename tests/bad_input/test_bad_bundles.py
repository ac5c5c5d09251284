"""Bundles that were cut short, changed, or written by a later edgec."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from edgec_command import assert_refused, edgec

FILES = (
    "LICENSES",
    "README.md",
    "encoder.onnx",
    "encoder.onnx.data",
    "golden.npz",
    "manifest.json",
    "tokenizer.json",
)


def test_files_of_a_bundle(bundle: Path) -> None:
    assert tuple(sorted(path.name for path in bundle.iterdir())) == FILES


@pytest.mark.parametrize("name", FILES)
def test_file_cut_short(name: str, bundle: Path, tmp_path: Path) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(edgec("run", bundle, "text", cwd=tmp_path), 1, str(path))


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_gone(name: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / name).unlink()
    found = 2 if name == "manifest.json" else 1
    assert_refused(edgec("run", bundle, "text", cwd=tmp_path), found, name)


def test_every_command_refuses_a_bundle_cut_short(bundle: Path, tmp_path: Path) -> None:
    graph = bundle / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    (tmp_path / "data.csv").write_text("a,b,score\nAda,Bern,1\n")
    data = ["--data", "data.csv", "--text", "a", "--text-pair", "b"]
    for command in (["verify", bundle], ["audit", bundle], ["bench", bundle], ["evaluate", bundle, *data]):
        assert_refused(edgec(*command, cwd=tmp_path), 1, str(graph), "bytes instead of")


def test_bundle_of_a_newer_format(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["format"] += 1
    path.write_text(json.dumps(manifest))
    assert_refused(edgec("run", bundle, "text", cwd=tmp_path), 1, f"format {manifest['format']}", "update")
    assert_refused(edgec("verify", bundle, cwd=tmp_path), 1, f"format {manifest['format']}", "update")


def test_empty_folder_and_model_folder(models: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", models / "embedding"):
        assert_refused(edgec("run", folder, "text", cwd=tmp_path), 2, str(folder), "manifest.json")
        assert_refused(edgec("verify", folder, cwd=tmp_path), 2, str(folder), "manifest.json")


def test_build_that_was_changed(model: Path, bundle: Path, tmp_path: Path) -> None:
    """A build is the other folder that edgec writes and reads."""
    shutil.copy(model / "config.json", bundle)
    digest = hashlib.sha256((bundle / "config.json").read_bytes()).hexdigest()
    (bundle / "edgec.json").write_text(json.dumps({"edgec": 4, "files": {"config.json": digest}, "digest": "0"}))
    done = edgec("export", bundle, "--target", "arm64", "--out", "out", cwd=tmp_path)
    assert_refused(done, 2, "edgec.json was changed after it was written")
    assert not (tmp_path / "out").exists()

"""Every model that cannot be taken: one clear error, with the place and a remedy."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny

from edgec.errors import ModelError
from edgec.models import FAMILIES, TASKS, load_model


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _only_tensorflow(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tf_model.h5")


def _slow_tokenizer(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    edit(folder / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="basic")


def _short_embedding(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=100)


def _renamed_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.wrong"] = tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


Break = Callable[[Path], object]
_BROKEN: dict[str, tuple[Break, str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "weights of another format": (_only_tensorflow, r"holds no weights \(it holds tf_model.h5"),
    "weights cut short": (lambda f: _cut(f / "model.safetensors"), "the weights in .* cannot be loaded"),
    "Git LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n"),
        "is a Git LFS pointer",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config cut short": (lambda f: _cut(f / "config.json"), "config.json cannot be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "should hold a JSON object"),
    "config with a wrong type": (
        lambda f: edit(f / "config.json", hidden_size="wide"),
        "config.json is not a bert configuration",
    ),
    "quantized already": (
        lambda f: edit(f / "config.json", quantization_config={"bits": 4}),
        "quantized already",
    ),
    "decoder": (lambda f: edit(f / "config.json", is_decoder=True), "is a decoder"),
    "relative positions": (
        lambda f: edit(f / "config.json", position_embedding_type="relative_key"),
        "position_embedding_type 'relative_key' is not supported",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    "tokenizer cut short": (lambda f: _cut(f / "tokenizer.json"), "the tokenizer in .* cannot be loaded"),
    "slow tokenizer": (_slow_tokenizer, "BertJapaneseTokenizer has no fast form"),
    "tokenizer of another model": (_short_embedding, "gives ids up to 156, the model has 100 embeddings"),
    "no padding token": (lambda f: edit(f / "tokenizer_config.json", pad_token=None), "has no padding token"),
    "tokenizer with code": (
        lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.T", None]}),
        "the tokenizer is code of the model's own",
    ),
    "left truncation": (lambda f: edit(f / "tokenizer_config.json", truncation_side="left"), "on the left"),
    "another shape": (
        lambda f: edit(f / "config.json", intermediate_size=48),
        r"do not fit config.json: .*intermediate.dense.* is \(64,\), not \(48,\)",
    ),
    "a tensor is missing": (_renamed_tensor, "its weights lack encoder.layer.1.output.dense.weight"),
}


@pytest.mark.parametrize("case", _BROKEN)
def test_broken_folder_is_refused(case: str, tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path)
    spoil, message = _BROKEN[case]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert caught.value.exit_code == 2


def test_padding_id_that_positions_are_not_counted_from(tmp_path: Path) -> None:
    folder = tiny("roberta", "feature-extraction", tmp_path)
    edit(folder / "config.json", pad_token_id=0)
    with pytest.raises(ModelError, match=r"pads with id 1, config\.json says 0"):
        load_model(folder)


def test_new_head_is_an_error_that_names_its_tensors(tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path)
    with pytest.raises(ModelError, match=r"not trained for text-classification.* classifier.bias, classifier.weight"):
        load_model(folder, task="text-classification")


def test_mask_token_is_needed_to_fill_masks(tmp_path: Path) -> None:
    folder = tiny("bert", "fill-mask", tmp_path)
    edit(folder / "tokenizer_config.json", mask_token=None)
    with pytest.raises(ModelError, match="no mask token"):
        load_model(folder)


def test_unknown_task_and_family_list_those_supported(tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path)
    with pytest.raises(ModelError, match="'translation' is not supported") as caught:
        load_model(folder, task="translation")
    assert all(task in caught.value.hint for task in TASKS)
    edit(folder / "config.json", model_type="t5")
    with pytest.raises(ModelError, match="family 't5' is not supported") as caught:
        load_model(folder)
    assert all(family in caught.value.hint for family in FAMILIES)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("BertForMultipleChoice", "its task, multiple-choice, is not supported"),
        ("BertForPreTraining", r"cannot be told from its architecture \(BertForPreTraining\)"),
        ("NoSuchModel", r"cannot be told from its architecture \(NoSuchModel\)"),
    ],
)
def test_architecture_without_a_supported_task(architecture: str, message: str, tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path)
    edit(folder / "config.json", architectures=[architecture])
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_regression_head(tmp_path: Path) -> None:
    folder = tiny("bert", "text-classification", tmp_path, problem_type="regression")
    with pytest.raises(ModelError, match="a regression head"):
        load_model(folder)


class _Attack:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.touched),))


def test_pickled_code_in_weights_is_not_run(tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": _Attack(tmp_path / "touched")}, protocol=2))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)
    assert not (tmp_path / "touched").exists()


def test_missing_shard(tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-00001-of-00001\.safetensors is missing"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="names no files of this folder"):
        load_model(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./no/such/folder", "there is no folder ./no/such/folder"),
        ("/no/such/folder", "there is no folder"),
        ("pkg://no_such_package_here/model", "no_such_package_here of .* is not installed"),
        ("pkg://not-a-name/model", "names no package"),
        ("pkg://json/../..", "leaves its package"),
    ],
)
def test_source_that_is_not_there(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(source)
    assert caught.value.hint
    if "installed" in message:
        assert caught.value.hint == "pip install no-such-package-here"


def test_file_bundle_and_misplaced_revision(tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path / "model")
    with pytest.raises(ModelError, match="is a file, not a model folder"):
        load_model(folder / "config.json")
    with pytest.raises(ModelError, match="revision 'main' was given"):
        load_model(folder, revision="main")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="is a bundle"):
        load_model(bundle)

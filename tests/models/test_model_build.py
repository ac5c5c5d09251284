"""A build is the whole state in a folder: read back equal, byte for byte the same, refused when changed."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import pytest
import torch
from edgec_runtime.manifest import PassRecord
from tiny_models import SENTENCES, sentence_transformer, tiny

from edgec.errors import ModelError, SystemFailure
from edgec.models import load_build, load_model, save_build
from edgec.state import LayerQuantization, ModelState, Quantization

_QUANTIZATION = Quantization(
    "static",
    {
        "encoder:model.encoder.layer.0.output.dense": LayerQuantization("linear", input_range=(-1.25, 3.1)),
        "encoder:model.embeddings.word_embeddings": LayerQuantization("embedding", "weight-only"),
    },
)


def _compressed(folder: Path) -> ModelState:
    state = load_model(
        sentence_transformer(folder, prompts={"query": "find: "}, default_prompt="query", do_lower_case=True)
    )
    with torch.no_grad():
        state.parts["encoder"].model.encoder.layer[0].output.dense.weight.mul_(0.5)
    spec = dataclasses.replace(state.spec, license_text="LICENSE:\n\nAs you like it.\n")
    record = PassRecord("quantize", {"scheme": "static"}, {"layers": 13, "seconds": 1e-05})
    return dataclasses.replace(state, spec=spec, quantization=_QUANTIZATION, history=(record,))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_state_survives_the_folder(tmp_path: Path) -> None:
    state = _compressed(tmp_path / "source")
    save_build(state, tmp_path / "build")
    for again in (load_build(tmp_path / "build"), load_model(tmp_path / "build")):
        assert again.spec == state.spec
        assert again.quantization == _QUANTIZATION
        assert again.history == state.history
        assert again.tokenizer.backend_tokenizer.to_str() == state.tokenizer.backend_tokenizer.to_str()
        found = again.parts["encoder"].state_dict()
        expected = state.parts["encoder"].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_labels_and_no_quantization(tmp_path: Path) -> None:
    state = load_model(tiny("xlm-roberta", "token-classification", tmp_path / "source"))
    save_build(state, tmp_path / "build")
    again = load_build(tmp_path / "build")
    assert (again.spec, again.quantization, again.history) == (state.spec, None, ())
    encoded = state.tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"].int(), encoded["attention_mask"].int()
    with torch.no_grad():
        assert torch.equal(again.parts["encoder"](ids, mask)[0], state.parts["encoder"](ids, mask)[0])


def test_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    save_build(_compressed(tmp_path / "source"), tmp_path / "one")
    save_build(_compressed(tmp_path / "source"), tmp_path / "two")
    save_build(load_build(tmp_path / "one"), tmp_path / "three")
    assert _files(tmp_path / "one") == _files(tmp_path / "two") == _files(tmp_path / "three")
    here = str(tmp_path / "one").encode()
    assert not any(here in content for content in _files(tmp_path / "one").values())


def test_max_length_of_a_build_may_be_lowered_and_its_task_is_fixed(tmp_path: Path) -> None:
    save_build(load_model(sentence_transformer(tmp_path / "source")), tmp_path / "build")
    assert load_model(tmp_path / "build", max_length=16).spec.max_length == 16
    with pytest.raises(ModelError, match="max_length 33 is not possible"):
        load_model(tmp_path / "build", max_length=33)
    with pytest.raises(ModelError, match="was built for feature-extraction, not for fill-mask"):
        load_model(tmp_path / "build", task="fill-mask")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_changed_file_is_refused(name: str, tmp_path: Path) -> None:
    save_build(load_model(tiny("bert", "feature-extraction", tmp_path / "source")), tmp_path / "build")
    path = tmp_path / "build" / name
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(ModelError, match=f"{name} was changed after the build was written"):
        load_model(tmp_path / "build")
    path.unlink()
    with pytest.raises(ModelError, match=f"the file {name} of the build .* is missing"):
        load_model(tmp_path / "build")


def test_changed_description_is_refused(tmp_path: Path) -> None:
    save_build(load_model(tiny("bert", "feature-extraction", tmp_path / "source")), tmp_path / "build")
    where = tmp_path / "build" / "edgec.json"
    text = where.read_text()
    contents = json.loads(text)
    for changed, message in [
        (text.replace('"mean"', '"max"'), "was changed after it was written"),
        (text + " ", "was changed after it was written"),
        (text[:-20], "cannot be read"),
        ("{}", "was changed after it was written"),
        (json.dumps(contents | {"extra": 1}, indent=1) + "\n", "was changed after it was written"),
        (json.dumps(contents | {"edgec": 5}), "is of build format 5; this edgec reads 4"),
    ]:
        where.write_text(changed)
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path / "build")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "source"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # as a full disk: a write ends in an error
    try:
        with pytest.raises(SystemFailure, match="the model cannot be written to"):
            save_build(state, tmp_path / "build")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "build" / "edgec.json").exists()
    with pytest.raises(SystemFailure, match="the model cannot be written to"):
        save_build(state, tmp_path / "source" / "config.json" / "build")


def test_weights_lie_alike_whatever_file_they_came_from(tmp_path: Path) -> None:
    """A product differs in its last bits with the alignment of its matrix; then so would calibrated ranges."""
    state = load_model(tiny("bert", "fill-mask", tmp_path / "source"))
    save_build(state, tmp_path / "build")
    for one in (state, load_build(tmp_path / "build")):
        assert {p.data_ptr() % 64 for p in one.parts["encoder"].parameters()} == {0}
        model = one.parts["encoder"].model
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight

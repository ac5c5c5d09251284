"""What load_model reads out of a folder, a package and the hub's cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import LABELS, MAX_TOKENS, SENTENCES, tiny
from transformers.utils import logging

from edgec.errors import ModelError
from edgec.models import load_model
from edgec.state import ModelState


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    data = json.loads(path.read_text()) if path.exists() else {}
    data |= changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def logits(state: ModelState, texts: list[str]) -> torch.Tensor:
    part = state.parts["encoder"]
    encoded = state.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        result: torch.Tensor = part(*(encoded[name].int() for name in part.input_names))[0]
    return result


def test_spec_of_a_classifier(tmp_path: Path) -> None:
    folder = tiny("bert", "text-classification", tmp_path / "reviews")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Reviews\n")
    spec = load_model(folder).spec
    assert (spec.name, spec.source, spec.task, spec.license) == (
        "reviews",
        str(folder),
        "text-classification",
        "mit",
    )
    assert spec.labels == LABELS["text-classification"]
    assert spec.pairs and not spec.multi_label and spec.pooling is None
    assert spec.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_licence_files_reach_the_spec(tmp_path: Path) -> None:
    folder = tiny("bert", "fill-mask", tmp_path / "m")
    assert load_model(folder).spec.license_text is None
    (folder / "NOTICE").write_text("Made by Ada.\n")
    (folder / "LICENSE.txt").write_bytes(b"As you like it, Z\xfcrich.\n")
    text = "LICENSE.txt:\n\nAs you like it, Z\ufffdrich.\n\nNOTICE:\n\nMade by Ada.\n"
    assert load_model(folder).spec.license_text == text
    (folder / "LICENSE.txt").write_text("x" * 256_001)
    cut = load_model(folder).spec.license_text
    assert cut is not None and cut.count("x" * 1000) == 256
    assert cut.count("the rest is left out here") == 2 and "NOTICE:" in cut and "Ada" not in cut


def test_feature_extraction_without_modules_json_is_mean_pooling_unnormalised(tmp_path: Path) -> None:
    spec = load_model(tiny("mpnet", "feature-extraction", tmp_path)).spec
    assert (spec.pooling, spec.normalize, spec.labels) == ("mean", False, None)


def test_asked_task_wins_over_the_architecture(tmp_path: Path) -> None:
    folder = tiny("electra", "fill-mask", tmp_path)
    assert load_model(folder).spec.task == "fill-mask"
    assert load_model(folder, task="feature-extraction").spec.task == "feature-extraction"


def test_labels_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    folder = tiny("bert", "text-classification", tmp_path)
    edit(folder / "config.json", id2label={"2": "c", "0": "a", "1": "b"}, label2id={"a": 0, "b": 1, "c": 2})
    assert load_model(folder).spec.labels == ("a", "b", "c")


def test_multi_label(tmp_path: Path) -> None:
    folder = tiny("bert", "text-classification", tmp_path, problem_type="multi_label_classification")
    assert load_model(folder).spec.multi_label


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("bert", {"model_max_length": 40}, 40),
        ("bert", {"model_max_length": int(1e30)}, MAX_TOKENS),
        ("roberta", {"model_max_length": int(1e30)}, MAX_TOKENS),
        ("mpnet", {"model_max_length": 500}, MAX_TOKENS),
    ],
)
def test_max_length_is_what_tokenizer_and_positions_allow(
    family: str, changes: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    folder = tiny(family, "feature-extraction", tmp_path)
    edit(folder / "tokenizer_config.json", **changes)
    assert load_model(folder).spec.max_length == expected


def test_max_length_may_only_be_lowered(tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path)
    state = load_model(folder, max_length=10)
    assert state.spec.max_length == 10
    assert len(state.tokenizer(SENTENCES[3], truncation=True)["input_ids"]) == 10
    for wrong in (MAX_TOKENS + 1, 2):
        with pytest.raises(ModelError, match=f"max_length {wrong} is not possible.* from 3 to {MAX_TOKENS}"):
            load_model(folder, max_length=wrong)


def test_padding_and_truncation_written_into_tokenizer_json_are_off(tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path)
    padding = {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    edit(folder / "tokenizer.json", padding=padding)
    backend = load_model(folder).tokenizer.backend_tokenizer
    assert backend.padding is None and backend.truncation is None
    assert len(backend.encode("Yes.").ids) < 10


def test_torch_weights_and_shards_give_the_same_model(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    folder = tiny("bert", "text-classification", tmp_path / "one")
    expected = logits(load_model(folder), list(SENTENCES))
    model = BertForSequenceClassification.from_pretrained(folder)

    pickled = Path(shutil.copytree(folder, tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    assert torch.equal(logits(load_model(pickled), list(SENTENCES)), expected)

    sharded = Path(shutil.copytree(folder, tmp_path / "sharded"))
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="40KB")
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 1
    state = load_model(sharded)
    assert torch.equal(logits(state, list(SENTENCES)), expected)
    assert state.spec.sha256 == hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    from transformers import BertModel

    folder = tiny("bert", "feature-extraction", tmp_path)
    BertModel.from_pretrained(folder).half().save_pretrained(folder)
    assert {p.dtype for p in load_model(folder).parts["encoder"].parameters()} == {torch.float32}


def test_sha256_pin(tmp_path: Path) -> None:
    folder = tiny("bert", "feature-extraction", tmp_path)
    found = load_model(folder).spec.sha256
    assert found is not None and load_model(folder, sha256=found.upper()).spec.sha256 == found
    with pytest.raises(ModelError, match=f"sha256 of model.safetensors is {found}, not {'0' * 64}"):
        load_model(folder, sha256="0" * 64)


def test_model_of_an_installed_package_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_models"
    tiny("distilbert", "feature-extraction", package / "small")
    (package / "__init__.py").write_text("raise RuntimeError('the package was run')")
    monkeypatch.syspath_prepend(tmp_path)
    spec = load_model("pkg://some_models/small").spec
    assert (spec.name, spec.source, spec.family) == ("some-models", "pkg://some_models/small", "distilbert")
    assert "some_models" not in sys.modules
    with pytest.raises(ModelError, match="has no folder large"):
        load_model("pkg://some_models/large")


def test_hub_model_from_the_cache_while_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--somebody--small"
    tiny("bert", "feature-extraction", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = load_model("somebody/small").spec
    assert (spec.name, spec.source, spec.revision) == ("small", "somebody/small", commit)
    with pytest.raises(ModelError, match="the hub could not be reached") as caught:
        load_model("somebody/other")
    assert "give its folder" in caught.value.hint


def test_output_of_compress_is_found_one_folder_down(tmp_path: Path) -> None:
    from edgec.models import save_build

    save_build(load_model(tiny("bert", "feature-extraction", tmp_path / "m")), tmp_path / "out" / "model")
    assert load_model(tmp_path / "out").spec.name == "m"


def test_loading_says_nothing_and_leaves_logging_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny("bert", "fill-mask", tmp_path)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_model(folder, task="feature-extraction")  # transformers would report the head that it leaves out
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_code_of_a_model_folder_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tiny("bert", "feature-extraction", tmp_path / "model")
    edit(folder / "config.json", auto_map={"AutoModel": "mine.MyModel"})
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(
        f"from transformers import BertModel\nopen({str(ran)!r}, 'w').close()\nclass MyModel(BertModel):\n    pass\n"
    )
    with pytest.raises(ModelError, match="code of its own") as caught:
        load_model(folder)
    assert "trust_remote_code=True" in caught.value.hint and not ran.exists()
    assert load_model(folder, trust_remote_code=True).spec.family == "bert"
    assert ran.exists()

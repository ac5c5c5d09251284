"""The align pass: its phases, what learns and what stays, on LoRA and on int8, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, LABELS, SENTENCES, tiny

from edgec.data.examples import Answer, Example, Labelled, Question, Tagged
from edgec.errors import DataError, ModelError, PassError, UserError
from edgec.models import load_build, load_model, save_build
from edgec.nn.layout import base_path
from edgec.passes import Align, Finetune, FuseAdapters, Lora, Quantize, run_pass
from edgec.state import ModelState, PassContext, TrainingData
from edgec.training import callbacks

ROWS: dict[str, tuple[Labelled, ...]] = {
    "token-classification": tuple(
        Tagged(tuple(text.split()), tuple("B-LOC" if word.istitle() else "O" for word in text.split()))
        for text in SENTENCES
    ),
    "text-classification": tuple(Example(text, label=("a", "b")["!" in text]) for text in SENTENCES),
    "question-answering": (
        Question("1", "Who works?", "Ada works in Bern", (Answer("Ada", 0),)),
        Question("2", "Who reads?", "Ada works in Bern"),
    ),
    "feature-extraction": (Example("Ada works", "Ada lives", "4.5"), Example("Yes.", "The river", "0")),
}
TAGS = "token-classification"
FEW: dict[str, Any] = {
    "units": 48, "batch_size": 3, "checks": 1, "phase1_steps": 1, "phase2_steps": 1, "steps": 1, "warmup": 0.0,
}  # fmt: skip


def wide(family: str) -> dict[str, int]:
    """Settings of a large model of width 64."""
    names = {"distilbert": ["dim"], "deberta-v2": ["hidden_size", "pooler_hidden_size"]}.get(family, ["hidden_size"])
    return dict.fromkeys(names, 64)


def context(folder: Path, task: str = TAGS, **more: Any) -> PassContext:
    data = TrainingData(train=ROWS[task], unlabelled=SENTENCES, **more)
    return PassContext(folder / "work", SENTENCES, data=data)


def tensors(state: ModelState) -> dict[str, torch.Tensor]:
    return dict(state.parts["encoder"].state_dict())


def encoder(state: ModelState) -> dict[str, torch.Tensor]:
    """The tensors below the head, by their names below the base model."""
    part: Any = state.parts["encoder"]
    found = part.get_submodule(base_path(part)).state_dict()
    return {name: tensor for name, tensor in found.items() if not name.startswith("pooler.")}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def outputs(state: ModelState) -> tuple[torch.Tensor, ...]:
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.inference_mode():
        return tuple(state.parts["encoder"](ids, mask))


def report_of(state: ModelState) -> dict[str, Any]:
    return state.history[-1].report


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    folder = tmp_path_factory.mktemp("small") / "m"
    return load_model(tiny("bert", "feature-extraction", folder, num_hidden_layers=1))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("large") / "m"
    return str(tiny("bert", "feature-extraction", folder, 1, num_hidden_layers=1, **wide("bert")))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_aligned_untouched_and_kept_in_a_build(family: str, tmp_path: Path) -> None:
    before = load_model(tiny(family, "feature-extraction", tmp_path / "small"))
    other = tiny(family, "feature-extraction", tmp_path / "large", 1, **wide(family))
    after = run_pass(Align(large=str(other), task=TAGS, window=3, **FEW), before, context(tmp_path))
    assert equal(encoder(before), encoder(after))
    assert (after.spec.task, after.spec.labels) == (TAGS, ("O", "B-LOC"))
    part: Any = after.parts["encoder"]
    assert (part.adapter.window, part.adapter.units, part.hidden_size) == (3, 48, 64)
    assert outputs(after)[0].shape == (3, 9, 2)
    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    assert again.spec == after.spec and again.history == after.history
    assert equal(tensors(again), tensors(after)) and torch.equal(outputs(again)[0], outputs(after)[0])


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_every_task_in_both_modes(mode: Any, task: Any, small: ModelState, large: str, tmp_path: Path) -> None:
    step = Align(large=large, task=task, mode=mode, phases=(3,), **FEW)
    after = run_pass(step, small, context(tmp_path, task))
    mine, yours = encoder(small), encoder(after)
    changed = [name for name in mine if not torch.equal(mine[name], yours[name])]
    assert bool(changed) == (mode == "joint")
    if changed:
        assert any("layer.0" in name for name in changed) and any("embeddings" in name for name in changed)
    assert report_of(after)["phases"]["3"]["learning_rate"] == {"frozen": 1e-4, "joint": 5e-5}[mode]
    assert all(parameter.requires_grad for parameter in after.parts["encoder"].parameters())
    shapes = {"token-classification": (3, 9, 2), "text-classification": (3, 2), "question-answering": (3, 9)}
    assert outputs(after)[0].shape == shapes.get(task, (3, 64))


def test_the_phases_bring_the_states_nearer(small: ModelState, large: str, tmp_path: Path) -> None:
    more = {**FEW, "phase1_steps": 30, "phase2_steps": 20, "phase2_learning_rate": 1e-3, "phase1_learning_rate": 1e-3}
    report = report_of(run_pass(Align(large=large, task=TAGS, **more), small, context(tmp_path)))
    first, second = report["phases"]["1"], report["phases"]["2"]
    assert first["mse"][1] < 0.9 * first["mse"][0] and first["cosine"][1] > first["cosine"][0]
    assert second["mse"][1] < second["mse"][0] and first["kept"] == second["kept"] == 1
    adapter = (5 * 32 + 1) * 48 + (48 + 1) * 64
    model = sum(p.numel() for p in load_model(large).parts["encoder"].parameters())
    assert report["parameters"] == {"adapter": adapter, "large": model, "share": round(adapter / model, 4)}


def test_what_is_not_kept_is_computed_anew(small: ModelState, large: str, tmp_path: Path) -> None:
    step = Align(large=large, task=TAGS, phases=(2, 3), **FEW)
    kept = run_pass(step, small, context(tmp_path))
    anew = run_pass(dataclasses.replace(step, cache_mb=0), small, context(tmp_path))
    assert {one["kept"] for one in report_of(anew)["phases"].values()} == {0}
    for name, tensor in tensors(kept).items():
        torch.testing.assert_close(tensors(anew)[name], tensor, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("int8", [False, True])
def test_validation_picks_the_weights_of_phase_3_alone(
    int8: bool, small: ModelState, large: str, tmp_path: Path
) -> None:
    ctx = context(tmp_path, validation=ROWS[TAGS])
    before = run_pass(Quantize(scheme="dynamic"), small, ctx) if int8 else small
    step = Align(large=large, task=TAGS, phases=(2, 3), **{**FEW, "steps": 4, "checks": 2, "learning_rate": 1e-2})
    phases = report_of(run_pass(step, before, ctx))["phases"]
    assert not phases["2"]["scores"] and phases["2"]["best_step"] is None
    scores = {int(at): found["accuracy"] for at, found in phases["3"]["scores"].items()}
    assert list(scores) == [2, 4] and scores[phases["3"]["best_step"]] == max(scores.values())


class Killed(BaseException):
    """Stands for the signal that ends a process."""


@pytest.mark.parametrize("phase", [2, 3])
def test_a_killed_run_goes_on_in_its_phase(
    phase: int, small: ModelState, large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN", 0.0)
    steps = {"phase1_steps": 2, "phase2_steps": 3, "steps": 3}
    step = Align(large=large, task=TAGS, mode="joint", **{**FEW, **steps})
    whole = run_pass(step, small, dataclasses.replace(context(tmp_path), checkpoints=tmp_path / "whole"))
    cut = dataclasses.replace(context(tmp_path), checkpoints=tmp_path / "cut")
    labels: list[str] = []

    def kill(label: str, total: int) -> Callable[[int], None]:
        def done(at: int) -> None:
            if label == f"align phase {phase}" and at == 2:
                raise Killed

        return done

    def note(label: str, total: int) -> Callable[[int], None]:
        labels.append(label)
        return lambda at: None

    with pytest.raises(Killed):
        run_pass(step, small, dataclasses.replace(cut, progress=kill))
    resumed = run_pass(step, small, dataclasses.replace(cut, progress=note))
    assert equal(tensors(whole), tensors(resumed))
    mine, yours = (report_of(state)["phases"] for state in (whole, resumed))
    for done in (mine, yours):
        del done[str(phase)]["losses"]  # those since the kill, as the Trainer counts
    assert mine == yours
    assert [label for label in labels if label.startswith("align phase")] == [
        f"align phase {left}" for left in range(phase, 4)
    ]
    assert not list((tmp_path / "cut").glob("*"))


def test_an_adapter_is_trained_on(small: ModelState, large: str, tmp_path: Path) -> None:
    """Phases 1 and 2 on a sentence encoder, which has no head, then phase 3 for a task."""
    first = run_pass(Align(large=large, phases=(1, 2), **FEW), small, context(tmp_path))
    assert first.spec.task == "feature-extraction" and not report_of(first)["new_head"]
    assert outputs(first)[0].shape == (3, 64)
    rate = {"learning_rate": 1e-9}
    second = run_pass(Align(large=large, phases=(3,), task=TAGS, **rate, **FEW), first, context(tmp_path))
    third = run_pass(Align(large=large, phases=(3,), mode="joint", **rate, **FEW), second, context(tmp_path))
    assert report_of(second)["new_head"] and not report_of(third)["new_head"]
    for name, tensor in tensors(third).items():
        if name.startswith("adapter."):
            torch.testing.assert_close(tensor, tensors(first)[name], atol=1e-6, rtol=0)
        if "classifier" in name:
            torch.testing.assert_close(tensor, tensors(second)[name], atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="an adapter of window 5 and 48 units already"):
        run_pass(Align(large=large, phases=(2,), **{**FEW, "units": 8}), first, context(tmp_path))
    with pytest.raises(UserError, match="which was made for its head"):
        run_pass(Finetune(task=TAGS, steps=1), first, context(tmp_path))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_large_models_head_serves(family: str, tmp_path: Path) -> None:
    task = "text-classification"
    before = load_model(tiny(family, "feature-extraction", tmp_path / "small"))
    other = tiny(family, task, tmp_path / "large", 1, **wide(family))
    after = run_pass(Align(large=str(other), head="large", phases=(1, 2), **FEW), before, context(tmp_path, task))
    assert after.spec.labels == LABELS[task] and not report_of(after)["new_head"]
    mine, yours = after.parts["encoder"], load_model(other).parts["encoder"]
    ids = torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    with torch.inference_mode():
        aligned: Any = mine.aligned(ids, torch.ones_like(ids))
        expected = yours.answer(aligned, torch.ones_like(ids))[0]
        assert torch.equal(mine(ids, torch.ones_like(ids))[0], expected)
    with pytest.raises(UserError, match="is a model for text-classification, and its head serves nothing else"):
        run_pass(Align(large=str(other), head="large", task=TAGS, **FEW), before, context(tmp_path))


def test_a_large_model_without_a_head_has_none_to_serve(small: ModelState, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    tagger = run_pass(Finetune(task=TAGS, steps=1, batch_size=3), small, ctx)
    encoder = str(tiny("bert", "feature-extraction", tmp_path / "encoder"))
    with pytest.raises(UserError, match="encoder has no head: it is a model for feature-extraction"):
        run_pass(Align(large=encoder, head="large", **FEW), tagger, ctx)


def test_a_head_that_is_lost_is_told(small: ModelState, large: str, tmp_path: Path) -> None:
    said: list[str] = []
    ctx = dataclasses.replace(context(tmp_path), say=said.append)
    tagger = run_pass(Finetune(task=TAGS, steps=1, batch_size=3), small, ctx)
    for before in (small, tagger):
        run_pass(Align(large=large, phases=(3,), task=TAGS, **FEW), before, ctx)
    assert said == ["align: the head for token-classification begins anew, as it reads other states than before"]


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_on_lora(mode: Any, small: ModelState, large: str, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    before = run_pass(Lora(task=TAGS, steps=2, learning_rate=1e-2, batch_size=3), small, ctx)
    after = run_pass(Align(large=large, mode=mode, phases=(2, 3), **FEW, learning_rate=1e-3), before, ctx)
    assert after.lora == before.lora
    mine, yours = encoder(before), encoder(after)
    changed = {name for name in mine if not torch.equal(mine[name], yours[name])}
    # W never learns; what stands beside it does, where the mode says so.
    assert all(".lora_" in name for name in changed) and bool(changed) == (mode == "joint")
    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    assert equal(tensors(again), tensors(after))
    fused = run_pass(FuseAdapters(int8=False), again, ctx)
    assert fused.lora is None and fused.parts["encoder"].adapter is not None
    torch.testing.assert_close(outputs(fused)[0], outputs(after)[0], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="LoRA adapters, which learnt another task"):
        run_pass(Align(large=large, task="question-answering", **FEW), before, ctx)


@pytest.mark.parametrize("scheme", ["static", "dynamic", "llm-int8", "weight-only"])
def test_on_an_int8_model(scheme: Any, small: ModelState, large: str, tmp_path: Path) -> None:
    """The adapter learns on what the int8 model gives, and joins its decision."""
    from edgec.nn.fake_quantize import fake_quantized

    ctx = context(tmp_path)
    before = run_pass(Quantize(scheme=scheme), small, ctx)
    step = Align(large=large, task=TAGS, phases=(2, 3), **{**FEW, "units": 64})
    after = run_pass(step, before, ctx)
    assert before.quantization is not None and after.quantization is not None
    assert equal(encoder(before), encoder(after))
    # The head changed the paths of the encoder, not what was decided about it.
    kept = {key.replace("model.bert.", "model."): layer for key, layer in after.quantization.layers.items()}
    assert {key: kept[key] for key in before.quantization.layers} == dict(before.quantization.layers)
    new = {"encoder:adapter.hidden", "encoder:adapter.output"}
    assert kept.keys() - before.quantization.layers.keys() == new == set(report_of(after)["quantized"])
    kinds = {layer.scheme for layer in before.quantization.layers.values() if layer.kind == "linear"}
    assert {kept[key].scheme for key in new} == kinds
    assert "encoder:model.classifier" in report_of(after)["left_alone"]
    if scheme == "static":
        part: Any = after.parts["encoder"]
        without = {key: layer for key, layer in after.quantization.layers.items() if key not in new}
        rounded = fake_quantized(part, dataclasses.replace(after.quantization, layers=without).of_part("encoder"))
        seen = []
        rounded.adapter.hidden.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        with torch.inference_mode():
            for text in SENTENCES:
                ids = after.tokenizer(text, return_tensors="pt")["input_ids"].int()
                rounded(ids, torch.ones_like(ids))
        found = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
        assert kept["encoder:adapter.hidden"].input_range == pytest.approx(found, rel=1e-6)
        # The distance that it starts from is that of the rounded model's states, not of the float one's.
        starts = [report_of(one)["phases"]["2"]["mse"][0] for one in (after, run_pass(step, small, ctx))]
        assert starts[0] != starts[1] and starts[0] == pytest.approx(starts[1], rel=0.1)


def test_an_int8_model_cannot_learn_along(small: ModelState, large: str, tmp_path: Path) -> None:
    before = run_pass(Quantize(scheme="dynamic"), small, context(tmp_path))
    with pytest.raises(UserError, match="is quantized, and its weights cannot learn along"):
        run_pass(Align(large=large, task=TAGS, mode="joint", **FEW), before, context(tmp_path))
    with pytest.raises(UserError, match=r"the large model .* is quantized"):
        save_build(before, tmp_path / "int8")
        run_pass(Align(large=str(tmp_path / "int8"), task=TAGS, **FEW), small, context(tmp_path))


def test_what_it_needs_and_refuses(small: ModelState, large: str, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    without = dataclasses.replace(ctx, data=TrainingData(train=ctx.data.train))
    with pytest.raises(DataError, match="phase 1 of align needs plain texts"):
        Align(large=large).requires_data(without)
    Align(large=large, phases=(2, 3)).requires_data(without)
    with pytest.raises(DataError, match="align needs labelled rows"):
        Align(large=large).requires_data(dataclasses.replace(ctx, data=TrainingData(unlabelled=SENTENCES)))
    other = tiny("roberta", "feature-extraction", tmp_path / "roberta")
    with pytest.raises(ModelError, match="has another vocabulary"):
        run_pass(Align(large=str(other), task=TAGS, **FEW), small, ctx)
    filler = load_model(tiny("bert", "fill-mask", tmp_path / "filler"))
    with pytest.raises(UserError, match="fill-mask takes no alignment adapter"):
        run_pass(Align(large=large, **FEW), filler, ctx)
    tagger = load_model(tiny("bert", TAGS, tmp_path / "tagger", num_hidden_layers=1))
    with pytest.raises(UserError, match="the new head for token-classification would stay untrained"):
        run_pass(Align(large=large, phases=(1, 2), **FEW), tagger, ctx)
    with pytest.raises(PassError, match="the loss is"):
        run_pass(Align(large=large, phases=(2,), **{**FEW, "phase2_steps": 4, "checks": 4, "clip": 0.0,
                                                    "phase2_learning_rate": 1e30}), small, ctx)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phases": ()}, "phases should be some of 1, 2 and 3"),
        ({"phases": (2, 1)}, "in this order, not"),
        ({"phases": (1, 4)}, "phases should be some of 1, 2 and 3"),
        ({"units": 0}, "units should be at least 1"),
        ({"cache_mb": -1}, "cache_mb should not be below 0"),
        ({"phase1_learning_rate": 0.0}, "phase1_learning_rate should be above 0"),
        ({"phase2_steps": 0}, "phase2_steps should be at least 1"),
        ({"learning_rate": -1.0}, "^learning_rate should be above 0"),
        ({"phases": (1,), "task": TAGS}, "task is for phase 3"),
        ({"phases": (1, 2), "mode": "joint"}, "joint is for phase 3"),
        ({"max_score": 0.0}, "max_score should be above 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Align(large="m", **options)


def test_defaults_are_the_papers() -> None:
    step = Align(large="m")
    assert (step.window, step.units) == (5, 1280)
    assert [step.trained(phase).learning_rate for phase in (1, 2, 3)] == [5e-4, 1e-4, 1e-4]
    assert (step.trained(2).epochs, step.trained(3).epochs) == (10, 4)
    assert Align(large="m", mode="joint").trained(3).learning_rate == 5e-5

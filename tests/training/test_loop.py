"""The training loop against one written by hand, and what it keeps, holds, resumes and refuses."""

from __future__ import annotations

import copy
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rows import EXAMPLES, model
from tiny_models import FAMILIES, tiny

from edgec.errors import PassError, UserError
from edgec.models import load_model
from edgec.training import callbacks
from edgec.training.features import Batch, Featurizer, TrainingRow, collate
from edgec.training.groups import parameter_groups
from edgec.training.loop import TrainingReport, total_steps, train
from edgec.training.objectives import Supervised
from edgec.training.options import TrainingOptions

TASK = "text-classification"


@pytest.fixture
def part(tmp_path: Path) -> Any:
    return model(TASK, tmp_path / "model", num_hidden_layers=1).parts["encoder"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingRow]:
    return Featurizer(model(TASK, tmp_path_factory.mktemp("rows"))).labelled(EXAMPLES[TASK])


def run(part: Any, rows: list[TrainingRow], folder: Path, objective: Any = None, **options: Any) -> TrainingReport:
    asked = {name: options.pop(name) for name in list(options) if name in TrainingOptions.__dataclass_fields__}
    return train(
        part,
        rows,
        objective or Supervised(),
        TrainingOptions(**asked),
        pad_id=0,
        seed=3,
        folder=folder / "checkpoints",
        **options,
    )


def weights(part: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in part.state_dict().items()}


def near(one: Any, other: Any) -> None:
    expected = other.state_dict()
    for name, tensor in one.state_dict().items():
        # A softmax does not feel the bias of the keys: its gradient is rounding noise, which Adam makes large.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(tensor, expected[name], atol=3e-5, rtol=0, msg=name)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_it_is_adamw_with_warm_up_and_clipping(
    part: Any, rows: list[TrainingRow], tmp_path: Path, schedule: str
) -> None:
    by_hand = copy.deepcopy(part)
    rate, decay, clip, steps = 1e-3, 0.1, 0.5, 5
    run(part, rows, tmp_path, learning_rate=rate, weight_decay=decay, clip=clip, steps=steps, batch_size=len(rows),
        warmup=0.4, schedule=schedule)  # fmt: skip
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in by_hand.named_parameters()}
    batch = collate(rows, 0)
    for step in range(steps):
        by_hand.zero_grad()
        logits = by_hand(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])[0]
        torch.nn.functional.cross_entropy(logits, batch["label"]).backward()
        known = {name: p for name, p in by_hand.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in known.values()))
        past = (step - 2) / (steps - 2)
        falling = {"linear": 1 - past, "cosine": 0.5 * (1 + math.cos(math.pi * past)), "constant": 1.0}[schedule]
        now = rate * (step / 2 if step < 2 else falling)
        with torch.no_grad():
            for name, p in known.items():
                gradient = p.grad * min(1.0, clip / norm)
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                if p.ndim > 1:
                    p.mul_(1 - now * decay)
                corrected = second / (1 - 0.999 ** (step + 1))
                p.sub_(now * first / (1 - 0.9 ** (step + 1)) / (corrected.sqrt() + 1e-8))
    near(part, by_hand)
    assert not part.training


def test_two_small_batches_are_a_large_one(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    other = copy.deepcopy(part)
    kept = {"learning_rate": 1e-3, "steps": 2, "warmup": 0.0}
    run(part, rows[:4], tmp_path, batch_size=2, accumulate=2, **kept)
    run(other, rows[:4], tmp_path, batch_size=4, **kept)
    near(part, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_fall_from_the_head_to_the_embeddings(family: str, tmp_path: Path) -> None:
    part = load_model(tiny(family, TASK, tmp_path)).parts["encoder"]
    options = TrainingOptions(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    learner = torch.nn.Module()
    learner.part, learner.projection = part, torch.nn.Linear(2, 2)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(learner, part, options)
        for parameter in group["params"]
    }
    for name, parameter in learner.named_parameters():
        layer = re.search(r"\blayers?\.(\d)\.", name)
        head = name.startswith(("projection.", "part.model.classifier", "part.model.pre_classifier", "part.model.head"))
        # Two layers: the head's rate, a half, a quarter, and below both an eighth.
        rate = 1.0 if head or ".pooler." in name else 0.5 ** (2 - int(layer[1])) if layer else 0.125
        assert found.pop(id(parameter)) == (rate, 0.1 if parameter.ndim > 1 else 0.0), name
    assert not found


def test_frozen_parameters_are_in_no_group(part: Any) -> None:
    part.model.bert.embeddings.requires_grad_(False)
    frozen = {id(parameter) for parameter in part.model.bert.embeddings.parameters()}
    groups = parameter_groups(part, part, TrainingOptions())
    assert not frozen & {id(parameter) for group in groups for parameter in group["params"]}


def test_the_norm_of_the_gradient_is_clipped(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    norms: list[float] = []

    class Norms(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            squares = [p.grad.square().sum() for p in part.parameters() if p.grad is not None]
            norms.append(float(sum(squares)) ** 0.5)

    for clip in (1e-3, 0.0):
        run(part, rows, tmp_path, clip=clip, steps=1, learning_rate=1e-9, callbacks=[Norms()])
    assert norms[0] == pytest.approx(1e-3, rel=1e-3) and norms[1] > 1e-2


def test_the_best_weights_are_kept_and_patience_ends_it(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([0.1, 0.5, 0.5, 0.4, 0.9])

    def validate() -> dict[str, float]:
        seen.append(weights(part))
        return {"loss_of_words": -1.0, "f1": next(scores)}

    report = run(part, rows, tmp_path, steps=10, checks=10, patience=2, batch_size=2, validate=validate, metric="f1")
    # The second is the best; the third is no better, and the fourth the second time that there is none.
    assert report.stopped_early and (report.steps, report.best_step) == (4, 2)
    assert report.scores == {
        step: {"loss_of_words": -1.0, "f1": f1} for step, f1 in ((1, 0.1), (2, 0.5), (3, 0.5), (4, 0.4))
    }
    assert same(weights(part), seen[1]) and not same(seen[1], seen[3])


def test_the_first_figure_is_the_main_one(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    figures = iter([{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 2.0}])
    report = run(part, rows, tmp_path, steps=2, checks=2, validate=lambda: next(figures))
    assert (report.best_step, report.stopped_early) == (1, False)


def test_a_metric_that_nobody_gives(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metric: the validation does not give 'f2'") as caught:
        run(part, rows, tmp_path, steps=1, validate=lambda: {"accuracy": 1.0, "f1": 0.5}, metric="f2")
    assert caught.value.hint == "it gives accuracy, f1"


class Killed(Exception):
    pass


def killing(at: int) -> Callable[..., Any]:
    def progress(label: str, total: int) -> Callable[[int], None]:
        def done(step: int) -> None:
            if step == at:
                raise Killed

        return done

    return progress


@pytest.mark.parametrize("validated", [False, True])
def test_a_killed_training_goes_on_to_the_same_weights(
    rows: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validated: bool
) -> None:
    # With dropout, and batches in an order: both are taken up where they were.
    start = load_model(tiny("bert", TASK, tmp_path / "model", num_hidden_layers=1)).parts["encoder"]
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN", 0.0)

    def go(part: Any, folder: str, **more: Any) -> TrainingReport:
        scores = (lambda: {"norm": -part.model.classifier.weight.norm().item()}) if validated else None
        return run(
            part, rows, tmp_path / folder, learning_rate=1e-3, steps=8, batch_size=2, checks=4, validate=scores, **more
        )

    whole, killed, resumed = (copy.deepcopy(start) for _ in range(3))
    expected = go(whole, "whole")
    with pytest.raises(Killed):
        go(killed, "cut", progress=killing(6))
    assert sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())[-1] == "checkpoint-5"
    assert not same(weights(killed), weights(whole))
    # The kill came while a later one was written.
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-6"
    shutil.copytree(half.parent / "checkpoint-5", half)
    (half / "whole").unlink()
    (half / "pytorch_model.bin").write_bytes(b"half of it")
    found = go(resumed, "cut")
    assert same(weights(resumed), weights(whole)) and not same(weights(resumed), weights(start))
    assert (found.steps, found.scores, found.best_step) == (expected.steps, expected.scores, expected.best_step)
    assert not (tmp_path / "cut" / "checkpoints").exists()


def interrupting(at: int) -> Callable[..., Any]:
    def progress(label: str, total: int) -> Callable[[int], None]:
        return lambda step: os.kill(os.getpid(), signal.SIGINT) if step == at else None

    return progress


def test_an_interrupted_training_keeps_the_step_that_it_was_in(
    rows: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = load_model(tiny("bert", TASK, tmp_path / "model", num_hidden_layers=1)).parts["encoder"]
    whole, cut, resumed = (copy.deepcopy(start) for _ in range(3))
    said: list[str] = []
    asked = {"learning_rate": 1e-3, "steps": 6, "batch_size": 2}
    run(whole, rows, tmp_path / "whole", **asked)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(cut, rows, tmp_path / "cut", progress=interrupting(3), say=said.append, **asked)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == ["interrupted: the step ends and a checkpoint is written (once more stops at once)"]
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["checkpoint-3"]
    report = run(resumed, rows, tmp_path / "cut", **asked)
    assert report.steps == 6 and not report.stopped_early
    assert same(weights(resumed), weights(whole)) and not same(weights(resumed), weights(cut))


def test_an_interruption_of_the_last_step(rows: list[TrainingRow], part: Any, tmp_path: Path) -> None:
    said: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    class AtTheEnd(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == state.max_steps:
                os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            run(part, rows, tmp_path, steps=2, batch_size=2, callbacks=[AtTheEnd()], say=said.append)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said[-1] == "the training was over by then; what followed its last checkpoint is learned once more"


def test_no_checkpoint_says_that_all_is_done(
    rows: list[TrainingRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the last step, or of that in which patience ends training, would be trained on from."""
    start = load_model(tiny("bert", TASK, tmp_path / "model", num_hidden_layers=1)).parts["encoder"]
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN", 0.0)
    written: list[str] = []
    monkeypatch.setattr(callbacks, "mark_whole", lambda folder: written.append(folder.name))
    run(copy.deepcopy(start), rows, tmp_path / "steps", steps=3, batch_size=2)
    assert written == ["checkpoint-1", "checkpoint-2"]
    written.clear()
    figures = iter([0.5, 0.4, 0.3])
    asked = {"steps": 6, "batch_size": 2, "checks": 6, "patience": 2}
    report = run(start, rows, tmp_path / "patience", validate=lambda: {"f1": next(figures)}, **asked)
    assert report.steps == 3 and report.stopped_early
    assert written == ["checkpoint-1", "checkpoint-2"]


def test_checkpoints_come_by_the_clock(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(Killed):
        run(part, rows, tmp_path, steps=4, batch_size=2, progress=killing(3))
    assert not folder.exists() or not list(folder.glob("checkpoint-*"))


def test_what_was_zero_stays_zero(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    held, free = (
        "model.bert.encoder.layer.0.output.dense.weight",
        "model.bert.encoder.layer.0.intermediate.dense.weight",
    )
    kept = torch.rand(part.get_parameter(held).shape, generator=torch.Generator().manual_seed(0)) > 0.5
    with torch.no_grad():
        for name in (held, free):
            part.get_parameter(name).mul_(kept if name == held else kept.T)
    before = part.get_parameter(held).detach().clone()
    run(part, rows, tmp_path, steps=3, learning_rate=1e-2, warmup=0.0, held=[held])
    after = part.get_parameter(held).detach()
    assert torch.equal(after == 0, ~kept) and ((after != before) == kept).all()
    # The same zeros elsewhere, which nobody asked to hold, are gone.
    assert int((part.get_parameter(free) == 0).sum()) == 0


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_no_number_ends_it(part: Any, rows: list[TrainingRow], tmp_path: Path, loss: float) -> None:
    def diverged(part: Any, batch: Batch) -> torch.Tensor:
        return part.model.classifier.bias.sum() * 0 + loss

    with pytest.raises(PassError, match=r"hunt: the loss is (inf|nan) at step 1") as caught:
        run(part, rows, tmp_path, diverged, steps=4, checks=4, label="hunt")
    assert "learning_rate" in caught.value.hint


def test_losses_are_means_since_the_entry_before(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    seen: list[float] = []

    def noting(part: Any, batch: Batch) -> torch.Tensor:
        loss = Supervised()(part, batch)
        seen.append(loss.item())
        return loss

    report = run(part, rows, tmp_path, noting, steps=6, checks=3, batch_size=2)
    assert report.rows == len(rows) and report.steps == len(seen) == 6
    assert report.losses == pytest.approx({2: sum(seen[:2]) / 2, 4: sum(seen[2:4]) / 2, 6: sum(seen[4:]) / 2}, abs=1e-4)
    assert (report.best_step, report.stopped_early, report.scores) == (None, False, {})


def test_an_objective_learns_its_own_tensors(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(()))

        def forward(self, part: Any, batch: Batch) -> torch.Tensor:
            return self.factor * Supervised()(part, batch)

    objective = Scaled()
    run(part, rows, tmp_path, objective, steps=2, learning_rate=0.1)
    assert objective.factor.item() < 1


def test_the_same_seed_gives_the_same_weights(rows: list[TrainingRow], tmp_path: Path) -> None:
    start = load_model(tiny("bert", TASK, tmp_path / "model")).parts["encoder"]
    parts = [copy.deepcopy(start) for _ in range(3)]
    for part, seed in zip(parts, (1, 1, 2), strict=True):
        train(part, rows, Supervised(), TrainingOptions(steps=2, batch_size=2), pad_id=0, seed=seed, folder=tmp_path)
    found = [weights(part) for part in parts]
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_nothing_to_train(part: Any, rows: list[TrainingRow], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no rows to train on"):
        run(part, [], tmp_path)
    part.requires_grad_(False)
    with pytest.raises(PassError, match="no parameter is to be trained"):
        run(part, rows, tmp_path)


@pytest.mark.parametrize(
    ("options", "rows", "steps"),
    [
        ({"epochs": 3.0, "batch_size": 4}, 10, 9),
        ({"epochs": 1.0, "batch_size": 4, "accumulate": 2}, 16, 2),
        ({"epochs": 0.5, "batch_size": 1}, 10, 5),
        ({"epochs": 0.01, "batch_size": 8}, 10, 1),
        ({"epochs": 9.0, "steps": 4}, 10, 4),
    ],
)
def test_how_many_steps(options: dict[str, Any], rows: int, steps: int) -> None:
    assert total_steps(TrainingOptions(**options), rows) == steps


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", 0.0), ("learning_rate", math.inf), ("epochs", -1.0), ("steps", 0), ("batch_size", 0),
        ("accumulate", 0), ("checks", 0), ("patience", 0), ("weight_decay", -0.1), ("clip", -1.0), ("warmup", 1.0),
        ("layer_decay", 0.0), ("layer_decay", 1.1),
    ],
)  # fmt: skip
def test_options_out_of_range(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{option} "):
        TrainingOptions(**{option: value})

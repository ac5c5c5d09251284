"""Ranges that follow the data of a training with rounding, and the mean over checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import LABELS, SENTENCES, tiny
from torch import nn

import edgec.training.quantization
from edgec.data.examples import Example
from edgec.models import load_model
from edgec.nn.fake_points import apply_points
from edgec.nn.fake_quantize import fake_quantized
from edgec.passes import Quantize, run_pass
from edgec.passes.learn import copied, fit
from edgec.state import ModelState, PassContext
from edgec.training.features import Featurizer, collate
from edgec.training.objectives import Supervised
from edgec.training.options import TrainingOptions
from edgec.training.quantization import Average, Rounding

ROWS = tuple(Example(text, label=LABELS["text-classification"][i % 3]) for i, text in enumerate(SENTENCES))
FULL: dict[str, Any] = {"scheme": "fully-quantized", "bits": 4}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    """Without dropout, so that training computes what evaluation does."""
    config = {"num_hidden_layers": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return load_model(tiny("bert", "text-classification", tmp_path_factory.mktemp("ranges") / "model", **config))


def part_of(state: ModelState) -> Any:
    (part,) = state.parts.values()
    return part


@contextmanager
def watched(part: nn.Module, seen: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Inside, `seen` has the extremes of what linear layers and layer norms of `part` read and write."""

    def note(name: str, x: torch.Tensor) -> None:
        low, high = seen.get(name, (np.inf, -np.inf))
        seen[name] = min(low, float(x.min())), max(high, float(x.max()))

    def hook(path: str) -> Callable[..., None]:
        def run(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            note(f"{path}/input", inputs[0])
            note(f"{path}/output", output)

        return run

    kinds = nn.Linear | nn.LayerNorm
    handles = [one.register_forward_hook(hook(path)) for path, one in part.named_modules() if isinstance(one, kinds)]
    yield
    for handle in handles:
        handle.remove()


def extremes_alone(part: nn.Module, rows: list[Any]) -> dict[str, tuple[float, float]]:
    """Of rows that run one by one, so that nothing is padded."""
    seen: dict[str, tuple[float, float]] = {}
    with watched(part, seen), torch.inference_mode():
        for row in rows:
            part(torch.from_numpy(row.ids)[None], torch.ones(1, len(row.ids), dtype=torch.int32))
    return seen


def reference_name(path: str, name: str) -> str:
    """Where `watched` sees the tensor of a range: queries, keys and values are what their layers write."""
    return f"{path}.{name}/output" if name in ("query", "key", "value") else f"{path}/{name}"


def rounding_of(state: ModelState, momentum: float = 0.9) -> tuple[Any, Rounding]:
    calibrated = run_pass(
        Quantize(**FULL, layer_norms="all", layer_norm_smoothing=False), state, PassContext(Path(), SENTENCES)
    )
    assert calibrated.quantization is not None
    decision = calibrated.quantization.of_part("encoder")
    student = fake_quantized(part_of(state), dataclasses.replace(decision, points={}))
    return student, Rounding(Supervised(), student, apply_points(student, decision.points), momentum=momentum)


def test_ranges_are_moving_averages_of_each_steps_extremes(classifier: ModelState) -> None:
    """Bie et al. 2020, section 3.1, each row a batch, by a loop over rows that run alone: padding takes no part."""
    student, rounding = rounding_of(classifier)
    rows = Featurizer(classifier).labelled(ROWS)
    expected = rounding.by_name()
    rounding.round(False)
    student.train()
    with rounding.following(student):
        for step, chosen in enumerate(([0, 3, 4], [1, 5], [2, 0]), start=1):
            halves = (chosen[:1], chosen[1:])  # two batches are summed up before the step
            for half in halves:
                rounding(student, collate([rows[i] for i in half], 0)).backward()
            rounding.follow(step)
            alone = [extremes_alone(part_of(classifier), [rows[i]]) for i in chosen]
            for path, name in expected:
                if name in ("scores", "probabilities"):
                    continue
                mean = np.mean([one[reference_name(path, name)] for one in alone], axis=0)
                expected[path, name] = tuple(0.9 * np.array(expected[path, name]) + 0.1 * mean)
        # What is only evaluated is not followed.
        student.eval()
        rounding(student, collate(rows[:1], 0))
        rounding.follow(4)
    found = rounding.by_name()
    assert len(found) == 7 - 1 + 5 + 3 * 2
    for (path, name), ends in expected.items():
        if name not in ("scores", "probabilities"):
            assert found[path, name] == pytest.approx(ends, abs=1e-5), f"{path} {name}"
    assert all(layer.note is None for layer in student.modules() if hasattr(layer, "note"))


def test_scores_and_probabilities_of_real_tokens_count(classifier: ModelState) -> None:
    student, rounding = rounding_of(classifier, momentum=0.0)
    rounding.round(False)
    student.train()
    rows = Featurizer(classifier).labelled(ROWS)
    with rounding.following(student):
        rounding(student, collate(rows, 0))
        rounding.follow(1)
    attention = "model.bert.encoder.layer.0.attention.self"
    lows, highs, most = [], [], []
    for row in rows:
        ids = torch.from_numpy(row.ids)[None]
        seen: dict[str, torch.Tensor] = {}
        part = part_of(classifier)

        def keep(name: str, seen: dict[str, torch.Tensor] = seen) -> Any:
            return lambda module, inputs, output: seen.__setitem__(name, output)

        handles = [part.get_submodule(f"{attention}.{n}").register_forward_hook(keep(n)) for n in ("query", "key")]
        with torch.inference_mode():
            part(ids, torch.ones_like(ids))
        for handle in handles:
            handle.remove()
        scores, weights = [], []
        for head in range(4):
            q, k = (seen[name][0, :, 8 * head : 8 * head + 8].numpy() for name in ("query", "key"))
            products = q @ k.T / np.sqrt(8)
            exponentials = np.exp(products - products.max(axis=1, keepdims=True))
            weights.append((exponentials / exponentials.sum(axis=1, keepdims=True)).max())
            scores += [products.min(), products.max()]
        lows.append(min(scores))
        highs.append(max(scores))
        most.append(max(weights))
    found = rounding.by_name()
    assert found[attention, "scores"] == pytest.approx((np.mean(lows), np.mean(highs)), abs=1e-5)
    assert found[attention, "probabilities"] == pytest.approx((0.0, np.mean(most)), abs=1e-5)


def test_ranges_are_adjusted_to_averaged_weights(classifier: ModelState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgec.training.quantization, "ADJUSTED", 3)
    student, rounding = rounding_of(classifier, momentum=0.5)
    rows = Featurizer(classifier).labelled(ROWS)[:4]
    before, weights = rounding.by_name(), {k: v.clone() for k, v in student.state_dict().items()}
    first = "model.bert.encoder.layer.0.attention.self.query", "input"
    (read,) = {extremes_alone(part_of(classifier), [row])["/".join(first)] for row in rows[:1]}
    done = rounding.adjust(
        student, rows[:1], batch_size=2, pad_id=0, seed=0, progress=lambda label, total: lambda step: None
    )
    assert done == 3
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    after = rounding.by_name()
    assert all(after[name] != before[name] for name in before)
    # What the first layer reads is a rounded layer norm, whose own range moves: a step of four bits.
    step = (
        before["model.bert.embeddings.LayerNorm", "output"][1] - before["model.bert.embeddings.LayerNorm", "output"][0]
    ) / 15
    for end in (0, 1):
        assert after[first][end] == pytest.approx(before[first][end] / 8 + read[end] * 7 / 8, abs=step)
    assert student.get_submodule(first[0]).quantization.input_range == after[first]


class Recorded(transformers.TrainerCallback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights.append({name: value.detach().clone() for name, value in model.state_dict().items()})


def test_the_mean_is_that_of_the_last_checks(classifier: ModelState, tmp_path: Path) -> None:
    state, average, recorded = copied(classifier), Average(3, checks=4, start_step=2), Recorded()
    rows = Featurizer(state).labelled(ROWS)
    options = TrainingOptions(steps=9, checks=4, batch_size=4, learning_rate=1e-3)
    fit(state, rows, Supervised(), options, PassContext(tmp_path), label="x", callbacks=[average, recorded])
    assert average.steps(9) == [9, 7, 5] and average.taken == 3
    for name, value in average.mean.items():
        expected = sum(recorded.weights[step - 1][name].double() for step in (9, 7, 5)) / 3
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)

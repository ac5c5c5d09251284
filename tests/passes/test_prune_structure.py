"""Which heads, channels and layers go: importances against gates differentiated by hand, and what comes out."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, LABELS, SENTENCES, tiny

from edgec.data.examples import Example, Tagged
from edgec.errors import UserError
from edgec.models import load_build, load_model, save_build
from edgec.models.torch_model import torch_model
from edgec.passes import Prune, run_pass
from edgec.passes.importance import OutputChange, keep_best, magnitude, taylor
from edgec.state import ModelState, PassContext, TrainingData, no_progress
from edgec.training.features import Featurizer, TrainingRow
from edgec.training.objectives import Supervised

NAMES = LABELS["text-classification"]
TRAIN = tuple(Example(text, label=NAMES[i % 3]) for i, text in enumerate(SENTENCES))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelState]:
    root, known = tmp_path_factory.mktemp("prune"), {}

    def state(family: str, task: str = "text-classification", layers: int = 2) -> ModelState:
        key = f"{family}-{task}-{layers}"
        if key not in known:
            count = {"n_layers" if family == "distilbert" else "num_hidden_layers": layers}
            known[key] = load_model(tiny(family, task, root / key, **count))
        return known[key]

    return state


@pytest.fixture
def ctx(tmp_path: Path) -> PassContext:
    return PassContext(tmp_path, SENTENCES, data=TrainingData(train=TRAIN))


def _rows(state: ModelState) -> list[TrainingRow]:
    return Featurizer(state).labelled(TRAIN)


def _batch_of(row: TrainingRow) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(row.ids)[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.from_numpy(row.type_ids)[None],
        **{name: torch.as_tensor([value]) for name, value in row.targets.items()},
    }


@contextmanager
def _gates(part: Any, paths: Sequence[str], gates: Sequence[torch.Tensor], repeat: int) -> Iterator[None]:
    """The input of each module is multiplied by a gate; a gate stands for `repeat` neighbouring channels."""
    handles = [
        part.get_submodule(path).register_forward_pre_hook(
            lambda module, args, gate=gate: (args[0] * gate.repeat_interleave(repeat), *args[1:])
        )
        for path, gate in zip(paths, gates, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_BERT = "model.bert.encoder.layer"
_READERS = {
    "heads": ([f"{_BERT}.{i}.attention.output.dense" for i in range(2)], 4, 8),
    "ffn": ([f"{_BERT}.{i}.output.dense" for i in range(2)], 64, 1),
}


@pytest.mark.parametrize("unit", ["heads", "ffn"])
def test_taylor_is_the_derivative_by_gates(unit: Any, load: Callable[..., ModelState]) -> None:
    state = load("bert")
    part, rows = state.parts["encoder"], _rows(state)
    paths, count, repeat = _READERS[unit]
    expected = [torch.zeros(count) for _ in paths]
    for row in rows:  # one row at a time: no padding, no mean over a batch
        gates = [torch.ones(count, requires_grad=True) for _ in paths]
        with _gates(part, paths, gates, repeat):
            Supervised()(part, _batch_of(row)).backward()
        for total, gate in zip(expected, gates, strict=True):
            total += gate.grad.abs() / len(rows)
    part.zero_grad()
    found = taylor(part, unit, rows, Supervised(), pad_id=0, batch_size=4, progress=no_progress)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_taylor_of_the_stream_has_one_gate_for_all_layers(load: Callable[..., ModelState]) -> None:
    state = load("bert")
    part, rows = state.parts["encoder"], _rows(state)
    expected = torch.zeros(32)
    for row in rows:
        gate = torch.ones(32, requires_grad=True)
        last = part.get_submodule(f"{_BERT}.1").register_forward_hook(lambda m, a, out, gate=gate: out * gate)
        with _gates(part, [f"{_BERT}.0", f"{_BERT}.1"], [gate, gate], 1):
            Supervised()(part, _batch_of(row)).backward()
        last.remove()
        expected += gate.grad.abs() / len(rows)
    part.zero_grad()
    (found,) = taylor(part, "hidden", rows, Supervised(), pad_id=0, batch_size=5, progress=no_progress)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)


def test_without_labels_it_is_how_far_the_outputs_move(load: Callable[..., ModelState]) -> None:
    """Many copies of a row draw many directions; the mean is sqrt(2 / pi) of the length of the change."""
    state = load("bert", "token-classification")
    part, (row, *_) = state.parts["encoder"], Featurizer(state).texts(SENTENCES)
    batch = _batch_of(row)

    def outputs(gate: torch.Tensor) -> torch.Tensor:
        gates = [gate, torch.ones(4)]
        with _gates(part, [path.replace("text", "token") for path in _READERS["heads"][0]], gates, 8):
            return part(batch["input_ids"], batch["attention_mask"])[0].flatten()

    lengths = torch.autograd.functional.jacobian(outputs, torch.ones(4)).norm(dim=0)
    found = taylor(part, "heads", [row] * 2000, OutputChange(0), pad_id=0, batch_size=2000, progress=no_progress)
    torch.testing.assert_close(found[0], math.sqrt(2 / math.pi) * lengths, rtol=0.08, atol=0)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_magnitude_sums_the_squares_of_all_that_goes(family: str, load: Callable[..., ModelState]) -> None:
    part = load(family).parts["encoder"]
    if family == "bert":
        layer = part.get_submodule(f"{_BERT}.1")
        attention = layer.attention.self
        rows = [attention.query, attention.key, attention.value]
        writers, context = [(m.weight, m.bias) for m in rows], layer.attention.output.dense.weight
        inner, down = [(layer.intermediate.dense.weight, layer.intermediate.dense.bias)], layer.output.dense.weight
    else:
        layer = part.get_submodule("model.model.layers.1")
        writers = [(third, torch.zeros(32)) for third in layer.attn.Wqkv.weight.chunk(3)]
        context = layer.attn.Wo.weight
        inner = [(half, torch.zeros(64)) for half in layer.mlp.Wi.weight.chunk(2)]
        down = layer.mlp.Wo.weight
    for unit, size, given, read in (("heads", 8, writers, context), ("ffn", 1, inner, down)):
        found = magnitude(part, unit)[1]  # type: ignore[arg-type]
        for index in (0, 3):
            where = slice(index * size, (index + 1) * size)
            pieces = [piece[where] for pair in given for piece in pair] + [read[:, where]]
            expected = math.sqrt(sum(float(piece.detach().double().square().sum()) for piece in pieces))
            assert float(found[index]) == pytest.approx(expected, rel=1e-5)


def test_the_best_of_all_layers_and_one_of_each() -> None:
    scores = [torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([100.0, 1.0, 1.0, 1.0]), torch.zeros(4)]
    # Divided by the root mean square of their layer: 1.46 1.10 0.73 0.37 | 2.00 0.02 0.02 0.02 | 0.
    assert keep_best(scores, 6) == [[0, 1, 2, 3], [0], [0]]
    assert keep_best(scores, 5) == [[0, 1, 2], [0], [0]]
    assert keep_best(scores, 1, minimum=2) == [[0, 1], [0, 1], [0, 1]]


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_may_differ_by_layer(
    family: str, importance: Any, load: Callable[..., ModelState], ctx: PassContext
) -> None:
    scope = "shared" if family == "mpnet" else "global"
    state = load(family, layers=3)
    after = run_pass(Prune(structure="heads", ratio=0.4, scope=scope, importance=importance), state, ctx)
    report = after.history[-1].report
    counts = report["shape"]["after"]["heads"]
    assert report["shape"]["before"]["heads"] == [4, 4, 4]
    assert counts == [2, 2, 2] if scope == "shared" else (sum(counts) == 7 and min(counts) >= 1)
    assert [4 - len(gone) for gone in report["removed_heads"].values()] == counts
    for before, now in ((state, report["parameters"]["before"]), (after, report["parameters"]["after"])):
        assert sum(now.values()) == sum(p.numel() for p in before.parts["encoder"].parameters())
    assert report["parameters"]["before"]["head"] == report["parameters"]["after"]["head"]
    # A head of a family without biases: four matrices of 8 by 32 channels.
    lost = report["parameters"]["before"]["encoder"] - report["parameters"]["after"]["encoder"]
    assert lost == (12 - sum(counts)) * (4 * 8 * 32 + (0 if family == "modernbert" else 3 * 8))


def test_shared_position_biases_need_shared_heads(load: Callable[..., ModelState], ctx: PassContext) -> None:
    state = load("mpnet")
    with pytest.raises(UserError, match="share their position biases"):
        run_pass(Prune(structure="heads", ratio=0.5), state, ctx)
    after = run_pass(Prune(structure="heads", keep=1, scope="shared"), state, ctx)
    assert after.parts["encoder"].model.mpnet.encoder.relative_attention_bias.weight.shape == (32, 1)


def test_widths_are_multiples(load: Callable[..., ModelState], ctx: PassContext) -> None:
    state = load("bert", layers=3)
    after = run_pass(Prune(structure="ffn", ratio=0.5, multiple=16, importance="taylor"), state, ctx)
    widths = after.history[-1].report["shape"]["after"]["ffn"]
    assert all(width % 16 == 0 and 16 <= width <= 64 for width in widths)
    scores = taylor(
        state.parts["encoder"], "ffn", _rows(state), Supervised(), pad_id=0, batch_size=16, progress=no_progress
    )
    for index, (score, width) in enumerate(zip(scores, widths, strict=True)):
        best = sorted(np.argsort(-score.numpy(), kind="stable")[:width])
        name = f"{_BERT}.{index}.intermediate.dense.weight"
        expected = state.parts["encoder"].get_parameter(name)[best]
        assert torch.equal(after.parts["encoder"].get_parameter(name), expected)
    for scope in ("layer", "shared"):
        step = Prune(structure="ffn", keep=45, multiple=16, scope=scope)  # type: ignore[arg-type]
        assert run_pass(step, state, ctx).history[-1].report["shape"]["after"]["ffn"] == [48, 48, 48]


def test_nothing_removed_is_an_error(load: Callable[..., ModelState], ctx: PassContext) -> None:
    with pytest.raises(UserError, match="prune removed nothing"):
        run_pass(Prune(structure="ffn", ratio=0.1), load("bert"), ctx)
    with pytest.raises(UserError, match="keep is 9, and there are only 4"):
        run_pass(Prune(structure="heads", keep=9), load("bert"), ctx)


def test_similarity_is_the_cosine_around_each_layer(load: Callable[..., ModelState], ctx: PassContext) -> None:
    state = load("bert", layers=4)
    with torch.no_grad():  # a layer that does next to nothing
        for name, parameter in state.parts["encoder"].named_parameters():
            if "encoder.layer.2." in name and ".output.dense." in name:
                parameter.mul_(0.01)
    after = run_pass(Prune(structure="layers", keep=2), state, ctx)
    cosines: list[list[float]] = [[] for _ in range(4)]
    part = state.parts["encoder"]
    for row in _rows(state):
        batch = _batch_of(row)
        with torch.no_grad():
            states = part.states(*(batch[name] for name in part.input_names))
        for index in range(4):
            before, behind = states[index][0], states[index + 1][0]
            cosines[index] += (before * behind).sum(-1).div(before.norm(dim=-1) * behind.norm(dim=-1)).tolist()
    report = after.history[-1].report
    assert report["similarity"] == pytest.approx([float(np.mean(found)) for found in cosines], abs=1e-4)
    kept = sorted(np.argsort(report["similarity"])[:2].tolist())
    assert report["kept_layers"] == kept and 2 not in kept
    for new, old in enumerate(kept):
        expected = part.get_submodule(f"{_BERT}.{old}").state_dict()
        found = after.parts["encoder"].get_submodule(f"{_BERT}.{new}").state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": 2, "select": "first"}, [0, 1]),
        ({"keep": 2, "select": "evenly"}, [0, 3]),
        ({"ratio": 0.25, "select": "evenly"}, [0, 2, 3]),
        ({"select": (0, 2)}, [0, 2]),
    ],
)
def test_layers_by_their_place(
    family: str, options: dict[str, Any], kept: list[int], load: Callable[..., ModelState], ctx: PassContext
) -> None:
    state = load(family, layers=4)
    after = run_pass(Prune(structure="layers", **options), state, ctx)
    assert after.history[-1].report["kept_layers"] == kept
    save_build(after, ctx.workdir / "build")
    again = load_build(ctx.workdir / "build")
    with torch_model(after) as one, torch_model(again) as other:
        found, expected = (model.raw(list(SENTENCES)) for model in (other, one))
    for a, b in zip(found, expected, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in b)


def test_modernbert_keeps_its_first_layer(load: Callable[..., ModelState], ctx: PassContext) -> None:
    state = load("modernbert", layers=3)
    with pytest.raises(UserError, match="layer 0 cannot be removed"):
        run_pass(Prune(structure="layers", select=(1, 2)), state, ctx)
    with pytest.raises(UserError, match="select names layer 7, and the model has 3"):
        run_pass(Prune(structure="layers", select=(0, 7)), state, ctx)
    assert 0 in run_pass(Prune(structure="layers", keep=1), state, ctx).history[-1].report["kept_layers"]


def test_zeros_that_are_meant_move_with_their_layers(load: Callable[..., ModelState], ctx: PassContext) -> None:
    sparse = run_pass(Prune(sparsity=0.5), load("bert", layers=3), ctx)
    after = run_pass(Prune(structure="layers", select=(0, 2)), sparse, ctx)
    part = after.parts["encoder"]
    assert len(after.sparse) == 2 * len(sparse.sparse) // 3
    for key in after.sparse:
        share = float((part.get_parameter(key.removeprefix("encoder:")) == 0).float().mean())
        assert 0.3 < share < 0.7
    narrow = run_pass(Prune(structure="heads", keep=2, scope="layer"), after, ctx)
    assert narrow.sparse == after.sparse


def test_similarity_reads_the_texts_of_the_application(load: Callable[..., ModelState], tmp_path: Path) -> None:
    """Tagged sentences for a model that has no labels yet: their text alone counts, before calibration texts."""
    state = load("bert", "feature-extraction", layers=3)
    tagged = tuple(Tagged(tuple(text.split()), ("O",) * len(text.split())) for text in SENTENCES)
    step = Prune(structure="layers", keep=2)
    found = [
        run_pass(step, state, PassContext(tmp_path, texts, data=data)).history[-1].report["similarity"]
        for texts, data in [
            (("Yes.",), TrainingData(train=tagged)),
            (tuple(" ".join(one.words) for one in tagged), TrainingData()),
            (("Yes.",), TrainingData()),
        ]
    ]
    assert found[0] == found[1] != found[2]


def test_only_so_many_rows_are_looked_at(load: Callable[..., ModelState], ctx: PassContext) -> None:
    step = Prune(structure="heads", ratio=0.5, importance="taylor", rows=4)
    report = run_pass(step, load("bert"), ctx).history[-1].report
    assert (report["rows"], report["loss"]) == (4, "supervised")
    json.dumps(report, allow_nan=False)


def test_what_an_adapter_was_made_for_keeps_its_width(load: Callable[..., ModelState]) -> None:
    state = load("bert")
    part = copy.deepcopy(state.parts["encoder"])
    part.adapter = torch.nn.Identity()
    with pytest.raises(UserError, match="alignment adapter was made for this width"):
        Prune(structure="hidden", ratio=0.5).requires(replace(state, parts={"encoder": part}))

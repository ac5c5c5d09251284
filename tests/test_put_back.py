"""Which layers are put back, and how many: by made-up drops, by torch, and by exported graphs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgec_runtime.manifest import Manifest
from figures import manifest
from scaled_channel import TEXTS, WORST, plain_model, scale_channel
from torch import nn

from edgec.evaluation import quality
from edgec.graph.float_graph import prepare_float
from edgec.graph.lower_int8 import lower_int8
from edgec.graph.store import open_graph
from edgec.graph.trace import trace
from edgec.models.describe import describe
from edgec.models.torch_model import model_on, tokenizer_json, torch_model
from edgec.nn.fake_quantize import fake_quantized
from edgec.passes import Quantize, run_pass
from edgec.put_back import Outcome, PutBack, meet_budget, needed, put_back
from edgec.ranking import LayerSensitivity, Ranking
from edgec.ranking.measure import rank
from edgec.recipe import Budget
from edgec.state import LayerQuantization, ModelSpec, ModelState, PassContext, PointQuantization, Quantization
from edgec.target import Target

NAMES = [f"p:layer{i}" for i in range(10)]
STATIC = LayerQuantization("linear", input_range=(-1.0, 1.0))


class Layers(nn.Module):
    """Ten matrices of (32 inputs, 64 outputs): 8192 bytes in float, 2304 in int8, 2304 with 8-bit weights in blocks."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            self.add_module(name[2:], nn.Linear(32, 64))


FLOAT, INT8 = 4 * 32 * 64, 32 * 64 + 4 * 64


def made_up(**changes: LayerQuantization) -> ModelState:
    layers = {name: changes.get(name[2:], STATIC) for name in NAMES}
    spec = ModelSpec("made-up", "nowhere", "feature-extraction", "bert", 64)
    return ModelState({"p": Layers()}, spec, None, Quantization("static", layers))  # type: ignore[arg-type]


def ranked(names: list[str] = NAMES) -> Ranking:
    layers = [LayerSensitivity(name, "static", 0.1 / (i + 1), 0.9, INT8, FLOAT) for i, name in enumerate(names)]
    return Ranking("made-up", "cosine", 10, tuple(layers), 1.0)


class Measure:
    """The drop, 0.1 at first: by 0.01 less a layer in float, and by 0.006 less a layer with 8-bit weights."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, state: ModelState) -> float:
        layers = {} if state.quantization is None else state.quantization.layers
        self.calls.append(len(NAMES) - len([x for x in layers.values() if x.scheme == "static"]))
        return sum({"static": 0.01, "weight-only": 0.004}[layer.scheme] for layer in layers.values())


@pytest.mark.parametrize("needed", range(11))
def test_as_few_as_it_takes(needed: int) -> None:
    measure, state = Measure(), made_up()
    limit = 0.1 - 0.01 * needed + 0.002
    outcome = put_back(state, ranked(), measure, drop=0.1, limit=limit)
    assert outcome.fits
    assert [one.layer for one in outcome.put_back] == NAMES[:needed]
    assert outcome.drop == pytest.approx(0.1 - 0.01 * needed)
    assert len(measure.calls) == len(set(measure.calls)) <= 2 * math.ceil(math.log2(len(NAMES))), "each number once"
    assert [count for count, _ in outcome.steps] == sorted([0, *measure.calls])
    assert all(drop == pytest.approx(0.1 - 0.01 * count) for count, drop in outcome.steps)
    if needed == 0:
        assert outcome.state is state
    elif needed == len(NAMES):
        assert outcome.state.quantization is None, "a model without any int8 is the float one"
    else:
        assert outcome.state.quantization is not None
        assert list(outcome.state.quantization.layers) == NAMES[needed:]
    assert state.quantization is not None
    assert len(state.quantization.layers) == len(NAMES), "the state that was given stays"


def test_what_no_layer_helps() -> None:
    drops = {0: 0.5, 1: 0.4, 2: 0.2, 4: 0.3, 8: 0.3, 10: 0.3}

    def measure(state: ModelState) -> float:
        return drops[10 - len(state.quantization.layers if state.quantization else ())]

    outcome = put_back(made_up(), ranked(), measure, drop=0.5, limit=0.1)
    assert not outcome.fits
    assert ([one.layer for one in outcome.put_back], outcome.drop) == (NAMES[:2], 0.2), "the best that was seen"
    assert outcome.steps == tuple(drops.items())


def test_weights_alone() -> None:
    outcome = put_back(made_up(), ranked(), Measure(), drop=0.1, limit=0.085, to="weight-only")
    assert [(one.layer, one.to) for one in outcome.put_back] == [(name, "weight-only") for name in NAMES[:3]]
    assert outcome.state.quantization is not None
    assert len(outcome.state.quantization.layers) == len(NAMES)
    layer = outcome.state.quantization.layers[NAMES[2]]
    assert (layer.scheme, layer.bits, layer.input_range) == ("weight-only", 8, None)
    assert outcome.state.quantization.layers[NAMES[3]] == STATIC
    # A scale each 32 inputs is what one a channel of 32 inputs is.
    assert [one.bytes_added for one in outcome.put_back] == [0, 0, 0]


def test_a_layer_that_is_in_the_form_already_is_passed_over() -> None:
    eight, four = (LayerQuantization("linear", "weight-only", bits=bits) for bits in (8, 4))
    state = made_up(layer0=eight, layer1=four)
    outcome = put_back(state, ranked(), lambda state: 0.0, drop=1.0, limit=0.1, to="weight-only")
    assert [(one.layer, one.bytes_added) for one in outcome.put_back] == [(NAMES[1], INT8 - 64 * (16 + 4))]
    in_float = put_back(state, ranked(), lambda state: 0.0, drop=1.0, limit=0.1, to="float")
    assert [(one.layer, one.to) for one in in_float.put_back] == [(NAMES[0], "float")]


def test_no_room_for_float() -> None:
    """Two layers fit in float; the others get 8-bit weights, which add nothing here."""
    spare = 2 * (FLOAT - INT8) + 100
    outcome = put_back(made_up(), ranked(), Measure(), drop=0.1, limit=0.069, spare=spare)
    assert [one.to for one in outcome.put_back] == ["float", "float", "weight-only", "weight-only"]
    assert [one.bytes_added for one in outcome.put_back] == [FLOAT - INT8, FLOAT - INT8, 0, 0]
    assert "would exceed" in outcome.put_back[2].reason
    assert "would exceed" not in outcome.put_back[1].reason
    assert put_back(made_up(), ranked(), Measure(), drop=0.1, limit=0.069, spare=1e9).put_back[3].to == "float"


def test_where_neither_fits_a_layer_stays() -> None:
    four = LayerQuantization("linear", "weight-only", bits=4)
    outcome = put_back(made_up(layer0=four), ranked(), lambda state: 0.0, drop=0.1, limit=0.01, spare=10)
    assert outcome.put_back[0].layer == NAMES[1]


def test_points_and_chosen_weights_go_with_their_layer() -> None:
    point = PointQuantization("attention", 8, {"query": (-1.0, 1.0)})
    state = made_up()
    assert state.quantization is not None
    tensors = {f"{NAMES[0]}/weight": np.zeros(1), f"{NAMES[1]}/weight": np.ones(1)}
    decision = dataclasses.replace(state.quantization, points={"p:attention": point}, tensors=tensors)
    outcome = put_back(
        dataclasses.replace(state, quantization=decision),
        ranked(["p:attention", NAMES[0]]),
        lambda state: 0.1 if state.quantization and NAMES[0] in state.quantization.layers else 0.0,
        drop=0.2,
        limit=0.05,
        to="float",
    )
    assert [(one.layer, one.bytes_added) for one in outcome.put_back] == [("p:attention", 0), (NAMES[0], FLOAT - INT8)]
    assert outcome.state.quantization is not None
    assert outcome.state.quantization.points == {}
    assert list(outcome.state.quantization.tensors) == [f"{NAMES[1]}/weight"]


def test_the_history_says_why() -> None:
    outcome = put_back(made_up(), ranked(), Measure(), drop=0.1, limit=0.085, spare=FLOAT - INT8)
    (record,) = outcome.state.history
    assert (record.name, record.options) == ("put-back", {"accuracy_drop": 0.085})
    assert record.report["left_alone"] == {NAMES[0]: "put back: alone it costs 0.1 in cosine"}
    assert list(record.report["weight_only"]) == [NAMES[1]]
    told = outcome.to_dict()
    assert told["put_back"][0] == {
        "layer": "layer0",
        "to": "float",
        "reason": "put back: alone it costs 0.1 in cosine",
        "drop_alone": 0.1,
        "bytes_added": FLOAT - INT8,
    }
    assert told["put_back_steps"][:2] == [{"layers": 0, "drop": 0.1}, {"layers": 1, "drop": pytest.approx(0.09)}]


def bundles_of(drop: float | None, added: float = 0) -> dict[str, Manifest]:
    """Those of two targets, the second the worse and the larger one."""
    first = manifest("arm64", drop=None if drop is None else drop / 2)
    return {"arm64": first, "other": manifest("other", drop=drop, megabytes=20.0 + added / 1e6)}


@pytest.mark.parametrize(
    ("budget", "drop", "expected"),
    [
        (Budget(accuracy_drop=0.01), 0.02, True),
        (Budget(accuracy_drop=0.01), 0.01, False),
        (Budget(accuracy_drop=0.01, put_back="none"), 0.02, False),
        (Budget(size_mb=1), 0.02, False),
        (Budget(accuracy_drop=0.01), None, False),
    ],
)
def test_when_it_is_needed(budget: Budget, drop: float | None, expected: bool) -> None:
    assert needed(budget, bundles_of(drop)) is expected


def test_a_budget_is_met_by_the_worst_target() -> None:
    measure = Measure()
    limit = Budget(accuracy_drop=0.079, size_mb=20.0 + 1.5 * (FLOAT - INT8) / 1e6)
    outcome = meet_budget(made_up(), ranked(), lambda state: bundles_of(measure(state)), limit, bundles_of(0.1))
    assert [one.to for one in outcome.put_back] == ["float", "weight-only", "weight-only"]
    assert outcome.drop == pytest.approx(0.1 - 0.01 - 2 * 0.006)
    weights = dataclasses.replace(limit, put_back="weight-only", accuracy_drop=0.0945)
    outcome = meet_budget(made_up(), ranked(), lambda state: bundles_of(Measure()(state)), weights, bundles_of(0.1))
    assert [one.to for one in outcome.put_back] == ["weight-only"]


# From here on: a real model whose one scaled channel makes one layer costly.


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    floating = scale_channel(plain_model(tmp_path_factory.mktemp("put-back") / "model"))
    return run_pass(Quantize(), floating, PassContext(tmp_path_factory.mktemp("pass"), TEXTS))


@pytest.fixture(scope="module")
def exported(state: ModelState, here: Target) -> Callable[[ModelState], float]:
    """The drop of a state's exported graph in onnxruntime."""
    part, manifest, tokenizer = state.parts["encoder"], describe(state), tokenizer_json(state)
    traced = trace(part, opset=23, max_length=state.spec.max_length)
    reference = model_on(open_graph(prepare_float(traced)), manifest, tokenizer)

    def measure(candidate: ModelState) -> float:
        assert candidate.quantization is not None
        graph = lower_int8(traced, candidate.quantization.of_part("encoder"), here)
        found = quality(reference, model_on(open_graph(graph), manifest, tokenizer), state.spec.task, TEXTS)
        return found.drop

    return measure


def in_torch(candidate: ModelState) -> float:
    """The drop of a state as torch simulates it."""
    assert candidate.quantization is not None
    part = fake_quantized(candidate.parts["encoder"], candidate.quantization.of_part("encoder"))
    rounded = torch_model(dataclasses.replace(candidate, parts={"encoder": part}))
    return quality(torch_model(candidate), rounded, candidate.spec.task, TEXTS).drop


def put_back_one(state: ModelState, measure: Callable[[ModelState], float]) -> Outcome:
    ranking = rank(state, TEXTS)
    before = measure(state)
    outcome = put_back(state, ranking, measure, drop=before, limit=before / 5)
    assert outcome.fits
    assert outcome.drop <= before / 5
    return outcome


@pytest.mark.parametrize("where", ["torch", "graph"])
def test_exactly_the_layer_of_the_scaled_channel_is_put_back(
    where: str, state: ModelState, exported: Callable[[ModelState], float]
) -> None:
    outcome = put_back_one(state, in_torch if where == "torch" else exported)
    assert [(one.layer, one.to) for one in outcome.put_back] == [(WORST, "float")]
    assert isinstance(outcome.put_back[0], PutBack)
    assert outcome.state.quantization is not None
    assert state.quantization is not None
    assert set(state.quantization.layers) - set(outcome.state.quantization.layers) == {WORST}
    assert outcome.state.history[-1].report["left_alone"] == {WORST: outcome.put_back[0].reason}


def test_without_the_channel_nothing_is_put_back(
    tmp_path: Path, exported: Callable[[ModelState], float], state: ModelState
) -> None:
    """The same model, its channel not scaled, fits at once: the layer is not costly of itself."""
    limit = exported(state) / 5
    plain = run_pass(Quantize(), plain_model(tmp_path / "m"), PassContext(tmp_path, TEXTS))
    ranking = rank(plain, TEXTS)
    outcome = put_back(plain, ranking, in_torch, drop=in_torch(plain), limit=limit)
    assert (outcome.fits, outcome.put_back, len(outcome.steps)) == (True, (), 1)

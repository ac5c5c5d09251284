"""Puts the most sensitive layers of a decision back, as few as it takes to meet a limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from edgec_runtime.manifest import Manifest, PassRecord

from edgec.budget import room, worst_drop
from edgec.ranking import Ranking
from edgec.ranking.sizes import layer_bytes, module_of
from edgec.recipe import Budget
from edgec.state import LayerQuantization, ModelState, Quantization

To = Literal["float", "weight-only"]
NAME: Final = "put-back"
"""Of the record in the history of a state."""


@dataclass(frozen=True)
class PutBack:
    """A layer (or a point) that is not quantized as the passes decided.

    layer: "PART:PATH". drop_alone: what it costs alone, from the ranking. bytes_added: to the weights of a bundle.
    """

    layer: str
    to: To
    reason: str
    drop_alone: float
    bytes_added: int


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    state: with the layers of `put_back` in their new form. steps: how many layers were put back, and the drop that was
    measured then, in the order of the number. fits: whether the limit is met; where it is not, the state is the one
    with the least drop that was measured.
    """

    state: ModelState
    put_back: tuple[PutBack, ...]
    steps: tuple[tuple[int, float], ...]
    fits: bool

    @property
    def drop(self) -> float:
        """Of `state`, as measured."""
        return dict(self.steps)[len(self.put_back)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, "put_back" and "put_back_steps"; layers go by module path."""
        layers = [{**dataclasses.asdict(one), "layer": one.layer.partition(":")[2]} for one in self.put_back]
        return {"put_back": layers, "put_back_steps": [{"layers": k, "drop": drop} for k, drop in self.steps]}


def put_back(
    state: ModelState,
    ranking: Ranking,
    measure: Callable[[ModelState], float],
    *,
    drop: float,
    limit: float,
    to: To = "float",
    spare: float | None = None,
) -> Outcome:
    """Put the first layers of `ranking` back, as few as it takes for `measure` to give at most `limit`.

    measure: the drop of a state, from bundles that were exported and scored. drop: that of `state` itself. to: what a
    layer becomes: float, or weights of 8 bits with float activations (a point always becomes float). spare: bytes that
    the largest bundle may grow by; a layer that would exceed them in float gets 8-bit weights instead. A layer that is
    in the form already, or that fits in neither, is passed over.

    The number is doubled until the limit is met, then the smallest is found by bisection, which takes the drop to fall
    with every layer: at most about 2 log2(layers) calls of `measure`, each for a number that was not tried before.
    """
    plan = _plan(state, ranking, to, spare)
    measured = {0: drop}

    def fits(count: int) -> bool:
        if count not in measured:
            measured[count] = measure(_applied(state, plan[:count], limit))
        return measured[count] <= limit

    low, high = 0, 0
    while not fits(high) and high < len(plan):
        low, high = high, min(max(2 * high, 1), len(plan))
    met = fits(high)
    while met and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    count = high if met else min(measured, key=lambda tried: (measured[tried], tried))
    chosen = tuple(plan[:count])
    return Outcome(_applied(state, chosen, limit), chosen, tuple(sorted(measured.items())), met)


def needed(budget: Budget, bundles: Mapping[str, Manifest]) -> bool:
    """Whether one of these bundles, by target, misses accuracy_drop, and the budget wants layers put back for it."""
    drop = worst_drop(bundles)
    return (
        budget.put_back != "none"
        and budget.accuracy_drop is not None
        and drop is not None
        and drop > budget.accuracy_drop
    )


def meet_budget(
    state: ModelState,
    ranking: Ranking,
    export: Callable[[ModelState], Mapping[str, Manifest]],
    budget: Budget,
    bundles: Mapping[str, Manifest],
) -> Outcome:
    """put_back by the limits of `budget`, where it is `needed`.

    bundles: those of `state`, by target. export: writes and scores the bundles of a state in their place; what lies
    there in the end is that of the last state that was tried, so the outcome's has to be exported again.
    """
    drop, limit = worst_drop(bundles), budget.accuracy_drop
    assert drop is not None
    assert limit is not None
    assert budget.put_back != "none"

    def measure(candidate: ModelState) -> float:
        found = worst_drop(export(candidate))
        assert found is not None
        return found

    return put_back(state, ranking, measure, drop=drop, limit=limit, to=budget.put_back, spare=room(budget, bundles))


def _plan(state: ModelState, ranking: Ranking, to: To, spare: float | None) -> list[PutBack]:
    """Every layer that can be put back, in the order of the ranking, and what each becomes."""
    assert state.quantization is not None
    plan: list[PutBack] = []
    left = float("inf") if spare is None else spare
    for found in ranking.layers:
        alone = f"alone it costs {found.drop:.3g} in cosine"
        if found.layer in state.quantization.points:
            plan.append(PutBack(found.layer, "float", f"put back: {alone}", found.drop, 0))
            continue
        layer, module = state.quantization.layers[found.layer], module_of(state, found.layer)
        now = layer_bytes(module, layer)
        grown = layer_bytes(module, None) - now
        weights = _weight_only(layer)
        if to == "float" and grown <= left:
            plan.append(PutBack(found.layer, "float", f"put back: {alone}", found.drop, grown))
        elif weights is not None and layer_bytes(module, weights) - now <= left:
            reason = f"put back to 8-bit weights: {alone}"
            if to == "float":
                reason += "; in float the bundle would exceed its size"
            plan.append(PutBack(found.layer, "weight-only", reason, found.drop, layer_bytes(module, weights) - now))
        else:
            continue
        left -= plan[-1].bytes_added
    return plan


def _weight_only(layer: LayerQuantization) -> LayerQuantization | None:
    """The layer with weights of 8 bits and float activations; None where it is that already."""
    if layer.scheme == "weight-only" and layer.bits == 8:
        return None
    return LayerQuantization(layer.kind, "weight-only", bits=8)


def _applied(state: ModelState, chosen: Sequence[PutBack], limit: float) -> ModelState:
    """`state` with these layers put back, and a record that says why, which `edgec audit` reads."""
    quantization = state.quantization
    if quantization is None or not chosen:
        return state
    gone = {one.layer for one in chosen}
    layers = {key: layer for key, layer in quantization.layers.items() if key not in gone}
    for one in chosen:
        form = _weight_only(quantization.layers[one.layer]) if one.to == "weight-only" else None
        if form is not None:
            layers[one.layer] = form
    points = {key: point for key, point in quantization.points.items() if key not in gone}
    tensors = {name: tensor for name, tensor in quantization.tensors.items() if name.rpartition("/")[0] not in gone}
    record = PassRecord(
        NAME,
        {"accuracy_drop": limit},
        {
            "left_alone": {one.layer: one.reason for one in chosen if one.to == "float"},
            "weight_only": {one.layer: one.reason for one in chosen if one.to == "weight-only"},
        },
    )
    decision: Quantization | None = dataclasses.replace(quantization, layers=layers, points=points, tensors=tensors)
    # With nothing left to round the model is the float one, and is exported as that.
    return dataclasses.replace(
        state, quantization=decision if layers or points else None, history=(*state.history, record)
    )

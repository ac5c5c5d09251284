"""What a decoupled all-MiniLM-L6-v2 keeps, over its splits, compressed, and with states in int8: F1 on SQuAD 2.0, or
accuracy on sentence pairs.

The teacher is trained once a seed, at the rate that is best on half of dev after some steps; every decoupled model
learns from it for as many steps, at that rate unless another is asked for. Told is the other half of dev. Nothing
trains with dropout, which costs a fourth of the time of a step here. What a step costs is told with the interval that
holds it for 95 of 100 draws of the questions. Every cell is kept in FILE.cells.jsonl: a run that is stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import matplotlib
import torch
from matplotlib.figure import Figure

from benchmarks.papers.cells import Cell, Kept, over_seeds, run
from benchmarks.papers.models import WORK, kept, through
from edgec.models import load_model
from edgec.passes import Decouple, Finetune
from edgec.passes.learn import copied, fit
from edgec.state import ModelState, PassContext, TrainingData
from edgec.training.features import Featurizer

from .lost import lost
from .materials import MATERIALS
from .models import TOKENIZER

LAYERS: Final = 6
RATES: Final = (2e-4, 5e-4)
COMPRESSION: Final = 4.0
COMPRESSED: Final = (2, 3)
SETTINGS: Final = (
    "on",
    "steps",
    "rates",
    "decoupled_rate",
    "choose_steps",
    "compression_steps",
    "batch",
    "max_length",
    "rows",
    "contrastive",
    "scored",
    "threads",
)
MORE: Final = ", as many steps more"
"""As compression takes: what it is set beside, since those steps alone teach something, too."""
BEFORE: Final = {
    **{f"{split}-{LAYERS - split}": "standard" for split in range(1, LAYERS)},
    **{f"{split}-{LAYERS - split}{MORE}": f"{split}-{LAYERS - split}" for split in COMPRESSED},
    **{f"{split}-{LAYERS - split}, {COMPRESSION:g}x": f"{split}-{LAYERS - split}{MORE}" for split in COMPRESSED},
    **{
        f"{split}-{LAYERS - split}, {COMPRESSION:g}x, int8 states": f"{split}-{LAYERS - split}, {COMPRESSION:g}x"
        for split in COMPRESSED
    },
}
"""What each model is set beside, to tell what its last step cost."""
CURVES: Final = {
    "": ("decoupled", "o-"),
    MORE: ("after as many steps more", "v"),
    f", {COMPRESSION:g}x": ("states compressed in those steps", "s"),
    f", {COMPRESSION:g}x, int8 states": ("and kept in int8", "x"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with squad2 and stsb")
    parser.add_argument("--on", choices=MATERIALS, default="squad2")
    parser.add_argument("--steps", type=int, default=2000, help="of the teacher, and of each decoupled model")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of which one is chosen")
    parser.add_argument("--decoupled-rate", type=float, help="of the decoupled models; default the teacher's")
    parser.add_argument("--choose-steps", type=int, default=120, help="after which the teacher's rate is chosen")
    parser.add_argument("--compression-steps", type=int, help="more of them with compression; default half as many")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256, help="tokens a training row")
    parser.add_argument("--rows", type=int, help="training rows; default all")
    parser.add_argument("--contrastive", type=float, default=0.0, help="weight of the loss that trains dense search")
    parser.add_argument("--scored", type=int, help="rows of each half of dev; default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="cells whose name is this")
    parser.add_argument("--finished", action="store_true", help="tell what is trained by now, and train nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in SETTINGS}
    store = Kept(options.out.with_suffix(".cells.jsonl"), {k: v for k, v in settings.items() if k != "threads"})
    wanted = [cell for cell in cells(options) if options.only is None or options.only == cell.name]
    if options.finished:
        wanted = [cell for cell in wanted if cell.key in store.cells]
    found = run(wanted, store)
    material = MATERIALS[options.on]
    return {
        "on": options.on,
        "paper": material.paper,
        "settings": settings,
        "cells": [{name: value for name, value in cell.items() if name != "each"} for cell in found],
        "means": {name: over_seeds(found, name) for name in material.figures},
        "lost": {name: of for name, before in BEFORE.items() if (of := lost(found, name, before)) is not None},
    }


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        yield Cell("standard", seed, partial(_told, options, partial(_teacher, options, seed)))
        for split in range(1, LAYERS):
            make = partial(_decoupled, options, seed, split, None)
            yield Cell(f"{split}-{LAYERS - split}", seed, partial(_told, options, make))
        for split in COMPRESSED:
            yield Cell(
                f"{split}-{LAYERS - split}{MORE}", seed, partial(_told, options, partial(_more, options, seed, split))
            )
            make = partial(_decoupled, options, seed, split, COMPRESSION)
            name = f"{split}-{LAYERS - split}, {COMPRESSION:g}x"
            yield Cell(name, seed, partial(_told, options, make))
            yield Cell(f"{name}, int8 states", seed, partial(_told, options, make, rounded=True))


def _rows(options: argparse.Namespace) -> tuple[Any, ...]:
    found, rows = MATERIALS[options.on].train(options.data), options.rows
    return found if rows is None else found[:: max(1, len(found) // rows)][:rows]


def _scores(options: argparse.Namespace, state: ModelState, half: int) -> dict[str, Any]:
    material = MATERIALS[options.on]
    return material.scores(state, material.dev(options.data, half)[: options.scored])


def _base(options: argparse.Namespace) -> ModelState:
    """all-MiniLM-L6-v2 without dropout."""

    def make() -> ModelState:
        state = load_model(TOKENIZER, task="feature-extraction", max_length=256)
        config = state.parts["encoder"].model.config
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        return state

    return load_model(kept("decoupled-base", make))


def _teacher(options: argparse.Namespace, seed: int) -> ModelState:
    chosen = _best(options)
    make = partial(_trained, options, chosen, seed, options.steps)
    return load_model(kept(_name(options, f"teacher-{chosen:g}-{seed}"), make))


def _trained(options: argparse.Namespace, rate: float, seed: int, steps: int) -> ModelState:
    step = Finetune(
        task=MATERIALS[options.on].head,
        steps=steps,
        batch_size=options.batch,
        learning_rate=rate,
        max_length=options.max_length,
        checks=4,
    )
    return through(_base(options), step, seed=seed, train=_rows(options))


def _best(options: argparse.Namespace) -> float:
    """The teacher's rate, by its first figure on the half of dev that is not told, with seed 0. Chosen once."""
    file = WORK / f"{_name(options, f'chosen-after-{options.choose_steps}')}.json"
    if not file.is_file():
        found = {}
        for rate in options.rates:
            state = _trained(options, rate, 0, options.choose_steps)
            found[rate] = next(iter(_scores(options, state, 0).values()))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
    known = json.loads(file.read_text(encoding="utf-8"))
    return float(max(known, key=lambda rate: known[rate]))


def _step(options: argparse.Namespace, split: int, compression: float | None) -> Decouple:
    return Decouple(
        split=split,
        compression=compression,
        steps=options.steps,
        compression_steps=None if compression is None else _steps_more(options),
        contrastive=options.contrastive,
        batch_size=options.batch,
        learning_rate=options.decoupled_rate or _best(options),
        max_length=options.max_length,
        checks=4,
    )


def _steps_more(options: argparse.Namespace) -> int:
    return int(options.compression_steps or max(1, options.steps // 2))


def _decoupled(options: argparse.Namespace, seed: int, split: int, compression: float | None) -> ModelState:
    """Compression starts from the model without it, and takes more steps."""
    step, train = _step(options, split, compression), _rows(options)

    def make() -> ModelState:
        teacher = _teacher(options, seed)
        if compression is None:
            return through(teacher, step, seed=seed, train=train)
        return _gone_on(options, seed, split, lambda start, ctx: step.compress(start, teacher, ctx))

    what = _what(step) + (f"-{compression:g}x-{step.compression_steps}" if compression is not None else "")
    return load_model(kept(_name(options, f"{what}-{seed}"), make))


def _more(options: argparse.Namespace, seed: int, split: int) -> ModelState:
    """The decoupled model after the steps that compression takes, without it."""
    step = _step(options, split, None)
    longer = dataclasses.replace(step.trains, steps=_steps_more(options))

    def learn(start: ModelState, ctx: PassContext) -> None:
        rows = Featurizer(start, max_length=options.max_length).labelled(ctx.data.train)
        part: Any = _teacher(options, seed).parts["encoder"]
        fit(start, rows, step.objective(part, multi_label=False), longer, ctx, label="more")

    def make() -> ModelState:
        return _gone_on(options, seed, split, learn)

    return load_model(kept(_name(options, f"{_what(step)}-and-{longer.steps}-{seed}"), make))


def _gone_on(
    options: argparse.Namespace, seed: int, split: int, learn: Callable[[ModelState, PassContext], object]
) -> ModelState:
    """The decoupled model after something more that it learns, in place."""
    start = copied(_decoupled(options, seed, split, None))
    with tempfile.TemporaryDirectory(prefix="edgec-decoupled-") as folder:
        learn(start, PassContext(Path(folder), (), seed, data=TrainingData(_rows(options))))
    return start


def _what(step: Decouple) -> str:
    return f"split{step.split}-{step.learning_rate:g}" + (
        f"-contrastive{step.contrastive:g}" if step.contrastive else ""
    )


def _name(options: argparse.Namespace, what: str) -> str:
    return f"decoupled-{options.on}-{options.steps}x{options.batch}-{options.max_length}-{options.rows or 'all'}-{what}"


def _told(options: argparse.Namespace, make: Callable[[], ModelState], *, rounded: bool = False) -> dict[str, Any]:
    state = make()
    with _int8_states(state) if rounded else _as_it_is():
        return _scores(options, state, 1)


@contextmanager
def _int8_states(state: ModelState) -> Iterator[None]:
    """Inside, the kept states of passages are rounded to int8 with a scale a token, as the passage store keeps them."""
    seam: Any = state.parts["encoder"].seam
    joined = seam.joined

    def rounding(states: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        scale = (states.abs().amax(-1, keepdim=True) / 127).to(torch.float16).float()
        rounded = (states / scale.clamp(min=1e-8)).round().clamp(-127, 127) * scale
        return joined(torch.where(types[..., None] == 1, rounded, states), types)

    seam.joined = rounding
    try:
        yield
    finally:
        del seam.joined


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def table(result: Mapping[str, Any]) -> str:
    means, figures = result["means"], MATERIALS[result["on"]].figures
    lines = [f"| | {' | '.join(figures.values())} | lost by its last step |", "|---" * (len(figures) + 2) + "|"]
    for name, first in means[next(iter(figures))].items():
        values = [f"{means[figure][name]['mean']:.1f}" for figure in figures]
        values[0] += f" ± {first['std']:.1f}" if first["seeds"] > 1 else ""
        of = result["lost"].get(name)
        values.append("" if of is None else f"{of['mean']:.1f} ({of['low']:.1f} to {of['high']:.1f})")
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def draw(result: Mapping[str, Any], file: Path) -> None:
    """The first figure over the splits."""
    figure_name, title = next(iter(MATERIALS[result["on"]].figures.items()))
    means = result["means"][figure_name]
    splits = [f"{split}-{LAYERS - split}" for split in range(1, LAYERS)]
    with matplotlib.rc_context({"svg.hashsalt": "edgec", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for ending, (label, style) in CURVES.items():
            shown = [(at, means[name + ending]) for at, name in enumerate(splits) if name + ending in means]
            if shown:
                places, values = zip(*shown, strict=True)
                axes.errorbar(places, [v["mean"] for v in values], [v["std"] for v in values], fmt=style, label=label)
        if "standard" in means:
            axes.axhline(means["standard"]["mean"], color="k", linestyle="--", label="standard")
        if "always_one" in result["means"]:
            commoner = result["means"]["always_one"]["standard" if "standard" in means else next(iter(means))]["mean"]
            axes.axhline(commoner, color="k", linestyle=":", label="always the commoner label")
        axes.set_xticks(range(len(splits)), splits)
        axes.set_xlabel("layers that read apart - together")
        axes.set_ylabel(f"{title}, %")
        axes.legend(frameon=False)
        axes.grid(axis="y", alpha=0.3)
        figure.savefig(file, metadata={"Date": None})

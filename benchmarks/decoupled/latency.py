"""Time of a question over kept passages, against the model whose layers all read both, and against its FLOPs.

A model of BERT-base's shape with random weights. Ids in, logits out; the states of the passages are at hand, as the
passage store gives them; the question is encoded once for all its passages, which the cross component reads as one
batch. All forms take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from edgec_runtime import load, machine, statistics
from edgec_runtime.decoupled import Components
from edgec_runtime.rounds import interleave
from matplotlib.figure import Figure

from edgec.auditing import audit
from edgec.target import detect

from .models import LAYERS, bundles, cut, whole

INPUTS: Final = {"long": (64, 448), "short": (16, 150)}
"""Tokens of the question and of the passage, as in the paper's section 5.5."""

PAPER: Final = {"long": 0.40, "short": 0.46}
"""What the paper's CPU saved at 5-7 (Table 6)."""

SPLIT: Final = 5
COMPRESSION: Final = 4.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rounds-of-ten", type=int, default=5, help="of ten passages, which take ten times as long")
    parser.add_argument("--compressed", action="store_true", help="5-7 with compressed states, too")
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS), help="that 5-7 is measured at")
    parser.add_argument("--passages", type=int, nargs="+", default=[1, 10], help="that 5-7 is measured with")
    parser.add_argument("--splits", type=int, nargs="*", default=list(range(3, 10)), help="beside 5-7, at short")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    target, _ = detect(machine.facts())
    with tempfile.TemporaryDirectory(prefix="edgec-decoupled-") as temporary:
        folder = Path(temporary)
        state = whole(folder / "model")
        standard = bundles(state, folder, target, "standard")
        wanted: set[tuple[int, float | None]] = {(SPLIT, None), *((split, None) for split in options.splits)}
        wanted |= {(SPLIT, COMPRESSION)} if options.compressed else set()
        cells: list[dict[str, Any]] = []
        for split, compression in sorted(wanted, key=lambda one: (one[0] != SPLIT, one[0], one[1] or 0)):
            name = f"{split}-{LAYERS - split}" + (f", {compression:g}x" if compression else "")
            print(f"export {name}", flush=True)
            made = bundles(cut(state, split, compression), folder, target, f"split{split}{'c' if compression else ''}")
            for length, (question, passage) in INPUTS.items():
                if length not in options.inputs or (split != SPLIT and length == "long"):
                    continue
                for passages in options.passages if split == SPLIT else (1,):
                    rounds = options.rounds if passages == 1 else options.rounds_of_ten
                    times = _times(standard, made, question, passage, passages, options.threads, rounds)
                    saved = _macs(made["fp32"], question, passage, passages)
                    cells.append({"split": name, "length": length, "passages": passages, **saved, **times})
                    print(_said(cells[-1]), flush=True)
    return {
        "target": target.name,
        "threads": options.threads,
        "model": "BERT-base's shape, random weights",
        "tokens": INPUTS,
        "paper_saved_on_cpu": PAPER,
        "cells": cells,
    }


def _macs(bundle: Path, question: int, passage: int, passages: int) -> dict[str, Any]:
    found = audit(bundle, tokens=question + passage, question_tokens=question).components
    assert found is not None
    spent = found.question + passages * found.cross
    return {
        "cross_ratio": found.cross_ratio,
        "macs_saved": round(1 - spent / (passages * found.standard), 4),
    }


def _times(
    standard: Mapping[str, Path],
    made: Mapping[str, Path],
    question: int,
    passage: int,
    passages: int,
    threads: int,
    rounds: int,
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    asked = rng.integers(1000, 20000, question, dtype=np.int32)
    read = rng.integers(1000, 20000, (passages, passage), dtype=np.int32)
    work: dict[str, Callable[[], object]] = {}
    models = []
    for precision in ("fp32", "int8"):
        for kind, folders in (("standard", standard), ("decoupled", made)):
            model = load(folders[precision], threads=threads, schedule="batches")
            models.append(model)
            engine = model.runner.engine
            if isinstance(engine, Components):
                kept = engine.encode(list(read), 1)["states"]
                work[f"{kind} {precision}"] = partial(_decoupled, engine, asked, kept)
            else:
                work[f"{kind} {precision}"] = partial(_standard, engine, asked, read)
    series = dict(zip(work, interleave(list(work.values()), rounds, lambda line: None), strict=True))
    for model in models:
        model.close()

    def ratio(slower: str, faster: str) -> dict[str, float]:
        found = statistics.ratio(series[slower].rounds, series[faster].rounds)
        return {"median": round(found.median, 4), "p10": round(found.p10, 4), "p90": round(found.p90, 4)}

    ratios = {
        "fp32": ratio("standard fp32", "decoupled fp32"),
        "int8": ratio("standard int8", "decoupled int8"),
        "int8_over_standard_fp32": ratio("standard fp32", "decoupled int8"),
        "standard_int8_over_fp32": ratio("standard fp32", "standard int8"),
    }
    return {
        "p50_ms": {name: round(statistics.median(found.rounds), 2) for name, found in series.items()},
        "speedup": ratios,
        "time_saved": {name: round(1 - 1 / ratios[name]["median"], 4) for name in ("fp32", "int8")},
    }


def _standard(engine: Any, asked: Any, read: Any) -> object:
    ids = np.concatenate([np.broadcast_to(asked, (len(read), len(asked))), read], axis=1)
    types = np.zeros_like(ids)
    types[:, len(asked) :] = 1
    return engine.run({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types})


def _decoupled(engine: Components, asked: Any, kept: Any) -> object:
    own = engine.encode([asked], 0)["states"]
    states = np.concatenate([np.broadcast_to(own, (len(kept), *own.shape[1:])), kept], axis=1)
    mask = np.ones(states.shape[:2], np.int32)
    types = np.zeros_like(mask)
    types[:, len(asked) :] = 1
    return engine.cross.run({"states": states, "attention_mask": mask, "token_type_ids": types})


def _said(cell: Mapping[str, Any]) -> str:
    return (
        f"{cell['split']}, {cell['length']}, {cell['passages']}: FLOPs -{cell['macs_saved']:.0%}, "
        f"fp32 -{cell['time_saved']['fp32']:.0%}, int8 -{cell['time_saved']['int8']:.0%}, "
        f"int8 decoupled {cell['speedup']['int8_over_standard_fp32']['median']:.2f}x over fp32 standard"
    )


def table(result: Mapping[str, Any]) -> str:
    lines = [
        "| split | input | passages | FLOPs saved | time saved, fp32 | int8 | int8 decoupled over fp32 standard |",
        "|---" * 7 + "|",
    ]
    for cell in result["cells"]:
        lines.append(
            f"| {cell['split']} | {cell['length']} | {cell['passages']} | {cell['macs_saved']:.1%} | "
            f"{cell['time_saved']['fp32']:.1%} | {cell['time_saved']['int8']:.1%} | "
            f"{cell['speedup']['int8_over_standard_fp32']['median']:.2f}x |"
        )
    return "\n".join(lines)


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Time saved against FLOPs saved over the splits, one passage, short inputs."""
    cells: Sequence[Mapping[str, Any]] = [
        cell
        for cell in result["cells"]
        if cell["length"] == "short" and cell["passages"] == 1 and "x" not in cell["split"]
    ]
    cells = sorted(cells, key=lambda cell: cell["macs_saved"])
    with matplotlib.rc_context({"svg.hashsalt": "edgec", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(cells))
        for name, label, style in (
            ("macs_saved", "multiply-accumulates, counted", "k--"),
            ("fp32", "time, fp32", "o-"),
            ("int8", "time, int8", "s-"),
        ):
            values = [100 * (cell[name] if name == "macs_saved" else cell["time_saved"][name]) for cell in cells]
            axes.plot(places, values, style, label=label)
        axes.set_xticks(list(places), [cell["split"] for cell in cells])
        axes.set_xlabel("layers that read apart - together")
        axes.set_ylabel("saved, %")
        axes.set_title("A question of 16 tokens over a kept passage of 150, one thread", fontsize=10)
        axes.legend(frameon=False)
        axes.grid(axis="y", alpha=0.3)
        figure.savefig(file, metadata={"Date": None})

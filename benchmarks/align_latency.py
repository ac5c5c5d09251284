"""What the alignment adapter costs in time: all-MiniLM-L6-v2 cut to 2 layers with a head for tags, float and int8.

Every bundle takes turns with all others of its precision. Weights hardly matter to speed, so each model is trained for
one step.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from edgec_runtime import machine

from edgec.data.examples import Tagged
from edgec.devices import compare, open_device
from edgec.devices.compare import BenchReport
from edgec.exporter import FP32, Exporter
from edgec.passes import Align, Finetune, Prune, Quantize
from edgec.state import ModelState
from edgec.target import detect

from .papers.data import pos_english
from .papers.models import SOURCE, large, parameters, through

PLAIN: Final = "2 layers"
WINDOWS: Final = (1, 3, 5)
ROWS: Final = 256
INT8: Final = "int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ud_english_ewt")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the result here; default: stdout")
    options = parser.parse_args()

    made = models(options.data)
    with tempfile.TemporaryDirectory(prefix="edgec-align-") as folder:
        speeds = {
            precision: measured(made, precision, Path(folder), options.tokens, options.rounds)
            for precision in (FP32, INT8)
        }
    result: dict[str, Any] = {
        "suite": "align-latency",
        "command": shlex.join(["python", "-m", "benchmarks.align_latency", *sys.argv[1:]]),
        "machine": machine.facts(),
        "threads": 1,
        "rounds": options.rounds,
        "parameters": {name: parameters(state)["parameters"] for name, (state, _) in made.items()},
        "speeds": speeds,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(table(result))


def models(data: Path) -> dict[str, tuple[ModelState, ModelState]]:
    """By name, in float and quantized: the compressed model alone, with each window, and deeper ones."""
    train = pos_english(data, ROWS).train
    texts = [example.text for example in train if isinstance(example, Tagged)]
    head = Finetune(task="token-classification", steps=1, checks=1)

    def cut(layers: int) -> ModelState:
        step = Prune(structure="layers", keep=layers, select="similarity")
        return through(large(), step, head, seed=0, train=train)

    def aligned(window: Any) -> ModelState:
        step = Align(large=SOURCE, window=window, phases=(3,), task="token-classification", steps=1, checks=1)
        return through(cut(2), step, seed=0, train=train)

    found = {PLAIN: cut(2)} | {f"2 layers, W-{window}": aligned(window) for window in WINDOWS}
    found |= {
        "3 layers": cut(3),
        "4 layers": cut(4),
        "6 layers, the large model": through(large(), head, seed=0, train=train),
    }
    return {name: (state, through(state, Quantize(), seed=0, texts=texts)) for name, state in found.items()}


def measured(
    made: dict[str, tuple[ModelState, ModelState]], precision: str, folder: Path, tokens: list[int], rounds: int
) -> dict[str, Any]:
    """By name and number of tokens: the median time, and how many times that of the model without an adapter."""
    target, _ = detect(machine.facts())
    bundles = []
    for number, (state, quantized) in enumerate(made.values()):
        bundles.append(folder / f"{precision}-{number}")
        exporter = Exporter(state if precision == FP32 else quantized, name=str(number))
        exporter.write(bundles[-1], target, precision=precision, min_cosine=-1.0)
    with open_device("local") as device:
        report: BenchReport = compare.bench(
            device,
            bundles,
            tokens=tokens,
            threads=1,
            rounds=rounds,
            cold_start=False,
            shapes_only=True,
            on_line=lambda line: None,
        )
    return {
        name: {
            str(count): {
                "p50_ms": found.shapes[1, count].p50_ms,
                "times": 1 / found.shapes[1, count].ratio.median,
                "p10": 1 / found.shapes[1, count].ratio.p90,
                "p90": 1 / found.shapes[1, count].ratio.p10,
            }
            for count in tokens
        }
        for name, found in zip(made, report.bundles, strict=True)
    }


def table(result: dict[str, Any]) -> str:
    """In Markdown: times as long as the model without an adapter, in the same precision."""
    speeds = result["speeds"]
    tokens = list(speeds[FP32][PLAIN])
    columns = [f"{precision}, {count} tokens" for precision in speeds for count in tokens]
    lines = [f"| | parameters | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for name, size in result["parameters"].items():
        values = (f"{speeds[precision][name][count]['times']:.2f}" for precision in speeds for count in tokens)
        lines.append(f"| {name} | {size / 1e6:.1f} M | {' | '.join(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

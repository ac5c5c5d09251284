"""python -m benchmarks.papers SUITE --data DIR --out FILE.json: an effect of a paper on real data, small.

Every cell of a suite is trained once and kept in FILE.cells.jsonl, so that a run goes on where it was stopped. The
table is printed, and plotted beside FILE.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from edgec_runtime import machine

from . import alad, distillation, plot, pruning, quantization
from .cells import Kept, run

SUITES: dict[str, Any] = {
    "alad": alad,
    "pruning": pruning,
    "distillation": distillation,
    "quantization": quantization,
}
"""Each has `cells(options)`, `summary(found)` and `FIGURE`, what its plot shows."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", type=Path, required=True, help="result file, such as benchmarks/results/NAME.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="cells whose name has this in it")
    parser.add_argument("--finished", action="store_true", help="tell what is trained by now, and train nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    suite = SUITES[options.suite]
    kept = Kept(options.out.with_suffix(".cells.jsonl"), suite.SETTINGS)
    wanted = [cell for cell in suite.cells(options) if options.only is None or options.only in cell.name]
    if options.finished:
        wanted = [cell for cell in wanted if cell.key in kept.cells]
    found = run(wanted, kept)
    result = {
        "suite": f"papers/{options.suite}",
        "command": shlex.join(["python", "-m", "benchmarks.papers", *sys.argv[1:]]),
        "machine": machine.facts(),
        "threads": options.threads,
        "settings": suite.SETTINGS,
        "cells": found,
        **suite.summary(found),
    }
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot.draw(options.suite, result, options.out.with_suffix(".svg"))
    print(suite.table(result))


if __name__ == "__main__":
    main()

"""python -m benchmarks.decoupled SUITE --out FILE.json: what the decoupled transformer saves, on this machine."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from edgec_runtime import machine

from . import latency, quality, retrieval, store

SUITES: dict[str, Any] = {"latency": latency, "quality": quality, "retrieval": retrieval, "store": store}
"""Each has `add_options(parser)`, `measure(options)`, `draw(result, file)` and `table(result)`."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.decoupled", description=__doc__)
    commands = parser.add_subparsers(dest="suite", required=True)
    for name, suite in SUITES.items():
        command = commands.add_parser(name, description=suite.__doc__)
        command.add_argument("--out", type=Path, required=True, help="such as benchmarks/results/NAME.json")
        suite.add_options(command)
    options = parser.parse_args()
    suite = SUITES[options.suite]
    result = {
        "suite": f"decoupled/{options.suite}",
        "command": shlex.join(["python", "-m", "benchmarks.decoupled", *sys.argv[1:]]),
        "machine": machine.facts(),
        **suite.measure(options),
    }
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    suite.draw(result, options.out.with_suffix(".svg"))
    print(suite.table(result))


if __name__ == "__main__":
    main()

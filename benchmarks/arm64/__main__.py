"""Instructions an inference on emulated arm64 CPUs: the bundle's graph against onnxruntime's stock dynamic int8 graph.

A count repeats to the instruction; it says what a core has to execute, not how long that takes. The emulated system
comes by `edgec doctor --install-emulator`; gcc compiles the plugin that counts.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import edgec_runtime  # noqa: F401 - before onnxruntime: it switches the telemetry off
from edgec_runtime.machine import facts
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.traced import trace_embedding
from edgec.devices import sysroot
from edgec.models import load_model

from .counting import Graph, build_plugin, by_operator, count, guest

# CPU: what stands for it, and the share of the stock graph's instructions that is aimed at.
CPUS = {
    "cortex-a72": ("no dot product", 0.98),
    "neoverse-n1": ("dot product", 0.96),
    "max,sve=off": ("i8mm", 0.95),
}
STOCK, BUNDLE, FLOAT = "stock dynamic u8s8", "bundle", "fp32"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.arm64", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, default=Path("build/minilm-int8"), help="what `make demo` wrote")
    parser.add_argument("--target", default="arm64", help="the bundle of the build")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--agree", type=int, default=3, help="fresh processes that must give the same count")
    parser.add_argument("--cpu", choices=CPUS, action="append", help="default: all")
    parser.add_argument("--operators", action="store_true", help="count every kind of operator too")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()

    plugin = build_plugin(sysroot.cache_folder() / "plugins")
    with tempfile.TemporaryDirectory(prefix="edgec-arm64-") as folder:
        graphs = stock_graphs(options.build / "model", Path(folder))
        graphs[BUNDLE] = Graph(options.build / "bundles" / options.target / "encoder.onnx", "stored")
        cpus = {cpu: measure(cpu, plugin, graphs, options) for cpu in options.cpu or CPUS}
    result = {
        "suite": "arm64",
        "command": shlex.join(["python", "-m", "benchmarks.arm64", *sys.argv[1:]]),
        "tokens": options.tokens,
        "agree": options.agree,
        "qemu": first_line([sysroot.find_qemu(), "--version"]),
        "versions": facts()["versions"],
        "cpus": cpus,
    }
    print(table(cpus))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def stock_graphs(model: Path, folder: Path) -> dict[str, Graph]:
    """fp32 as torch's older exporter traces it, and what quantize_dynamic with s8 weights per channel makes of it."""
    (part,) = load_model(model).parts.values()
    plain, quantized = folder / "fp32.onnx", folder / "dynamic.onnx"
    trace_embedding(part.model, plain)
    quantize_dynamic(plain, quantized, weight_type=QuantType.QInt8, per_channel=True)
    return {FLOAT: Graph(plain, "default"), STOCK: Graph(quantized, "default")}


def measure(cpu: str, plugin: Path, graphs: dict[str, Graph], options: argparse.Namespace) -> dict[str, Any]:
    means, target = CPUS[cpu]
    found: dict[str, Any] = {}
    with guest(cpu) as one:
        for name, graph in graphs.items():
            print(f"{cpu}: {name}", file=sys.stderr)
            runs = count(one, plugin, graph, options.tokens, options.agree)
            found[name] = {"instructions": runs[0], "runs": runs}
            if options.operators:
                found[name]["operators"] = by_operator(one, plugin, graph, options.tokens, runs[0])
    share = found[BUNDLE]["instructions"] / found[STOCK]["instructions"]
    return {"int8_instructions": means, "graphs": found, "bundle_of_stock": round(share, 4), "at_most": target}


def table(cpus: dict[str, Any]) -> str:
    lines = []
    for cpu, found in cpus.items():
        share, aim = found["bundle_of_stock"], found["at_most"]
        counts = ", ".join(f"{name} {one['instructions'] / 1e6:.2f} M" for name, one in found["graphs"].items())
        lines.append(f"{cpu} ({found['int8_instructions']}): {counts}")
        lines.append(
            f"  the bundle executes {share:.3f} of stock, aimed at {aim}: {'met' if share <= aim else 'missed'}"
        )
        for name, one in found["graphs"].items():
            lines += [f"    {name:<20}{line}" for line in operator_lines(one.get("operators", {}))]
    return "\n".join(lines)


def operator_lines(operators: dict[str, dict[str, int]]) -> list[str]:
    """What is worth a line: 50,000 instructions or more."""
    return [
        f"{name:<24} {one['nodes']:>4} {one['instructions'] / 1e6:9.3f} M"
        for name, one in operators.items()
        if one["instructions"] >= 50_000
    ]


def first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[0]


if __name__ == "__main__":
    main()

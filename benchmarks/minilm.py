"""all-MiniLM-L6-v2 in int8 against the fastest float form that stock onnxruntime runs, one thread, interleaved.

Ids in, embedding out. The float forms are the traced graph as onnxruntime loads it by default, the same without the
fusion of Add and LayerNormalization, the same from eager attention, and the baseline bundle that `edgec compress`
writes. Each shape's baseline is whichever of them was fastest there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import edgec_runtime  # noqa: F401 - before onnxruntime: it switches the telemetry off
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from edgec_runtime import machine, statistics
from edgec_runtime.rounds import interleave

import edgec
from edgec.data.load import read_rows
from edgec.data.readers import read_texts
from edgec.emulation import load_as_target
from edgec.evaluation import mean_cosine
from edgec.graph.trace import trace
from edgec.models import load_model
from edgec.scoring import score

SHAPES = ((1, 16), (1, 64), (1, 128), (1, 256), (8, 128))
HELD_OUT = 200
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/minilm-int8"), help="what `make demo` wrote")
    parser.add_argument("--target", default="x86_64-vnni", help="the bundle of the build that fits this machine")
    parser.add_argument("--data", type=Path, help="folder with stsb/stsb-en-dev.csv")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the result here; default: stdout")
    options = parser.parse_args()

    bundle = options.build / "bundles" / options.target
    sessions = float_forms(options.build, options.threads)
    sessions["int8 bundle"] = session(bundle / "encoder.onnx", options.threads)
    result = {
        "suite": "minilm",
        "command": shlex.join(["python", "-m", "benchmarks.minilm", *sys.argv[1:]]),
        "machine": machine.facts(),
        "threads": options.threads,
        "rounds": options.rounds,
        "shapes": [measure(sessions, shape, options.rounds) for shape in SHAPES],
        "quality": quality(options.build, options.data),
        "process": process_figures(options.build / "baseline", bundle),
        "files": {path.name: path.stat().st_size for path in sorted(bundle.iterdir())},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(summary(result))


def session(model: Path | bytes, threads: int, *, fuse: bool = True) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    off = [] if fuse else ["SkipLayerNormFusion"]
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        settings,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=off,
    )


def float_forms(build: Path, threads: int) -> dict[str, ort.InferenceSession]:
    state = load_model(build / "model")
    (part,) = state.parts.values()
    plain = to_bytes(trace(part, opset=23, max_length=state.spec.max_length))
    part.model.set_attn_implementation("eager")
    part.boolean_mask = False  # eager attention adds the mask to the scores
    eager = to_bytes(trace(part, opset=23, max_length=state.spec.max_length))
    return {
        "fp32, as onnxruntime loads it": session(plain, threads),
        "fp32, SkipLayerNormFusion off": session(plain, threads, fuse=False),
        "fp32, eager attention, SkipLayerNormFusion off": session(eager, threads, fuse=False),
        "fp32 baseline bundle": session(build / "baseline" / "encoder.onnx", threads),
    }


def to_bytes(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def measure(sessions: dict[str, ort.InferenceSession], shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    feeds = {
        "input_ids": rng.integers(1000, 20000, shape, dtype=np.int32),
        "attention_mask": np.ones(shape, np.int32),
    }
    print(f"{shape[0]} x {shape[1]} tokens", file=sys.stderr)
    work = [partial(one.run, None, feeds) for one in sessions.values()]
    series = dict(zip(sessions, interleave(work, rounds, lambda line: None), strict=True))
    floats = {name: statistics.median(found.rounds) for name, found in series.items() if name != "int8 bundle"}
    fastest = min(floats, key=lambda name: floats[name])
    ratio = statistics.ratio(series[fastest].rounds, series["int8 bundle"].rounds)
    return {
        "batch": shape[0],
        "tokens": shape[1],
        "p50_ms": {name: round(statistics.summarise(found.calls).p50, 4) for name, found in series.items()},
        "p90_ms": {name: round(statistics.summarise(found.calls).p90, 4) for name, found in series.items()},
        "fastest_float": fastest,
        "speedup": {"median": ratio.median, "p10": ratio.p10, "p90": ratio.p90},
        "unstable": statistics.unstable_ratio(ratio),
    }


def quality(build: Path, data: Path | None) -> dict[str, Any]:
    """By bundle: cosine against float torch on sentences that were not used for calibration, and Spearman on STS-B.

    A bundle answers as its target's CPUs do, emulated where this one would not.
    """
    from edgec.models.torch_model import torch_model

    recipe = json.loads((build / "report.json").read_text(encoding="utf-8"))["recipe"]
    shipped = Path(edgec.__file__).parent.parent / "recipes" / recipe["data"]["evaluate"]["text"]
    texts = {"recipe's evaluation sentences": [str(text) for text in read_texts(shipped)]}
    scored: list[Any] = []
    if data is not None:
        file = data / "stsb" / "stsb-en-dev.csv"
        scored = list(read_rows(file, text="sentence1", text_pair="sentence2", label="score").examples)
        sentences = sorted({str(text) for text in read_texts(file, text="sentence1")})
        chosen = np.random.default_rng(SEED).choice(len(sentences), HELD_OUT, replace=False)
        texts["STS-B dev sentences"] = [sentences[index] for index in sorted(chosen)]
    reference = torch_model(load_model(build / "model"))
    found: dict[str, Any] = {} if scored else {"note": "no --data: STS-B was not measured"}
    for folder in (build / "baseline", *sorted((build / "bundles").iterdir())):
        print(f"quality of {folder.name}", file=sys.stderr)
        with load_as_target(folder) as candidate:
            one: dict[str, Any] = {}
            if scored:
                one["stsb_dev_spearman"] = score(candidate, scored, where="stsb-en-dev.csv")["spearman"]
            for name, chosen_texts in texts.items():
                a = np.stack([vectors["sentence_embedding"] for vectors in reference.raw(chosen_texts)])
                b = np.stack([vectors["sentence_embedding"] for vectors in candidate.raw(chosen_texts)])
                rows = (a * b).sum(axis=1)
                one[name] = {"n": len(rows), "mean_cosine": mean_cosine(a, b), "min_cosine": float(rows.min())}
        found[folder.name] = one
    return found


def process_figures(baseline: Path, bundle: Path) -> dict[str, Any]:
    """Cold start (hashes verified) against the bare imports, and peak memory, in fresh processes."""
    report = edgec.bench([baseline, bundle], tokens=[16], rounds=10)
    return {
        "imports_ms": report.data["imports_ms"],
        **{
            one.precision: {
                "cold_start_ms": one.cold_start_ms,
                "cold_start_ratio": one.cold_start_ratio and vars(one.cold_start_ratio),
                "load_ms": one.load_ms,
                "peak_memory_mb": one.peak_memory_mb,
            }
            for one in report.bundles
        },
        "texts_per_s": {
            one.precision: {name: found.texts_per_s for name, found in one.schedules.items()} for one in report.bundles
        },
    }


def summary(result: dict[str, Any]) -> str:
    lines = []
    for shape in result["shapes"]:
        ratio = shape["speedup"]
        lines.append(
            f"{shape['batch']} x {shape['tokens']:>3} tokens: {ratio['median']:.2f}x "
            f"(p10 {ratio['p10']:.2f}, p90 {ratio['p90']:.2f}) over {shape['fastest_float']}"
        )
    lines += [f"{name}: {found}" for name, found in result["quality"].items()]
    lines += [f"{name}: {found}" for name, found in result["process"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Quantization of a joint MasakhaNER model: dynamic, static and llm-int8, as bundles for this CPU, by language.

F1, size and latency are those of the bundles, through the runtime; latency at 64 tokens, one thread, interleaved.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgec_runtime import load, machine

from edgec.devices import compare, open_device
from edgec.exporter import FP32, Exporter
from edgec.passes import Quantize
from edgec.scoring import score
from edgec.target import detect

from . import masakhaner
from .cells import Cell
from .data import LANGUAGES
from .models import through

TOKENS: Final = 64
CALIBRATION: Final = 256
SCHEMES: Final[dict[str, Quantize | None]] = {
    "fp32": None,
    "dynamic, a scale a tensor": Quantize(scheme="dynamic", granularity="tensor"),
    "dynamic, a scale a token": Quantize(scheme="dynamic"),
    "static": Quantize(scheme="static"),
    "llm-int8": Quantize(scheme="llm-int8"),
}
SETTINGS: Final = {
    "model": "all-MiniLM-L6-v2",
    "languages": LANGUAGES,
    "tokens": TOKENS,
    "calibration_sentences": CALIBRATION,
}
PAPER: Final = "llm-int8: 64 % smaller, 52 % less latency, F1 close to the original; dynamic loses more"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        for name in SCHEMES:
            yield Cell(name, seed, partial(_scheme, options.data, seed, name))


def _scheme(data: Path, seed: int, name: str) -> dict[str, Any]:
    state = masakhaner.dense(data, seed)
    target, _ = detect(machine.facts())
    texts = [example.text for example in masakhaner.rows(data)][:: masakhaner.SENTENCES * 5 // CALIBRATION]  # type: ignore[union-attr]
    step = SCHEMES[name]
    with tempfile.TemporaryDirectory(prefix="edgec-papers-") as temporary, open_device("local") as device:
        folders = [Path(temporary) / "fp32", Path(temporary) / "int8"]
        exporter = Exporter(state, name="fp32")
        manifest = exporter.write(folders[0], target, precision=FP32)
        if step is not None:
            quantized = through(state, step, seed=seed, texts=texts[:CALIBRATION])
            fp32_bytes = manifest.total_bytes
            manifest = exporter.of(quantized).write(folders[1], target, min_cosine=-1.0)
        else:
            folders, fp32_bytes = folders[:1], manifest.total_bytes
        with load(folders[-1]) as model:
            found = {
                language: 100 * score(model, masakhaner.split(data)[language].report, where="dev")["span_f1"]
                for language in LANGUAGES
            }
        speed: dict[str, float] = {}
        if step is not None:
            report = compare.bench(
                device,
                folders,
                tokens=[TOKENS],
                rounds=15,
                shapes_only=True,
                cold_start=False,
                on_line=lambda line: None,
            )
            ratio = report.bundles[1].shapes[1, TOKENS].ratio
            speed = {"speedup": round(ratio.median, 3), "latency_less": round(1 - 1 / ratio.median, 3)}
    return {
        "f1": float(np.mean(list(found.values()))),
        "languages": found,
        "target": target.name,
        "megabytes": manifest.total_bytes / 1e6,
        "smaller": round(1 - manifest.total_bytes / fp32_bytes, 4),
        **speed,
    }


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    figures = {
        name: {
            figure: float(np.mean([one[figure] for one in found if one["name"] == name and figure in one]))
            for figure in ("megabytes", "smaller", "speedup", "latency_less")
            if any(one["name"] == name and figure in one for one in found)
        }
        for name in {one["name"]: None for one in found}
    }
    return {"paper": PAPER, "means": masakhaner.means(found), "figures": figures}


def table(result: dict[str, Any]) -> str:
    def title(name: str) -> str:
        one = result["figures"][name]
        speed = f", {one['latency_less']:.0%} less latency" if "latency_less" in one else ""
        return f"{name} ({one['megabytes']:.0f} MB, {one['smaller']:.0%} smaller{speed})"

    return masakhaner.table({title(name): row for name, row in result["means"].items()})

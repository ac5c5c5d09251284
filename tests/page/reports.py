"""A report.json of schema 2, made up: every figure in it is another one, so that none can stand in another's place."""

from __future__ import annotations

import itertools
from typing import Any

LAYERS = [
    "model.embeddings.word_embeddings",
    *(
        f"model.encoder.layer.{block}.{layer}"
        for block in range(3)
        for layer in ("attention.self.query", "attention.self", "attention.output.dense", "intermediate.dense")
    ),
    "classifier",
]
TARGETS = ("x86_64-vnni", "arm64")


class _Figures:
    """Numbers that never come twice."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def between(self, low: float, high: float) -> float:
        # The golden ratio spreads them over the interval.
        return low + (high - low) * (next(self._numbers) * 0.6180339887498949 % 1)

    def whole(self, low: int, high: int) -> int:
        return round(self.between(low, high))


def report(**changes: Any) -> dict[str, Any]:
    """changes: of members at the top."""
    made = _Figures()
    bundles = [_bundle(target, made) for target in TARGETS]
    ranked = sorted((made.between(1e-5, 0.01) for _ in LAYERS), reverse=True)
    data = {
        "schema": 2,
        "command": "edgec compress --recipe made-up --set 'passes.0.scheme=static'",
        "recipe": {
            "edgec": 1,
            "summary": "A model that is made up",
            "model": {"source": "someone/model", "task": "feature-extraction"},
            "targets": list(TARGETS),
            "data": {
                "calibrate": {"text": "calibrate.txt"},
                "evaluate": {"text": "evaluate.txt", "group_column": "language"},
            },
            "passes": [{"quantize": {"scheme": "static", "skip": ["*.pooler"]}}],
            "budget": {"accuracy_drop": 0.0123, "size_mb": 25.0, "speedup": 2.0, "put_back": "float"},
        },
        "device": "local",
        "machine": {
            **{"cpu": "A CPU", "board": None, "arch": "x86_64", "cores": 3, "cpus": 5, "usable": 4},
            **{"governor": "powersave", "memory_mb": 7777, "os": "An OS", "versions": {"onnxruntime": "1.31.1"}},
        },
        "versions": {"edgec": "0.1.0", "torch": "2.13.0"},
        "source": {"model": "someone/model", "sha256": "0" * 64, "revision": None, "license": "apache-2.0"},
        "passes": [{"name": "quantize", "options": {}, "report": {
            "scheme": "static", "quantized": 11, "clip_share": 0.4321, "left_alone": {"encoder:classifier": "small"},
        }}],
        "original": {
            "before_pass": "prune", "parameters": 33_360_001, "parameters_after": 22_710_002, "bytes": 133_440_004,
            "quality": {"metric": "spearman", "before": 0.87654, "after": 0.85432, "drop": 0.02222, "n": 1379,
                        "group": "fr", "groups": {"fr": {"before": 0.7531, "after": 0.7202, "drop": 0.0329, "n": 77}}},
            "reason": None,
        },
        "baseline": _summary("baseline", "x86_64-vnni", "fp32", made),
        "bundles": bundles,
        "measured": TARGETS[0],
        "bench": {
            "settings": {"threads": 1, "rounds": 19},
            "warnings": ["the machine was busy"],
            "bundles": [
                _bench(path, precision, made, first=number == 0)
                for number, (path, precision) in enumerate(
                    (("baseline", "fp32"), (f"bundles/{TARGETS[0]}", "int8"), ("plain", "fp32"))
                )
            ],
        },
        "budget": [
            _verdict(TARGETS[0], "accuracy_drop", 0.0123, bundles[0]["quality"]["drop"], True),
            _verdict(TARGETS[0], "size_mb", 25.0, 26.54321, False),
            _verdict(TARGETS[1], "speedup", 2.0, None, None),
        ],
        "fell_back": [],
        "seconds": 98.76,
        "calibration": {"texts": 140, "groups": {"de": 71, "en": 69}},
        "data": {"train": {"rows": 1203, "skipped": 2, "repaired": 5}},
        "sensitivity": {
            "metric": "cosine", "texts": 64, "seconds": 41.7,
            "layers": [
                {"layer": layer, "scheme": "static", "drop": drop, "bytes": made.whole(100_000, 600_000),
                 "float_bytes": made.whole(600_001, 2_400_000), "macs_share": made.between(0.01, 0.1),
                 "min_cosine": made.between(0.9, 1)}
                for layer, drop in zip(LAYERS, ranked, strict=True)
            ],
        },
        "put_back": [
            {"layer": LAYERS[number], "to": to, "reason": "de misses accuracy_drop", "drop_alone": ranked[number],
             "bytes_added": made.whole(100_000, 900_000)}
            for number, to in enumerate(("float", "weight-only"))
        ],
        "put_back_steps": [{"layers": 0, "drop": 0.0314}, {"layers": 1, "drop": 0.0159}, {"layers": 2, "drop": 0.0111}],
        "choices": {
            "norm": "sum", "attention": "mha", "mask": "kept", "source": "measured",
            "measured": [
                {"choice": choice, "option": option, "ratio": ratio, "p10": ratio - 0.034, "p90": ratio + 0.045}
                for choice, option, ratio in (("norm", "skip", 0.871), ("attention", "mha", 1.062))
            ],
        },
    }  # fmt: skip
    return {**data, **changes}


def _bundle(target: str, made: _Figures) -> dict[str, Any]:
    groups = {
        name: {"before": made.between(0.9, 1), "after": made.between(0.8, 0.9), "drop": made.between(0.002, 0.0122),
               "n": made.whole(30, 90)}
        for name in ("de", "en", "a/b~c")
    }  # fmt: skip
    worst = max(groups, key=lambda name: groups[name]["drop"])
    layers = [
        {"layer": layer, "int8": 0, "float": 0, "weight_only": 0, kind: made.whole(1_000_000, 90_000_000)}
        for layer, kind in zip(LAYERS, itertools.cycle(("int8", "int8", "float", "int8", "weight_only")), strict=False)
    ]
    tensors: list[dict[str, Any]] = [
        {"module": layer, "snr_db": made.between(8, 40), "cosine": made.between(0.97, 1)} for layer in LAYERS
    ]
    tensors[0] = {"module": LAYERS[0], "snr_db": None, "cosine": 1.0}
    return {
        **_summary(f"bundles/{target}", target, "int8", made),
        "verified": {"device": "local", "max_abs": made.between(0, 1), "min_cosine": made.between(0.999, 1)},
        "quality": {
            **{"metric": "spearman", "before": made.between(0.8, 0.9), "after": made.between(0.8, 0.9)},
            **{"drop": groups[worst]["drop"], "n": 155, "group": worst, "groups": groups},
        },
        "audit": {
            **{name: made.between(0, 1) for name in ("int8_share", "float_share", "weight_only_share")},
            "layers": layers,
            "operators": [
                {"op": op, "count": made.whole(2, 90), "share": made.between(0, 1), "time_share": made.between(0, 1)}
                for op in ("MatMulIntegerToFloat", "Attention")
            ],
        },
        "tensors": tensors,
        "spread": {
            cpu: {name: made.between(0.99, 1) for name in ("max_abs", "min_cosine", "mean_cosine")}
            for cpu in ("vnni", "avx2", "arm64")
        },
    }


def _summary(path: str, target: str, precision: str, made: _Figures) -> dict[str, Any]:
    cosines = {name: made.between(0.98, 1) for name in ("mean_cosine", "min_cosine")}
    return {
        **{"path": path, "target": target, "precision": precision, "schedule": "streams"},
        **{"bytes": made.whole(20_000_000, 90_000_000), "graph_bytes": made.whole(20_000_000, 90_000_000)},
        "quality": None,
        "forms": {"norm": "sum", "attention": "packed"},
        "parity": {"int8_against_float": cosines} if precision == "int8" else {},
    }


def _bench(path: str, precision: str, made: _Figures, *, first: bool) -> dict[str, Any]:
    def times(scale: float) -> dict[str, Any]:
        p50 = made.between(2, 4) * scale
        ratio = 1.0 if first else made.between(0.8, 4)
        return {
            **{"p50_ms": p50, "p90_ms": p50 * 1.2, "p99_ms": p50 * 1.5, "texts_per_s": made.between(20, 900)},
            **{"ratio": {"median": ratio, "p10": ratio * 0.9, "p90": ratio * 1.1}, "unstable": scale > 1},
        }

    return {
        **{"path": path, "target": TARGETS[0], "precision": precision, "bytes": made.whole(20_000_000, 90_000_000)},
        **{"load_ms": made.between(20, 300), "cold_start_ms": made.between(200, 500)},
        **{"cold_start_ratio": {"median": made.between(1, 3)}, "peak_memory_mb": made.between(80, 180)},
        "shapes": [{"batch": 1, "tokens": tokens, **times(tokens / 16)} for tokens in (16, 128)],
        "schedules": {name: times(1) for name in ("streams", "batches")},
    }


def _verdict(target: str, what: str, limit: float, value: float | None, met: bool | None) -> dict[str, Any]:
    return {"target": target, "what": what, "limit": limit, "value": value, "met": met}

"""How far apart the answers of a bundle are on different kinds of CPU."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgec_runtime import golden, integrity, load
from edgec_runtime.check import compare
from edgec_runtime.manifest import Golden
from edgec_runtime.notices import BundleWarning, TruncationWarning

from .graph import Pairs
from .kinds import KINDS, Kind
from .model import emulated


@dataclass(frozen=True)
class Spread:
    """One kind of CPU against the golden vectors of a bundle.

    max_abs: of any output of any request. min_cosine, mean_cosine: over the requests, each with its worst output.
    pairs: by module, the sums of two 8-bit products and those that did not fit in 16 bits; only of modules where
    there are such, the worst first.
    """

    max_abs: float
    min_cosine: float
    mean_cosine: float
    pairs: Mapping[str, Pairs]

    def within(self, limits: Golden) -> bool:
        """Whether this kind of CPU passes the bundle's check."""
        return self.max_abs <= limits.max_abs and self.min_cosine >= limits.min_cosine

    def figures(self) -> dict[str, float]:
        """For a manifest (Golden.spread) and a report, rounded."""
        return {
            "max_abs": float(f"{self.max_abs:.3g}"),
            "min_cosine": round(self.min_cosine, 7),
            "mean_cosine": round(self.mean_cosine, 7),
        }


def spread(bundle: Path, kinds: Sequence[Kind] = KINDS, *, threads: int | None = None) -> dict[Kind, Spread]:
    """Replay the golden requests of a written bundle as each kind of CPU would answer them.

    The figures do not depend on which CPU this machine has, save for the last bits of float operators. Raises a
    BundleError for what the runtime refuses, UserError for 8-bit operators that are not covered.
    """
    found: dict[Kind, Spread] = {}
    exact: Spread | None = None
    with warnings.catch_warnings():
        # That this machine is not the target's is no news here, and long requests are there on purpose.
        warnings.simplefilter("ignore", BundleWarning)
        warnings.simplefilter("ignore", TruncationWarning)
        with load(bundle, threads=threads, schedule="streams") as model:
            manifest = model.manifest
            vectors = golden.read(integrity.locate(bundle, manifest.golden.file))
            for kind in dict.fromkeys(kinds):
                engine = emulated(model, bundle, kind)
                # Kinds that lose nothing all answer the same.
                if engine.pairs or exact is None:
                    model.runner.engine = engine
                    found[kind] = _against(vectors, model.raw(vectors.requests), engine.pairs)
                    exact = exact if engine.pairs else found[kind]
                else:
                    found[kind] = exact
    return found


def _against(vectors: golden.GoldenVectors, outputs: Sequence[golden.Values], pairs: Mapping[str, Pairs]) -> Spread:
    figures = [compare(expected, got) for expected, got in zip(vectors.outputs, outputs, strict=True)]
    cosines = [cosine for _, cosine, _ in figures]
    worst = sorted((module for module in pairs if pairs[module].lost), key=lambda module: -pairs[module].lost)
    return Spread(
        max_abs=max(max_abs for max_abs, _, _ in figures),
        min_cosine=min(cosines),
        mean_cosine=float(np.mean(cosines)),
        pairs={module: pairs[module] for module in worst},
    )


def verification(bundle: Path, kinds: Sequence[Kind], *, threads: int | None = None) -> dict[str, Any]:
    """What `edgec verify --as` tells, as JSON values. `ok`: whether every kind is within the bundle's limits."""
    manifest = integrity.read_manifest(bundle)
    limits = manifest.golden
    found = spread(bundle, kinds, threads=threads)
    return {
        "bundle": str(bundle),
        "build_id": manifest.build_id,
        "target": manifest.target.name,
        "limit_max_abs": limits.max_abs,
        "limit_min_cosine": limits.min_cosine,
        "ok": all(one.within(limits) for one in found.values()),
        "as": {
            kind: {
                "max_abs": one.max_abs,
                "min_cosine": one.min_cosine,
                "mean_cosine": one.mean_cosine,
                "within": one.within(limits),
                "sums_lost": sum(pairs.lost for pairs in one.pairs.values()),
                "layers": [
                    {"layer": module, "sums": pairs.computed, "lost": pairs.lost} for module, pairs in one.pairs.items()
                ],
            }
            for kind, one in found.items()
        },
    }

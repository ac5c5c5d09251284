"""Writes a bundle: everything an app ships, in one folder that appears whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from edgec_runtime import golden, integrity
from edgec_runtime.engine import Engine
from edgec_runtime.loading import assemble
from edgec_runtime.manifest import MANIFEST_FILE, FileInfo, Golden, Manifest, Quality
from edgec_runtime.notices import BundleWarning

from edgec.files import atomic_folder
from edgec.graph.store import write_graph
from edgec.notes import license_notes, readme

GOLDEN_FILE: Final = "golden.npz"
TOKENIZER_FILE: Final = "tokenizer.json"

# What another CPU may differ by, as a share of the largest output. Float kernels sum in another order. In int8, a
# difference in the last bit of a float can tip a rounding, which moves that element by a whole step.
_FLOAT_SHARE: Final = 1e-3
_INT8_SHARE: Final = 0.03
_FLOAT_COSINE: Final = 0.99999
_INT8_COSINE: Final = 0.999


def write_bundle(
    out: Path,
    manifest: Manifest,
    *,
    graphs: Mapping[str, ir.Model],
    tokenizer: bytes,
    requests: Sequence[Any],
    engine: Engine | None = None,
    license_text: str | None = None,
    force: bool = False,
) -> Manifest:
    """Write the bundle `out` and return its sealed manifest.

    manifest: all but files, golden vectors, versions and digest. graphs: by file name. tokenizer: the content of a
    tokenizer.json. requests: what the golden vectors are made of, raw texts in the form that the task takes; their
    expected outputs are those of the written graphs, computed by the runtime, or by `engine` where this CPU would
    answer otherwise than the target's. license_text: what the model's own licence files say. Raises OutputExists,
    SystemFailure, and the BundleError of a graph that the runtime refuses.
    """
    with atomic_folder(out, force=force) as folder:
        for name, graph in graphs.items():
            write_graph(graph, folder / name)
        (folder / TOKENIZER_FILE).write_bytes(tokenizer)
        with warnings.catch_warnings():
            # That this machine is not the target's is no news here.
            warnings.simplefilter("ignore", BundleWarning)
            draft = dataclasses.replace(manifest, files=_listing(folder))
            with assemble(draft, folder, threads=1, verify=False) as model:
                model.runner.engine = engine or model.runner.engine
                vectors = golden.record(folder / GOLDEN_FILE, model, requests)
        int8 = any(part.precision == "int8" for part in manifest.parts)
        largest = max(float(np.abs(v).max()) for out_ in vectors.outputs for v in out_.values() if v.size)
        manifest = dataclasses.replace(
            manifest,
            golden=Golden(
                file=GOLDEN_FILE,
                max_abs=_round_up(largest * (_INT8_SHARE if int8 else _FLOAT_SHARE)),
                min_cosine=_INT8_COSINE if int8 else _FLOAT_COSINE,
            ),
            versions=versions(),
        )
        (folder / "LICENSES").write_text(license_notes(manifest, license_text), encoding="utf-8")
        (folder / "README.md").write_text(readme(manifest), encoding="utf-8")
        manifest = dataclasses.replace(manifest, files=_listing(folder)).sealed()
        (folder / MANIFEST_FILE).write_text(manifest.to_text(), encoding="utf-8")
    return manifest


def annotate(
    folder: Path,
    *,
    measured: bool | None = None,
    quality: Quality | None = None,
    schedule: str | None = None,
    spread: dict[str, dict[str, float]] | None = None,
) -> Manifest:
    """Put what was measured into the manifest of a written bundle, in one atomic step."""
    manifest = integrity.read_manifest(folder)
    if measured is not None:
        manifest = dataclasses.replace(manifest, measured=measured)
    if quality is not None:
        manifest = dataclasses.replace(manifest, quality=quality)
    if schedule is not None:
        execution = dataclasses.replace(manifest.execution, schedule=schedule)
        manifest = dataclasses.replace(manifest, execution=execution)
    if spread is not None:
        manifest = dataclasses.replace(manifest, golden=dataclasses.replace(manifest.golden, spread=spread))
    manifest = manifest.sealed()
    temporary = folder / f".{MANIFEST_FILE}.new"
    temporary.write_text(manifest.to_text(), encoding="utf-8")
    temporary.replace(folder / MANIFEST_FILE)
    return manifest


def versions() -> dict[str, str]:
    """The versions that decide what is in a bundle."""
    packages = (
        "edgec",
        "torch",
        "transformers",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxruntime",
        "tokenizers",
        "numpy",
    )
    found = {name: importlib.metadata.version(name).split("+")[0] for name in packages}
    return {**found, "python": ".".join(platform.python_version_tuple()[:2])}


def _listing(folder: Path) -> tuple[FileInfo, ...]:
    infos = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        infos.append(FileInfo(path.name, hashlib.sha256(data).hexdigest(), len(data)))
    return tuple(infos)


def _round_up(value: float) -> float:
    """To two digits, so that the limit reads well and does not depend on the last bit of an output."""
    if value <= 0:
        return 1e-6
    exponent = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(f"{np.ceil(value / exponent) * exponent:.2g}")

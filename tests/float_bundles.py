"""A float bundle of a loaded model, traced and written by edgec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec_runtime.cpu import architecture
from edgec_runtime.manifest import PassRecord, TargetInfo

from edgec.bundle import write_bundle
from edgec.graph.float_graph import prepare_float
from edgec.graph.trace import trace
from edgec.models.describe import describe
from edgec.models.families import FAMILIES
from edgec.state import ModelState


def write_float_bundle(
    state: ModelState, folder: Path, requests: Sequence[Any], passes: tuple[PassRecord, ...] = ()
) -> Path:
    spec = state.spec
    graph = trace(state.parts["encoder"], opset=FAMILIES[spec.family].opset, max_length=spec.max_length)
    manifest = describe(state)
    manifest = replace(
        manifest,
        target=TargetInfo("any", architecture()),
        parts=(replace(manifest.parts[0], file="model.onnx"),),
        passes=passes,
    )
    write_bundle(
        folder,
        manifest,
        graphs={"model.onnx": prepare_float(graph)},
        tokenizer=state.tokenizer.backend_tokenizer.to_str().encode(),
        requests=requests,
    )
    return folder

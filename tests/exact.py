"""int8 as its target computes it, also where this machine's CPU would saturate."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from edgec_runtime import integrity
from edgec_runtime.check import check
from edgec_runtime.engine import Engine
from edgec_runtime.manifest import TargetInfo

from edgec.emulation import emulate, foreign_kind, verification
from edgec.emulation.operators import rewrite
from edgec.graph.store import open_graph


def open_exact(model: ir.Model) -> Engine:
    """A graph with 8-bit weights, its sums those of an x86 CPU with VNNI."""
    kind = foreign_kind(TargetInfo("any", "x86_64", ("vnni",)))
    return open_graph(model) if kind is None else emulate(model, kind)


def exact(model: ir.Model) -> ir.Model:
    """The graph, changed where that takes it to have such sums here."""
    kind = foreign_kind(TargetInfo("any", "x86_64", ("vnni",)))
    if kind is not None:
        model = model.clone()
        rewrite(model, kind)
    return model


def answers_right(bundle: Path) -> bool:
    """Whether a bundle gives its golden vectors on its target's CPUs: here, or emulated."""
    kind = foreign_kind(integrity.read_manifest(bundle).target)
    return check(bundle).ok if kind is None else bool(verification(bundle, [kind])["ok"])

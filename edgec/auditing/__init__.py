"""What share of a bundle's work really runs in int8, from onnxruntime's own profile and the graph.

Multiply-accumulates are counted as executed: on the shapes of a real run, over the graph that onnxruntime
made of the bundle's at load. docs/audit.md explains the report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgec_runtime import golden, integrity, loading
from edgec_runtime.manifest import Manifest

from edgec.auditing.graph import FloatNode, GraphAudit, LayerMacs, OperatorRow, audit_graph
from edgec.auditing.islands import Island
from edgec.auditing.macs import Macs
from edgec.auditing.rows import row_feeds
from edgec.auditing.tensors import TensorError, tensor_errors, worst
from edgec.errors import UserError
from edgec.state import Progress, no_progress

__all__ = [
    "Audit",
    "FloatNode",
    "GraphAudit",
    "Island",
    "LayerMacs",
    "Macs",
    "OperatorRow",
    "TensorError",
    "audit",
    "audit_graph",
    "tensor_errors",
    "worst",
]

DEFAULT_TOKENS: Final = 128


@dataclass(frozen=True)
class Audit:
    """The audit of a bundle: one GraphAudit a part, for one row of `tokens` tokens.

    int8_share: over all parts.
    """

    name: str
    target: str
    tokens: int
    int8_share: float
    parts: dict[str, GraphAudit]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """What report.json keeps of the audit of a bundle with one part: shares, layers, operators."""
        (part,) = self.parts.values()
        return {
            "int8_share": part.int8_share,
            "float_share": part.float_share,
            "weight_only_share": part.weight_only_share,
            "layers": [asdict(layer) for layer in part.layers],
            "operators": [
                {"op": row.op, "count": row.count, "share": row.share, "time_share": row.time_share}
                for row in part.operators
            ],
        }


def audit(
    bundle: str | Path, *, tokens: int | None = None, threads: int = 1, progress: Progress = no_progress
) -> Audit:
    """Run every part of `bundle` under onnxruntime's profiler and count its multiply-accumulates.

    tokens: of the row that is run, filled with the ids of the golden vectors; default 128, or the bundle's
    max_length where that is less. Raises UserError for a number of tokens that the bundle does not take, and
    BundleError for a bundle that the runtime refuses.
    """
    folder = Path(bundle)
    manifest = integrity.read_manifest(folder)
    integrity.verify_files(folder, manifest)
    limit = manifest.preprocessing.max_length
    if tokens is None:
        tokens = min(DEFAULT_TOKENS, limit)
    if not 1 <= tokens <= limit:
        raise UserError(f"{folder} takes rows of 1 to {limit} tokens, not {tokens}", f"give --tokens {limit} or less")
    ids = np.resize(np.concatenate(golden.read(folder / manifest.golden.file).ids), tokens)
    # Every part, before the first is given to onnxruntime.
    graphs = [loading.check_graph(folder, manifest, part) for part in manifest.parts]
    parts = {}
    step = progress("audit", len(manifest.parts))
    for done, (part, graph) in enumerate(zip(manifest.parts, graphs, strict=True), 1):
        parts[part.name] = audit_graph(
            graph,
            row_feeds(part, ids),
            left_alone=_left_alone(manifest, part.name),
            quantized=part.precision == "int8",
            part=part,
            threads=threads,
        )
        step(done)
    total = sum((part.macs for part in parts.values()), Macs())
    share = total.int8 / total.total if total.total else 0.0
    return Audit(manifest.name, manifest.target.name, tokens, share, parts)


def _left_alone(manifest: Manifest, part: str) -> dict[str, str]:
    """Module path to reason, from the reports of the passes; layers go by "part:path" or by path alone."""
    reasons = {}
    for record in manifest.passes:
        for layer, reason in record.report.get("left_alone", {}).items():
            owner, _, path = str(layer).rpartition(":")
            if owner in ("", part):
                reasons[path] = str(reason)
    return reasons

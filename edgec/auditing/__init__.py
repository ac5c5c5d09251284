"""What share of a bundle's work really runs in int8, from onnxruntime's own profile and the graph.

Multiply-accumulates are counted as executed: on the shapes of a real run, over the graph that onnxruntime
made of the bundle's at load. docs/audit.md explains the report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgec_runtime import golden, integrity, loading
from edgec_runtime.decoupled import CROSS, INPUT
from edgec_runtime.manifest import Manifest

from edgec.auditing.components import QUESTION_SHARE, Components, count
from edgec.auditing.graph import FloatNode, GraphAudit, LayerMacs, OperatorRow, audit_graph
from edgec.auditing.islands import Island
from edgec.auditing.macs import Macs
from edgec.auditing.rows import row_feeds
from edgec.auditing.tensors import TensorError, tensor_errors, worst
from edgec.errors import UserError
from edgec.state import Progress, no_progress

__all__ = [
    "Audit",
    "Components",
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

    int8_share: over all parts. components: of a decoupled model, what it saves; its part `input` is audited on the
    question's tokens.
    """

    name: str
    target: str
    tokens: int
    int8_share: float
    parts: dict[str, GraphAudit]
    components: Components | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """What report.json keeps of the audit of a bundle: shares, layers, operators."""
        every = self.parts.values()
        total = sum((part.macs for part in every), Macs())
        time = sum(part.milliseconds for part in every)

        def share(macs: int) -> float:
            return macs / total.total if total.total else 0.0

        operators: dict[str, dict[str, Any]] = {}
        for part in every:
            for row in part.operators:
                found = operators.setdefault(row.op, {"op": row.op, "count": 0, "share": 0.0, "time_share": 0.0})
                found["count"] += row.count
                found["share"] += share(row.macs.total)
                found["time_share"] += row.time_share * part.milliseconds / time if time else 0.0
        summary = {
            "int8_share": share(total.int8),
            "float_share": share(total.float),
            "weight_only_share": share(total.weight_only),
            "layers": [asdict(layer) for part in every for layer in part.layers],
            "operators": list(operators.values()),
        }
        return summary if self.components is None else {**summary, "components": asdict(self.components)}


def audit(
    bundle: str | Path,
    *,
    tokens: int | None = None,
    question_tokens: int | None = None,
    threads: int = 1,
    progress: Progress = no_progress,
) -> Audit:
    """Run every part of `bundle` under onnxruntime's profiler and count its multiply-accumulates.

    tokens: of the row that is run, filled with the ids of the golden vectors; default 128, or the bundle's
    max_length where that is less. question_tokens: how many of them are the question's, of a decoupled model; default
    an eighth. Raises UserError for a number of tokens that the bundle does not take, and BundleError for a bundle that
    the runtime refuses.
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
    files = {part.name: (part, graph) for part, graph in zip(manifest.parts, graphs, strict=True)}

    def run(name: str, length: int) -> GraphAudit:
        part, graph = files[name]
        return audit_graph(
            graph,
            row_feeds(part, np.resize(ids, length)),
            left_alone=_left_alone(manifest, part.name),
            quantized=part.precision == "int8",
            part=part,
            threads=threads,
        )

    question = _question_tokens(question_tokens, tokens, len(files) > 1, folder)
    parts = {}
    step = progress("audit", len(files))
    for done, name in enumerate(files, 1):
        parts[name] = run(name, question if name == INPUT else tokens)
        step(done)
    components = count(parts, partial(run, INPUT), question, tokens) if len(files) > 1 else None
    total = sum((part.macs for part in parts.values()), Macs())
    share = total.int8 / total.total if total.total else 0.0
    return Audit(manifest.name, manifest.target.name, tokens, share, parts, components)


def _question_tokens(asked: int | None, tokens: int, decoupled: bool, folder: Path) -> int:
    if not decoupled:
        if asked is not None:
            raise UserError(f"{folder} is not decoupled: it has no question of its own", "leave --question-tokens out")
        return tokens
    found = max(1, tokens // QUESTION_SHARE) if asked is None else asked
    if not 0 < found < tokens:
        raise UserError(f"{found} of {tokens} tokens cannot be the question's", "give a smaller --question-tokens")
    return found


def _left_alone(manifest: Manifest, part: str) -> dict[str, str]:
    """Module path to reason, from the reports of the passes; layers go by "part:path" or by path alone."""
    reasons = {}
    for record in manifest.passes:
        for layer, reason in record.report.get("left_alone", {}).items():
            owner, _, path = str(layer).rpartition(":")
            # A decoupled model is one part to the passes, and two graphs.
            if owner in ("", part) or part in (INPUT, CROSS):
                reasons[path] = str(reason)
    return reasons

"""Rewrites that hold for float and int8 graphs alike: the fastest float form that stock onnxruntime runs."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter import RewriteRuleClassBase, RewriteRuleSet

from .trace import MODULE_KEY, name_nodes


class SumBeforeLayerNorm(RewriteRuleClassBase):
    """Add feeding LayerNormalization becomes Sum.

    At load onnxruntime fuses Add + LayerNormalization into SkipLayerNormalization, whose CPU kernel takes several
    times as long as the two it replaces. Its matcher looks for Add, not for Sum, so the pair stays apart in any
    consumer, whatever its session options. benchmarks/results holds the measured effect.
    """

    def pattern(self, op, a, b, scale, shift):  # type: ignore[no-untyped-def]
        return op.LayerNormalization(
            op.Add(a, b, _outputs=["sum"]), scale, shift, _allow_other_attributes=True, _outputs=["normed"]
        )

    def check(self, context, a, b, **_):  # type: ignore[no-untyped-def]
        return a.shape is not None and b.shape is not None

    def rewrite(self, op, a, b, scale, shift, normed, **_):  # type: ignore[no-untyped-def]
        attributes = normed.producer().attributes
        return op.LayerNormalization(op.Sum(a, b), scale, shift, **{k: v.value for k, v in attributes.items()})


def prepare_float(model: ir.Model) -> ir.Model:
    """A copy of the traced `model` in the form that bundles ship in float."""
    model = model.clone()
    RewriteRuleSet([SumBeforeLayerNorm.rule()]).apply_to_model(model)
    finish(model)
    return model


def finish(model: ir.Model) -> None:
    """Drop what nothing uses, merge equal nodes, sort, and name every node after its module."""
    for graph_pass in (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
    ):
        graph_pass(model)
    _name_all(model)


def _name_all(model: ir.Model) -> None:
    """Names of nodes and values are a function of the graph alone: the same inputs give the same file."""
    for node in model.graph.all_nodes():
        # The rewriter tags the nodes it makes; only the module path is meant to ship.
        path = node.metadata_props.get(MODULE_KEY, "")
        node.metadata_props.clear()
        if path:
            node.metadata_props[MODULE_KEY] = path
    name_nodes(model)
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}:{index}"

"""torch module -> float ONNX graph whose nodes carry the path of the module they came from."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from edgec.errors import ModelError

if TYPE_CHECKING:
    from edgec.nn.parts import Part

MODULE_KEY = "edgec.module"
"""Metadata key of a node: the dotted path of the torch module that produced it."""


def trace(part: Part, *, opset: int, max_length: int) -> ir.Model:
    """Export `part` with dynamic batch and tokens.

    part: a Part or a component of one (edgec.nn.seam); inputs int32 (batch, tokens), `states` float32 (batch, tokens,
    width). opset: ONNX opset of the graph. max_length: the most tokens of a row.
    Returns a float model; node names are "module/path/OpType", the exporter's own metadata (which holds source paths
    of the exporting machine) is gone. Raises ModelError where torch cannot export the model.
    """
    names = part.input_names
    # Two rows, one padded: sizes 0 and 1 would be specialised to constants.
    tokens = min(16, max_length)
    example = tuple(_example(part, name, tokens) for name in names)
    axes = {
        0: torch.export.Dim("batch", min=1, max=1 << 16),
        1: torch.export.Dim("tokens", min=1, max=max_length),
    }
    try:
        with _quiet():
            program = torch.onnx.export(
                part.eval(),
                example,
                dynamo=True,
                opset_version=opset,
                input_names=list(names),
                output_names=list(part.output_names),
                dynamic_shapes=tuple(dict(axes) for _ in names),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"torch could not export the model to ONNX opset {opset}: {_first_line(error)}",
            "try another `export.opset` (18 or 23), or report the model's family",
        ) from error
    assert program is not None
    model = program.model
    _tidy(model)
    return model


def _example(part: Any, name: str, tokens: int) -> torch.Tensor:
    if name == "states":
        return torch.zeros(2, tokens, part.seam.width)
    if name == "attention_mask":
        mask = torch.ones(2, tokens, dtype=torch.int32)
        mask[1, tokens // 2 :] = 0
        return mask
    if name == "token_type_ids":
        return torch.zeros(2, tokens, dtype=torch.int32)
    return torch.full((2, tokens), 5, dtype=torch.int32)


def _tidy(model: ir.Model) -> None:
    """Keep of the exporter's metadata the module path alone, and name nodes by it."""
    model.producer_name, model.producer_version = "edgec", None
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        path = module_path(node.metadata_props.get("pkg.torch.onnx.name_scopes"))
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
        if path:
            node.metadata_props[MODULE_KEY] = path
    name_nodes(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def name_nodes(model: ir.Model) -> None:
    """Name every node "module/path/OpType", numbered from the second of a name on: a function of the graph alone."""
    seen: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        path = node.metadata_props.get(MODULE_KEY, "")
        name = f"{path}/{node.op_type}" if path else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def module_path(name_scopes: str | None) -> str:
    """The innermost module of torch's list of scopes: "['', 'model', 'model.pooler', 'linear_3']" -> "model.pooler"."""
    if not name_scopes:
        return ""
    scopes = ast.literal_eval(name_scopes)
    path = str(scopes[-2]) if len(scopes) > 1 else ""
    # torch's stand-in for a node that it made itself.
    return "" if path.startswith("_empty_nn_module_stack") else path


def _first_line(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns about its own internals (torchvision, tree specs, axis names, folding) on every run."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "onnxscript.optimizer")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # It prints the program that it could not export, too; the exception says what a user can act on.
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

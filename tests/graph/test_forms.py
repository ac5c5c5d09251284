"""Other forms of the same computation: the operators change, the answers do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import of_type
from tiny_models import tiny

from edgec.exporter import Exporter
from edgec.graph.float_graph import prepare_float
from edgec.graph.forms import apply_forms
from edgec.graph.lower_int8 import lower_int8
from edgec.graph.store import open_graph
from edgec.models import load_model
from edgec.target import Forms, Target

NATIVE = ("bert", "distilbert")
ALL_FORMS = [
    *(Forms(norm, attention) for norm in ("sum", "skip") for attention in ("packed", "mha", "qattention")),
    Forms(mask="if-padded"),
]
Make = Callable[[str], Exporter]


def _int8(exporter: Exporter, target: Target) -> ir.Model:
    assert exporter.state.quantization is not None
    return lower_int8(exporter.traced, exporter.state.quantization.of_part("encoder"), target)


def _answers(model: ir.Model, exporter: Exporter) -> np.ndarray:
    """Of three rows of unequal length in one padded batch."""
    ids = np.random.default_rng(0).integers(5, 20, (3, 11), dtype=np.int32)
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    mask[2, 1:] = 0
    ids[mask == 0] = exporter.manifest.preprocessing.pad_id
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    taken = {value.name for value in model.graph.inputs}
    (output,) = open_graph(model).run({name: feed for name, feed in feeds.items() if name in taken}).values()
    return output


@pytest.mark.parametrize("forms", ALL_FORMS, ids=lambda forms: "-".join(forms.to_dict().values()))
@pytest.mark.parametrize("family", NATIVE)
def test_a_form_changes_operators_and_no_answer(family: str, forms: Forms, exported: Make, here: Target) -> None:
    exporter = exported(family)
    layers = len(of_type(exporter.traced, "Attention"))
    for plain in (prepare_float(exporter.traced), _int8(exporter, here)):
        int8 = bool(of_type(plain, "MatMulIntegerToFloat"))
        expected = _answers(plain, exporter)
        norms = len(of_type(plain, "LayerNormalization"))
        made = apply_forms(plain, forms)
        np.testing.assert_allclose(_answers(plain, exporter), expected, atol=2e-6 if not int8 else 2e-3)
        merged = forms.attention == "qattention" and int8
        op = {"packed": "Attention", "mha": "MultiHeadAttention"}.get(
            forms.attention, "QAttention" if int8 else "Attention"
        )
        assert len(of_type(plain, op)) == layers * (2 if forms.mask == "if-padded" else 1)
        assert made == {
            "norm": forms.norm,
            "attention": forms.attention if merged or forms.attention != "qattention" else "packed",
            "mask": forms.mask,
            "gelu": "exact",
        }
        assert len(of_type(plain, "If")) == (layers if forms.mask == "if-padded" else 0)
        assert not of_type(plain, "Transpose"), "the layout changes around attention are gone"
        skipped = len(of_type(plain, "SkipLayerNormalization"))
        assert skipped + len(of_type(plain, "LayerNormalization")) == norms
        assert (skipped > 0) == (forms.norm == "skip")


def test_attention_in_pieces_stays_as_it_is(exported: Make, here: Target) -> None:
    exporter = exported("mpnet")
    plain = _int8(exporter, here)
    before = [node.op_type for node in plain.graph]
    assert apply_forms(plain, Forms()) == {"norm": "sum", "gelu": "exact"}
    assert [node.op_type for node in plain.graph] == before


def test_attention_whose_layout_others_read_stays_as_it_is(exported: Make) -> None:
    exporter = exported("bert")
    model = prepare_float(exporter.traced)
    node = of_type(model, "Attention")[0]
    heads_last = node.outputs[0].consumers()[0].outputs[0]
    extra = ir.node("Identity", [heads_last], name="reader")
    extra.outputs[0].name = "also_read"
    model.graph.append(extra)
    model.graph.outputs.append(extra.outputs[0])
    made = apply_forms(model, Forms(attention="mha"))
    assert made["attention"] == "mha"
    assert len(of_type(model, "MultiHeadAttention")) == len(of_type(exporter.traced, "Attention")) - 1
    assert len(of_type(model, "Attention")) == 1


def test_projections_with_unlike_inputs_are_not_merged(exported: Make, here: Target, tmp_path: Path) -> None:
    exporter = exported("bert")
    model = _int8(exporter, here)
    first = of_type(model, "MatMulIntegerToFloat")[0]
    other = ir.Value(name="other_scale", const_value=ir.tensor(np.float32(0.02)))
    other.shape, other.dtype = ir.Shape(()), ir.DataType.FLOAT
    model.graph.register_initializer(other)
    first.replace_input_with(2, other)
    layers = len(of_type(model, "Attention"))
    made = apply_forms(model, Forms(attention="qattention"))
    assert made["attention"] == "qattention"
    assert (len(of_type(model, "QAttention")), len(of_type(model, "Attention"))) == (layers - 1, 1)


def test_gelu_by_tanh_answers_as_a_model_that_is_made_with_it(exported: Make, tmp_path: Path) -> None:
    exporter = exported("bert")
    model = prepare_float(exporter.traced)
    exact = _answers(model, exporter)
    made = apply_forms(model, Forms(gelu="tanh"))
    assert made["gelu"] == "tanh" and made["attention"] == "packed"
    other = Exporter(load_model(_bert(tmp_path, "gelu_pytorch_tanh")), name="tanh")
    np.testing.assert_allclose(_answers(model, exporter), _answers(other.float_graph, exporter), atol=2e-6)
    assert 1e-5 < np.abs(_answers(model, exporter) - exact).max() < 1e-2


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh"])
def test_a_graph_without_exact_gelu_says_nothing_of_it(activation: str, tmp_path: Path) -> None:
    exporter = Exporter(load_model(_bert(tmp_path, activation)), name=activation)
    model = exporter.float_graph.clone()
    before = [(node.op_type, dict(node.attributes)) for node in model.graph]
    assert "gelu" not in apply_forms(model, Forms(gelu="tanh"))
    assert [(node.op_type, dict(node.attributes)) for node in model.graph] == before


def _bert(folder: Path, activation: str) -> Path:
    return tiny("bert", "feature-extraction", folder / "model", hidden_act=activation)

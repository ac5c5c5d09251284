"""One model, many bundles: traced once, lowered for each target, compared with torch and with float on the way."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import warnings
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir
from edgec_runtime.decoupled import together
from edgec_runtime.manifest import Manifest, PassRecord, TargetInfo
from edgec_runtime.notices import TruncationWarning

from edgec.bundle import write_bundle
from edgec.data.samples import SAMPLE_PAIR, SAMPLE_TEXTS
from edgec.emulation import emulate, foreign_kind
from edgec.errors import UserError
from edgec.graph.float_graph import prepare_float
from edgec.graph.follow import Follower
from edgec.graph.forms import DEFAULT_FORMS, apply_forms
from edgec.graph.lower_int8 import lower_int8
from edgec.graph.parity import (
    INT8_MIN_COSINE,
    Outputs,
    Parity,
    ReferenceParity,
    combined,
    float_parity,
    int8_parity,
    reference_parity,
    sample_feeds,
)
from edgec.graph.store import digest_graph, open_graph
from edgec.graph.trace import trace
from edgec.models.describe import describe
from edgec.models.families import FAMILIES
from edgec.models.requests import requests_for
from edgec.models.torch_model import TorchEngine, model_on, tokenizer_json
from edgec.nn.fake_quantize import fake_quantized
from edgec.nn.gelu import TanhGelu
from edgec.nn.parts import Part
from edgec.nn.seam import component, components
from edgec.state import QUOTED, ModelState, Quantization
from edgec.target import Forms, Target
from edgec.task_rules import MAX_ANSWER_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgec_runtime.engine import Engine

    from edgec.data.examples import Text

Graphs = dict[str, ir.Model]
"""By the names of a bundle's parts: "encoder", or "input" and "cross" (edgec.nn.seam)."""

FP32: Final = "fp32"
INT8: Final = "int8"


class Exporter:
    """Writes bundles of one ModelState.

    opset: of ONNX; lowered to what the family's graph works with. long_text, stride, null_answers, max_answer_tokens:
    see describe. name: of the bundles. Making an Exporter traces the model and compares the float graph with torch:
    raises UserError for settings that the task has no use for, ModelError, ParityError.
    """

    def __init__(
        self,
        state: ModelState,
        *,
        name: str,
        opset: int = 23,
        long_text: str | None = None,
        stride: int = 0,
        null_answers: bool = False,
        max_answer_tokens: int = MAX_ANSWER_TOKENS,
        seed: int = 0,
    ) -> None:
        if state.lora is not None:
            raise UserError(
                "the model has LoRA adapters beside its weights, and a graph has plain layers",
                "merge them first: add fuse-adapters to the recipe's passes after lora",
            )
        ((self.part_name, part),) = state.parts.items()
        assert isinstance(part, Part)
        modules = components(part)
        described = describe(
            state,
            long_text=long_text,
            stride=stride,
            null_answers=null_answers,
            max_answer_tokens=max_answer_tokens,
        )
        self.manifest = dataclasses.replace(described, name=name)
        self.state = state
        self.opset = min(opset, FAMILIES[state.spec.family].opset)
        self.traces: Graphs = {
            name: trace(module, opset=self.opset, max_length=state.spec.max_length) for name, module in modules.items()
        }
        self.float_graphs: Graphs = {name: prepare_float(graph) for name, graph in self.traces.items()}
        self._lowerings: dict[bool, Graphs] = {}
        self._float_forms = {name: apply_forms(graph, DEFAULT_FORMS) for name, graph in self.float_graphs.items()}
        self.tokenizer = tokenizer_json(state)
        texts: tuple[Text, ...] = SAMPLE_TEXTS
        if state.spec.task == "text-classification" and self.manifest.preprocessing.pairs:
            texts = (*texts, SAMPLE_PAIR)
        self.requests = requests_for(state.spec.task, texts, mask_token=str(state.tokenizer.mask_token or ""))
        self.float_parity: Parity = combined(
            float_parity(
                module,
                open_graph(self.float_graphs[name]).run,
                sample_feeds(
                    module,
                    vocabulary=part.model.config.vocab_size,
                    pad_id=self.manifest.preprocessing.pad_id,
                    max_length=state.spec.max_length,
                    seed=seed,
                ),
            )
            for name, module in modules.items()
        )
        self._rounded: tuple[bool, Part] | None = None

    @property
    def traced(self) -> ir.Model:
        """The trace of a model that is one graph."""
        (graph,) = self.traces.values()
        return graph

    @property
    def float_graph(self) -> ir.Model:
        """The float graph of a model that is one graph."""
        (graph,) = self.float_graphs.values()
        return graph

    def write(
        self,
        folder: Path,
        target: Target,
        *,
        precision: str | None = None,
        forms: Forms | None = None,
        min_cosine: float = INT8_MIN_COSINE,
        force: bool = False,
    ) -> Manifest:
        """Write the bundle `folder` for `target`: int8 where the model is quantized, unless `precision` is "fp32".

        forms: which operators compute it, see edgec.costs; by default those of the target. The fp32 bundle has the
        default ones. min_cosine: mean cosine to float below which an int8 graph is broken.
        Raises ParityError where the int8 graph does not answer like the float one, or not as the decision says
        (the same roundings in torch), and what write_bundle raises.
        """
        quantization = None if precision == FP32 else self.state.quantization
        parity: dict[str, Any] = {"float_against_torch": self.float_parity.to_dict()}
        graphs, made = self.float_graphs, self._float_forms
        if quantization is not None:
            graphs = self._lowered(quantization, target)
            made = {name: apply_forms(graph, forms or target.forms) for name, graph in graphs.items()}
            answers = self.answers(together([_opened(graph, target) for graph in graphs.values()]))
            # First whether the graph is what was decided: only then is the decision to blame for what it costs.
            found = self.against_reference(
                graphs,
                answers,
                quantization,
                target,
                tanh_gelu=any(found.get("gelu") == "tanh" for found in made.values()),
            )
            parity["int8_against_reference"] = found.to_dict()
            found_float = int8_parity(self.float_answers, answers, min_cosine=min_cosine)
            parity["int8_against_float"] = found_float.to_dict()
        return self._write(folder, target, graphs, quantization, parity, made, force=force)

    def _lowered(self, quantization: Quantization, target: Target) -> Graphs:
        """Copies of the int8 graphs, which are made once for all targets with the same range of weights."""
        key = target.int8.reduce_range
        if key not in self._lowerings:
            decided = quantization.of_part(self.part_name)
            self._lowerings[key] = {
                name: lower_int8(graph, self._inside(decided, name), target) for name, graph in self.traces.items()
            }
        return {name: graph.clone() for name, graph in self._lowerings[key].items()}

    def _inside(self, decided: Quantization, name: str) -> Quantization:
        """What of a decision about the part is about this graph of it."""
        part = self.state.parts[self.part_name]

        def cut(table: Mapping[str, Any]) -> dict[str, Any]:
            return {path: value for path, value in table.items() if component(part, path) == name}

        tensors = {
            key: value for key, value in decided.tensors.items() if component(part, key.rpartition("/")[0]) == name
        }
        return dataclasses.replace(decided, layers=cut(decided.layers), points=cut(decided.points), tensors=tensors)

    def of(self, state: ModelState) -> Exporter:
        """This exporter for another decision about the same weights, which are not traced and compared anew."""
        other = copy.copy(self)
        other.state = state
        other.__dict__.pop("build_id", None)
        other._lowerings, other._rounded = {}, None
        return other

    def write_plain(self, folder: Path, target: Target) -> Manifest:
        """Write the graph as torch exports it, loaded as onnxruntime does by default: what one has without edgec."""
        name = f"{self.manifest.name}-plain"
        return self._write(folder, target, self.traces, None, {}, {}, name=name, plain=True)

    def graph_facts(self) -> str:
        """A digest of what the speed of the graph depends on: operators, sizes of constants, and how layers run."""
        traced = self.traces.values()
        operators = [node.op_type for model in traced for node in model.graph.all_nodes()]
        sizes = [str(value.shape) for model in traced for value in model.graph.initializers.values()]
        decided = self.state.quantization or Quantization("none", {})
        layers = [
            (key, layer.scheme, layer.bits, layer.smoothing is not None, len(layer.outliers))
            for key, layer in decided.layers.items()
        ]
        points = [(key, sorted(point.ranges)) for key, point in decided.points.items()]
        return hashlib.sha256(json.dumps([operators, sizes, layers, points]).encode()).hexdigest()[:16]

    def _write(
        self,
        folder: Path,
        target: Target,
        graphs: Graphs,
        quantization: Quantization | None,
        parity: dict[str, Any],
        forms: Mapping[str, dict[str, str]],
        *,
        name: str | None = None,
        plain: bool = False,
        force: bool = False,
    ) -> Manifest:
        precision = FP32 if quantization is None else INT8
        parts = tuple(
            dataclasses.replace(
                part,
                file=f"{part.name}.onnx",
                precision=precision,
                forms=forms.get(part.name, {}),
                optimize_at_load=plain,
            )
            for part in self.manifest.parts
        )
        manifest = dataclasses.replace(
            self.manifest,
            name=name or self.manifest.name,
            build_id=self.build_id,
            passes=self._passes(quantized=quantization is not None),
            target=_told(target) if precision == INT8 else TargetInfo(target.name, target.arch),
            parts=parts,
            # One dynamic scale for a whole batch would let a text's answer depend on its batch-mates.
            execution=dataclasses.replace(
                self.manifest.execution,
                batch_invariant=quantization is None or quantization.batch_invariant,
            ),
            parity=parity,
        )
        return write_bundle(
            folder,
            manifest,
            graphs={f"{name}.onnx": graph for name, graph in graphs.items()},
            tokenizer=self.tokenizer,
            requests=self.requests,
            engine=None if quantization is None else _emulated(graphs, target),
            license_text=self.state.spec.license_text,
            force=force,
        )

    def _passes(self, *, quantized: bool) -> tuple[PassRecord, ...]:
        history, decision = self.state.history, self.state.quantization
        told = history if quantized or decision is None else history[: decision.passes_before]
        # The data of who compresses the model is no business of those who get the bundle.
        return tuple(
            PassRecord(one.name, one.options, {key: value for key, value in one.report.items() if key != QUOTED})
            for one in told
        )

    @cached_property
    def build_id(self) -> str:
        """Names the compressed model, whatever the target: its float graph, its quantization, its tokenizer."""
        quantization = self.state.quantization
        decision = None if quantization is None else dataclasses.asdict(dataclasses.replace(quantization, tensors={}))
        digest = hashlib.sha256()
        for graph in self.float_graphs.values():
            digest.update(digest_graph(graph))
        for name, tensor in sorted(quantization.tensors.items() if quantization is not None else ()):
            digest.update(name.encode() + tensor.tobytes())
        digest.update(json.dumps(decision, sort_keys=True).encode())
        digest.update(self.tokenizer)
        return digest.hexdigest()[:16]

    def against_reference(
        self,
        graphs: Graphs,
        answers: Sequence[Outputs],
        quantization: Quantization,
        target: Target,
        *,
        tanh_gelu: bool = False,
    ) -> ReferenceParity:
        """Compare int8 graphs for `target`, which gave `answers`, with torch, which rounds as decided for the model.

        tanh_gelu: the graphs have that form of GELU, so torch has it too. Raises ParityError.
        """
        decided, reduce_range = quantization.of_part(self.part_name), target.int8.reduce_range
        if self._rounded is None or self._rounded[0] != reduce_range:
            part = self.state.parts[self.part_name]
            assert isinstance(part, Part)
            self._rounded = (reduce_range, fake_quantized(part, decided, reduce_range=reduce_range))
        rounded = self._rounded[1]
        modules = components(rounded)
        followers = {
            name: Follower(
                graph, modules[name], self._inside(decided, name).layers, engine=partial(_opened, target=target)
            )
            for name, graph in graphs.items()
        }
        torch_engines = [TorchEngine(one, one.input_names, one.output_names) for one in modules.values()]
        with TanhGelu() if tanh_gelu else nullcontext():
            self.answers(together(list(followers.values())))
            reference = self.answers(together(torch_engines))
        agreement = {path: found for one in followers.values() for path, found in one.agreement.items()}
        return reference_parity(reference, answers, self.float_answers, agreement)

    @cached_property
    def float_answers(self) -> Sequence[Outputs]:
        """Of the float graphs."""
        return self.answers(together([open_graph(graph) for graph in self.float_graphs.values()]))

    def answers(self, engine: Engine) -> Sequence[Outputs]:
        """Of any form of this model, to the requests of the golden vectors, one unpadded row at a time."""
        with warnings.catch_warnings():
            # Long requests are there on purpose.
            warnings.simplefilter("ignore", TruncationWarning)
            return model_on(engine, self.manifest, self.tokenizer).raw(self.requests)


def _opened(graph: ir.Model, target: Target) -> Engine:
    """One that answers as the CPUs of `target` do."""
    kind = foreign_kind(_told(target))
    return open_graph(graph) if kind is None else emulate(graph, kind)


def _emulated(graphs: Graphs, target: Target) -> Engine | None:
    """One that answers as the CPUs of `target` do, where this one would not; None where it would."""
    kind = foreign_kind(_told(target))
    return None if kind is None else together([emulate(graph, kind) for graph in graphs.values()])


def _told(target: Target) -> TargetInfo:
    """What a manifest says of the target of an int8 bundle."""
    return TargetInfo(target.name, target.arch, target.answer_features)

"""One model, many bundles: traced once, lowered for each target, compared with torch and with float on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir
from edgec_runtime.manifest import Manifest, PassRecord, TargetInfo
from edgec_runtime.notices import TruncationWarning

from edgec.bundle import write_bundle
from edgec.data.samples import SAMPLE_PAIR, SAMPLE_TEXTS
from edgec.graph.float_graph import prepare_float
from edgec.graph.lower_int8 import lower_int8
from edgec.graph.parity import Outputs, Parity, float_parity, int8_parity, sample_feeds
from edgec.graph.store import digest_graph, open_graph
from edgec.graph.trace import trace
from edgec.models.describe import describe
from edgec.models.families import FAMILIES
from edgec.models.requests import requests_for
from edgec.models.torch_model import model_on, tokenizer_json
from edgec.nn.parts import Part
from edgec.state import ModelState
from edgec.target import Target
from edgec.task_rules import MAX_ANSWER_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgec.data.readers import Text

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
        ((self.part_name, part),) = state.parts.items()
        assert isinstance(part, Part)
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
        self.traced = trace(part, opset=self.opset, max_length=state.spec.max_length)
        self.float_graph = prepare_float(self.traced)
        self.tokenizer = tokenizer_json(state)
        texts: tuple[Text, ...] = SAMPLE_TEXTS
        if state.spec.task == "text-classification" and self.manifest.preprocessing.pairs:
            texts = (*texts, SAMPLE_PAIR)
        self.requests = requests_for(state.spec.task, texts, mask_token=str(state.tokenizer.mask_token or ""))
        feeds = sample_feeds(
            part,
            vocabulary=part.model.config.vocab_size,
            pad_id=self.manifest.preprocessing.pad_id,
            max_length=state.spec.max_length,
            seed=seed,
        )
        self.float_parity: Parity = float_parity(part, open_graph(self.float_graph).run, feeds)

    def write(self, folder: Path, target: Target, *, precision: str | None = None, force: bool = False) -> Manifest:
        """Write the bundle `folder` for `target`: int8 where the model is quantized, unless `precision` is "fp32".

        Raises ParityError where the int8 graph does not answer like the float one, and what write_bundle raises.
        """
        quantization = None if precision == FP32 else self.state.quantization
        parity: dict[str, Any] = {"float_against_torch": self.float_parity.to_dict()}
        graph = self.float_graph
        if quantization is not None:
            graph = lower_int8(self.traced, quantization.of_part(self.part_name), target)
            found = int8_parity(self._float_outputs, self._outputs(graph))
            parity["int8_against_float"] = found.to_dict()
        file = f"{self.part_name}.onnx"
        precision = FP32 if quantization is None else INT8
        (part,) = self.manifest.parts
        manifest = dataclasses.replace(
            self.manifest,
            build_id=self.build_id,
            passes=self._passes(quantized=quantization is not None),
            target=TargetInfo(target.name, target.arch, target.answer_features if precision == INT8 else ()),
            parts=(dataclasses.replace(part, file=file, precision=precision),),
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
            graphs={file: graph},
            tokenizer=self.tokenizer,
            requests=self.requests,
            license_text=self.state.spec.license_text,
            force=force,
        )

    def _passes(self, *, quantized: bool) -> tuple[PassRecord, ...]:
        history, decision = self.state.history, self.state.quantization
        return history if quantized or decision is None else history[: decision.passes_before]

    @cached_property
    def build_id(self) -> str:
        """Names the compressed model, whatever the target: its float graph, its quantization, its tokenizer."""
        quantization = self.state.quantization
        decision = None if quantization is None else dataclasses.asdict(dataclasses.replace(quantization, tensors={}))
        digest = hashlib.sha256(digest_graph(self.float_graph))
        for name, tensor in sorted(quantization.tensors.items() if quantization is not None else ()):
            digest.update(name.encode() + tensor.tobytes())
        digest.update(json.dumps(decision, sort_keys=True).encode())
        digest.update(self.tokenizer)
        return digest.hexdigest()[:16]

    @cached_property
    def _float_outputs(self) -> Sequence[Outputs]:
        return self._outputs(self.float_graph)

    def _outputs(self, graph: ir.Model) -> Sequence[Outputs]:
        with warnings.catch_warnings():
            # Long requests are there on purpose.
            warnings.simplefilter("ignore", TruncationWarning)
            return model_on(open_graph(graph), self.manifest, self.tokenizer).raw(self.requests)

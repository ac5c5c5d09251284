"""What the passes cost before anything is rounded: the fp32 form after them against the model before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgec_runtime.manifest import Quality

from edgec.data.readers import Sample
from edgec.emulation import load_as_target
from edgec.errors import UserError
from edgec.recipe import EvaluationData
from edgec.state import ModelState, Progress, no_progress

from .bundles import quality_between
from .score import Evaluation


@dataclass(frozen=True)
class Original:
    """The model before the first pass that makes it another one.

    before: the name of that pass. parameters: then, and after all passes. bytes: of the former as float32. quality:
    `before` is the original's score, `after` that of the fp32 form after the passes; None where they do not compare, or
    there is nothing to compare them on: reason.
    """

    before: str
    parameters: tuple[int, int]
    quality: Quality | None
    reason: str = ""

    @property
    def bytes(self) -> int:
        return 4 * self.parameters[0]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "before_pass": self.before,
            "parameters": self.parameters[0],
            "parameters_after": self.parameters[1],
            "bytes": self.bytes,
            "quality": None if self.quality is None else asdict(self.quality),
            "reason": self.reason or None,
        }


def against_original(
    original: ModelState,
    before: str,
    after: ModelState,
    baseline: Path,
    data: EvaluationData | None,
    sample: Sample,
    *,
    scores: Evaluation | None = None,
    reading: Mapping[str, Any],
    progress: Progress = no_progress,
) -> Original:
    """Compare the fp32 bundle `baseline` of the state `after` with the model before the pass `before`.

    data, sample: see bundle_quality. scores: what scored() says of the baseline, where it is known. reading: the
    options of edgec.models.describe that the bundle was made with. What cannot be told of the original is a reason and
    no error: the build is whole without it.
    """
    from edgec.models.describe import describe
    from edgec.models.torch_model import torch_model

    sizes = parameters(original), parameters(after)
    reason = _incomparable(original, after, data)
    if data is None or reason:
        return Original(before, sizes, None, reason)
    described = describe(original, **reading)
    with torch_model(original, described) as reference, load_as_target(baseline) as candidate:
        try:
            found = quality_between(reference, candidate, data, sample, after=scores, progress=progress)
        except UserError as error:
            return Original(before, sizes, None, error.message)
    return Original(before, sizes, found)


def parameters(state: ModelState) -> int:
    return sum(parameter.numel() for part in state.parts.values() for parameter in part.parameters())


def _incomparable(original: ModelState, after: ModelState, data: EvaluationData | None) -> str:
    """Why the two cannot be compared on `data`, or nothing."""
    if data is None:
        return "the recipe names no data.evaluate"
    was, now = original.spec, after.spec
    if was.task != now.task:
        return f"the model was made for {was.task} then, not for {now.task}"
    if was.labels != now.labels:
        return "the model had other labels then"
    if was.multi_label != now.multi_label:
        return "one of the two gives a text several labels, the other one"
    if data.scored:
        return ""
    if now.task == "feature-extraction":
        widths = [next(iter(state.parts.values())).hidden_size for state in (original, after)]
        return "" if widths[0] == widths[1] else f"embeddings of {widths[0]} and {widths[1]} numbers do not compare"
    tokenizers = [state.tokenizer.backend_tokenizer.to_str() for state in (original, after)]
    if now.task != "text-classification" and tokenizers[0] != tokenizers[1]:
        return "the vocabulary is another one, so that outputs a token do not compare"
    if now.task != "text-classification" and was.max_length != now.max_length:
        return f"the model took {was.max_length} tokens then and {now.max_length} now: outputs a token do not compare"
    return ""

"""What a bundle says of a model before its graphs exist: limits, pre- and post-processing, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgec_runtime.manifest import (
    FORMAT_VERSION,
    Execution,
    Golden,
    Manifest,
    Part,
    Postprocessing,
    Preprocessing,
    Source,
    TargetInfo,
    TensorInfo,
)

from edgec.data.spans import of_spans
from edgec.nn.seam import components
from edgec.state import ModelState
from edgec.task_rules import MAX_ANSWER_TOKENS, WINDOWED, check_export


def describe(
    state: ModelState,
    *,
    long_text: str | None = None,
    stride: int = 0,
    null_answers: bool = False,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
) -> Manifest:
    """A manifest without target, files and golden vectors.

    long_text: "truncate" or "window"; None: the task's usual way (windows where an answer is a place in the text).
    stride: tokens that two neighbouring windows share; 0: a quarter of a row. null_answers: "there is no answer" may
    win; max_answer_tokens: the longest answer (both of question-answering). Raises UserError for what the task cannot
    do.
    """
    spec, tokenizer = state.spec, state.tokenizer
    check_export(
        spec.task,
        max_length=spec.max_length,
        long_text=long_text,
        stride=stride,
        null_answers=null_answers,
        max_answer_tokens=max_answer_tokens,
    )
    (module,) = state.parts.values()
    if long_text is None:
        long_text = "window" if spec.task in WINDOWED else "truncate"
    windows = long_text == "window"
    return Manifest(
        format=FORMAT_VERSION,
        name=spec.name,
        build_id="",
        task=spec.task,
        family=spec.family,
        target=TargetInfo("torch", ""),
        parts=tuple(_part(name, state, one) for name, one in components(module).items()),
        files=(),
        preprocessing=Preprocessing(
            tokenizer="tokenizer.json",
            max_length=spec.max_length,
            pad_id=int(tokenizer.pad_token_id or 0),
            long_text=long_text,
            stride=(stride or spec.max_length // 4) if windows else 0,
            pairs=spec.pairs,
            prompts=dict(spec.prompts),
            default_prompt=spec.default_prompt,
        ),
        postprocessing=_postprocessing(state, module, null_answers, max_answer_tokens),
        execution=Execution(),
        golden=Golden("", 0.0, 0.0),
        source=Source(spec.source, spec.sha256, spec.revision, spec.license),
        labels=spec.labels,
    )


def _part(name: str, state: ModelState, module: Any) -> Part:
    """The inputs and outputs with their dynamic axes by name, and the size of a row of outputs."""
    (part,) = state.parts.values()
    labels = len(state.spec.labels or ())
    size: dict[str, tuple[int, ...]] = {
        "sentence_embedding": (part.hidden_size,),
        "text_embedding": (part.hidden_size,),
        "logits": (part.model.config.vocab_size if state.spec.task == "fill-mask" else labels,),
    }
    if part.seam is not None:
        size["states"] = (part.seam.width,)

    def tensor(name: str, dtype: str, axes: Mapping[int, str], *size: int) -> TensorInfo:
        return TensorInfo(name, dtype, (*(axes[axis] for axis in sorted(axes)), *size))

    return Part(
        name=name,
        file="",
        precision="fp32",
        inputs=tuple(
            tensor(
                n, "float32" if n == "states" else "int32", module.input_axes[n], *(size[n] if n == "states" else ())
            )
            for n in module.input_names
        ),
        outputs=tuple(tensor(n, "float32", module.output_axes[n], *size.get(n, ())) for n in module.output_names),
    )


def _postprocessing(state: ModelState, module: Any, null_answers: bool, max_answer_tokens: int) -> Postprocessing:
    spec, tokenizer = state.spec, state.tokenizer
    if spec.task == "feature-extraction":
        return Postprocessing(dimension=int(module.hidden_size), pooling=spec.pooling, normalized=spec.normalize)
    if spec.task == "text-classification":
        return Postprocessing(activation="sigmoid" if spec.multi_label else "softmax")
    if spec.task == "token-classification":
        return Postprocessing(label_scheme="BIO" if of_spans(spec.labels or ()) else "plain")
    if spec.task == "question-answering":
        return Postprocessing(max_answer_tokens=max_answer_tokens, null_answers=null_answers)
    return Postprocessing(mask_token=str(tokenizer.mask_token), mask_id=int(tokenizer.mask_token_id))

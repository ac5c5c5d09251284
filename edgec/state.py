"""What flows through the passes: the model's parts, what is known about it, and what was done to it so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgec_runtime.manifest import PassRecord

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class ModelSpec:
    """Facts about a model that need no torch to be read.

    source is the string the user gave; sha256 that of the weight file. max_length counts special tokens. pooling is
    "mean", "cls" or "max", normalize says whether embeddings have unit length (feature-extraction only). prompts
    and default_prompt are those of sentence-transformers. pairs: the model was made for text pairs. license is what
    the card states, license_text the licence files that lie beside the model.
    """

    name: str
    source: str
    task: str
    family: str
    max_length: int
    sha256: str | None = None
    revision: str | None = None
    license: str | None = None
    license_text: str | None = None
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    pairs: bool = False
    pooling: str | None = None
    normalize: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer of the model is quantized.

    kind: "linear" (a matrix product with a constant weight) or "embedding" (a table, int8 rows with a scale a row).
    input_range: the calibrated (low, high) of the input activations, None where the scale is dynamic. smoothing: one
    factor an input channel that the activations are divided by before they are quantized and the weights multiplied
    by; input_range is then that of the divided activations.
    """

    kind: str
    input_range: tuple[float, float] | None = None
    smoothing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Quantization:
    """The decision of the quantize pass, which `export` lowers for a target.

    scheme: "dynamic" or "static". layers: by part and module path, "encoder:model.encoder.layer.0.output.dense".
    passes_before: how many passes the model went through before; a float export of it shows only those.
    """

    scheme: str
    layers: Mapping[str, LayerQuantization]
    passes_before: int = 0


@dataclass(frozen=True)
class ModelState:
    """A model between two passes.

    parts: named torch modules, each with `input_names` and `output_names` (edgec.nn.parts.Part).
    """

    parts: Mapping[str, torch.nn.Module]
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerFast
    quantization: Quantization | None = None
    history: tuple[PassRecord, ...] = ()


class Progress(Protocol):
    """Reports how far a long step is. `edgec.cli.console` draws it; tests and library users pass `no_progress`."""

    def __call__(self, label: str, total: int) -> Callable[[int], None]: ...


def no_progress(label: str, total: int) -> Callable[[int], None]:
    """A Progress that draws nothing."""
    return lambda done: None


@dataclass(frozen=True)
class PassContext:
    """What a pass may use besides the state: a folder of its own, calibration texts, a seed, progress.

    texts: calibration inputs; a pair is a tuple of two strings.
    """

    workdir: Path
    texts: tuple[str | tuple[str, str], ...] = ()
    seed: int = 0
    progress: Progress = no_progress


@dataclass(frozen=True)
class PassResult:
    """The new state and the figures of the pass. `report["left_alone"]` maps a layer to the reason."""

    state: ModelState
    report: dict[str, Any]

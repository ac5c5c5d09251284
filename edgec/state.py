"""What flows through the passes: the model's parts, what is known about it, and what was done to it so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from edgec_runtime.manifest import PassRecord

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedTokenizerFast

    from edgec.data.examples import Labelled, Text


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

    kind: "linear" (a matrix product with a constant weight) or "embedding" (a table).
    scheme: of a linear layer,
        "static"          u8 activations on the fixed `input_range`, s8 weights with a scale a channel
        "dynamic-tensor"  the same with a range taken from the tensor itself
        "dynamic-token"   symmetric 8-bit activations with a scale a row, so that no row depends on another
        "llm-int8"        as dynamic-token, the input channels in `outliers` in a float product beside it
        "weight-only"     float activations; weights of `bits` bits with a scale each `block_size` inputs
    and of an embedding "weight-only" (rows of 8 bits with a scale a row, or of 4 bits with a scale a block).
    bits: of the weights; in the static scheme of the activations as well (4 to 8).
    per_tensor: one weight scale for the whole matrix instead of one a channel. clip: search each channel's clipping
    range for the least squared error; off: weights span exactly their extremes.
    input_range: the calibrated (low, high) of the input activations, None where they are not static.
    smoothing: one factor an input channel that the activations are divided by before they are quantized and the
    weights multiplied by; input_range is then that of the divided activations.
    outliers: indices of input channels. bias_correction: what is added to the bias, one value an output channel.
    """

    kind: str
    scheme: str = "static"
    bits: int = 8
    block_size: int = 32
    per_tensor: bool = False
    clip: bool = True
    input_range: tuple[float, float] | None = None
    smoothing: tuple[float, ...] | None = None
    outliers: tuple[int, ...] = ()
    bias_correction: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PointQuantization:
    """Tensors inside a module that is no matrix product with constants, rounded to `bits` bits (fully-quantized).

    kind: "attention" (module path of the attention; ranges of "query", "key", "value", "scores", "probabilities") or
    "layer-norm" (ranges of "input", "output"). A tensor without a range stays in float. smoothing: of a layer norm's
    input, one factor a channel that it is divided by before it is rounded and multiplied by after.
    """

    kind: str
    bits: int
    ranges: Mapping[str, tuple[float, float]]
    smoothing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Quantization:
    """The decision of the quantize pass, which `export` lowers for a target.

    scheme: as the recipe names it. layers, points: by part and module path, such as
    "encoder:model.encoder.layer.0.output.dense". tensors: what is too large for a table, by "PART:PATH/NAME": GPTQ's
    "weight" (inputs, channels) int8 and "scale" (blocks, channels) float32 of a weight-only layer, used in the place
    of rounding to nearest.
    passes_before: how many passes the model went through before; a float export of it shows only those.
    """

    scheme: str
    layers: Mapping[str, LayerQuantization]
    passes_before: int = 0
    points: Mapping[str, PointQuantization] = field(default_factory=dict)
    tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, compare=False)

    def of_part(self, part: str) -> Quantization:
        """That of one part, its keys without the part's name."""
        mine = f"{part}:"

        def cut(table: Mapping[str, Any]) -> dict[str, Any]:
            return {key.removeprefix(mine): value for key, value in table.items() if key.startswith(mine)}

        return replace(self, layers=cut(self.layers), points=cut(self.points), tensors=cut(self.tensors))

    @property
    def batch_invariant(self) -> bool:
        """Whether a text's answer is the same alone and in any batch."""
        return not any(q.kind == "linear" and q.scheme == "dynamic-tensor" for q in self.layers.values())


@dataclass(frozen=True)
class ModelState:
    """A model between two passes.

    parts: named torch modules, each with `input_names` and `output_names` (edgec.nn.parts.Part). sparse: parameters
    whose zeros are meant, by "PART:NAME"; training leaves them zero. lora: the settings of adapters that are not
    merged into the weights yet, as peft's LoraConfig takes them.
    """

    parts: Mapping[str, torch.nn.Module]
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerFast
    quantization: Quantization | None = None
    history: tuple[PassRecord, ...] = ()
    sparse: tuple[str, ...] = ()
    lora: Mapping[str, Any] | None = None


class Progress(Protocol):
    """Reports how far a long step is. `edgec.cli.console` draws it; tests and library users pass `no_progress`."""

    def __call__(self, label: str, total: int) -> Callable[[int], None]: ...


def no_progress(label: str, total: int) -> Callable[[int], None]:
    """A Progress that draws nothing."""
    return lambda done: None


def no_word(line: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class TrainingData:
    """What passes train on, all of it read and checked. train, validation: edgec.data.examples.Labelled, of one kind.
    unlabelled: texts; a pair is a tuple of two strings.
    """

    train: tuple[Labelled, ...] = ()
    validation: tuple[Labelled, ...] = ()
    unlabelled: tuple[Text, ...] = ()


@dataclass(frozen=True)
class PassContext:
    """What a pass may use besides the state: a folder of its own, texts and labelled data, a seed, progress, and `say`,
    which tells the user what nobody asked for and everybody should know.

    texts: calibration inputs; a pair is a tuple of two strings. checkpoints: a folder of this pass that outlives a
    kill, so that training goes on where it was; None: nothing is kept.
    """

    workdir: Path
    texts: tuple[Text, ...] = ()
    seed: int = 0
    progress: Progress = no_progress
    data: TrainingData = TrainingData()
    checkpoints: Path | None = None
    say: Callable[[str], None] = no_word

    @property
    def training_folder(self) -> Path:
        """Where a pass that trains puts its checkpoints."""
        return self.checkpoints or self.workdir / "checkpoints"


QUOTED: Final = "quoted"


@dataclass(frozen=True)
class PassResult:
    """The new state and the figures of the pass. `report["left_alone"]` maps a layer to the reason; what is below
    `report[QUOTED]` quotes the user's data, and no bundle carries it."""

    state: ModelState
    report: dict[str, Any]

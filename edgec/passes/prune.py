"""prune: take the least important weights, heads, channels or layers out of the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar

from edgec.data.examples import Example, Question, Tagged
from edgec.errors import DataError, PassError, UserError
from edgec.passes.learn import copied, require_whole
from edgec.state import ModelState, PassContext, PassResult

if TYPE_CHECKING:
    import torch

    from edgec.data.examples import Labelled, Text
    from edgec.passes.prune_structure import Share

T = TypeVar("T")

_ZEROS: Final = (
    "zeros alone do not make a CPU faster: its kernels multiply them like any other number. What gets smaller is the "
    "compressed file; structure: heads, ffn, layers or hidden makes the tensors smaller"
)
_OF_STRUCTURE: Final[dict[str, tuple[str, ...]]] = {
    "sparsity": ("none",),
    "ratio": ("heads", "ffn", "layers", "hidden"),
    "keep": ("heads", "ffn", "layers", "hidden"),
    "scope": ("none", "heads", "ffn"),
    "importance": ("heads", "ffn", "hidden"),
    "loss": ("heads", "ffn", "hidden"),
    "multiple": ("ffn", "hidden"),
    "select": ("layers",),
    "rows": ("heads", "ffn", "layers", "hidden"),
    "batch_size": ("heads", "ffn", "layers", "hidden"),
}
"""The structures that an option means something to."""


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Zeros in the encoder's matrices (structure: none), or smaller tensors. No training: finetune or distil after it.

    structure: what is taken out: "none", single weights, which become zero and stay so in later training; "heads" of
    attention; "ffn", channels of the feed-forward networks; whole "layers"; "hidden", channels of the residual stream,
    in all layers the same. sparsity: the share of zeros in the matrices of the encoder's layers, 0.1 to 0.95; the
    vocabulary and the head are neither counted nor touched; structure none. ratio: the share that is removed; give this
    or keep. keep: how many stay: heads or channels a layer (with scope global on average), layers, or channels of the
    stream. scope: what competes: "global", all layers together, so that they may end up different, with at least one
    head or one multiple of channels left in each; "layer", the units of each layer; "shared", each unit with its
    namesakes in all layers, which stay or go together (heads, ffn). importance: "magnitude", the norm of all weights
    that go with a unit, or "taylor", the first-order change of a loss when it is taken out (Molchanov et al. 2019; of
    heads Michel et al. 2019, section 4.1). loss: what taylor asks: "supervised", the task's loss on data.train, or
    "outputs", how far the outputs change, on texts without labels. multiple: widths are rounded to multiples of this,
    for the kernels' sake; ffn, hidden. select: which layers stay: "similarity", those whose output differs most from
    their input, by cosine on the application's texts (Application-Specific Compression, Rai et al. 2025); the "first";
    "evenly" spaced ones; or a list of indices, counted from 0 at the bottom. rows: how many rows of data are looked at,
    spread evenly. batch_size: rows at a time.
    """

    name: ClassVar[str] = "prune"

    structure: Literal["none", "heads", "ffn", "layers", "hidden"] = "none"
    sparsity: float | None = None
    ratio: float | None = None
    keep: int | None = None
    scope: Literal["global", "layer", "shared"] = "global"
    importance: Literal["magnitude", "taylor"] = "magnitude"
    loss: Literal["supervised", "outputs"] = "supervised"
    multiple: int = 32
    select: Literal["similarity", "first", "evenly"] | tuple[int, ...] = "similarity"
    rows: int = 512
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option, for a value out of its range or without effect beside the others."""
        for name, structures in _OF_STRUCTURE.items():
            given = getattr(self, name) != type(self).__dataclass_fields__[name].default
            if given and self.structure not in structures:
                raise ValueError(f"{name} is an option of structure {', '.join(structures)}, not of {self.structure}")
        if self.structure == "none":
            if self.sparsity is None:
                raise ValueError(
                    "give sparsity, the share of the weights to zero, between 0.1 and 0.95; or a structure"
                )
            if not 0.1 <= self.sparsity <= 0.95:
                raise ValueError(f"sparsity should be between 0.1 and 0.95, not {self.sparsity}")
            if self.scope == "shared":
                raise ValueError("scope: shared is for heads and ffn; single weights have no namesakes")
        elif self.structure == "layers" and isinstance(self.select, tuple):
            if not self.select or list(self.select) != sorted(set(self.select)) or self.select[0] < 0:
                raise ValueError("select should list indices from 0 on, each once, in ascending order")
            if (self.ratio, self.keep) != (None, None):
                raise ValueError("select lists the layers that stay: leave ratio and keep out")
        elif (self.ratio is None) == (self.keep is None):
            raise ValueError("give either ratio, the share that is removed, or keep, how many stay")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"ratio should be above 0 and below 1, not {self.ratio}")
        for name in ("keep", "multiple", "rows", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} should be at least 1, not {value}")
        if self.loss == "outputs" and self.importance == "magnitude":
            raise ValueError("loss is for importance: taylor; magnitude looks at weights alone")

    def requires_data(self, ctx: PassContext) -> None:
        if self.importance == "taylor" and self.loss == "supervised" and not ctx.data.train:
            raise DataError(
                "prune with importance: taylor needs labelled rows", "give data.train in the recipe, or loss: outputs"
            )
        if self._reads_texts and not _texts(ctx):
            what = "select: similarity" if self.structure == "layers" else "loss: outputs"
            raise DataError(
                f"prune with {what} needs texts of the application",
                "give data.train, data.unlabelled or data.calibrate in the recipe",
            )

    @property
    def _reads_texts(self) -> bool:
        if self.structure == "layers":
            return self.select == "similarity"
        return self.importance == "taylor" and self.loss == "outputs"

    def requires(self, state: ModelState) -> None:
        from edgec.nn.cut import shares_position_bias, uncuttable_stream
        from edgec.nn.layout import layers
        from edgec.passes.prune_structure import bound_to_first

        require_whole(self.name, state)
        if state.quantization is not None:
            raise UserError(
                "prune changes float weights, and the model is quantized already", "put prune before quantize"
            )
        if state.lora is not None:
            raise UserError("the model has LoRA adapters beside its weights", "merge them with fuse-adapters first")
        (part,) = state.parts.values()
        count = len(layers(part))
        if self.structure == "heads" and self.scope != "shared" and shares_position_bias(part):
            raise UserError(
                f"the layers of the family {state.spec.family} share their position biases, a column a head, so they "
                "all need the same heads",
                "take scope: shared",
            )
        if self.structure == "hidden" and (reason := uncuttable_stream(part)):
            raise UserError(f"the width of this model cannot be changed: {reason}", "prune heads, ffn or layers")
        if isinstance(self.select, tuple):
            if self.select[-1] >= count:
                raise UserError(
                    f"select names layer {self.select[-1]}, and the model has {count}", f"count from 0 to {count - 1}"
                )
            if self.select[0] != 0 and (reason := bound_to_first(part)):
                raise UserError(f"layer 0 cannot be removed: {reason}", "keep layer 0")

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        after = copied(state)
        return self._zeros(state, after, ctx) if self.structure == "none" else self._smaller(state, after, ctx)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        from edgec.passes.prune_magnitude import encoder_matrices, zeros_asked
        from edgec.passes.prune_structure import parameters

        (old,), (new,) = before.parts.values(), after.parts.values()
        if self.structure == "none":
            assert self.sparsity is not None and self.scope != "shared"
            matrices = encoder_matrices(new)
            zeros = sum(int((matrix == 0).sum()) for matrix in matrices.values())
            if zeros < zeros_asked(matrices, self.sparsity, self.scope):
                raise PassError(f"prune left fewer zeros than sparsity {self.sparsity}")
        elif sum(parameters(new).values()) >= sum(parameters(old).values()):
            finer = ", or lower multiple" if self.structure in ("ffn", "hidden") else ""
            raise UserError("prune removed nothing", f"raise ratio or lower keep{finer}")

    def _zeros(self, state: ModelState, after: ModelState, ctx: PassContext) -> PassResult:
        from torch import nn

        from edgec.passes.prune_magnitude import ZLIB_LEVEL, compressed_size, encoder_matrices, zero_smallest

        ((name, part),) = after.parts.items()
        assert self.sparsity is not None and self.scope != "shared"
        matrices = encoder_matrices(part)
        _, dense = compressed_size(state.parts[name], ctx.workdir / "weights")
        by_layer = zero_smallest(matrices, self.sparsity, self.scope)
        plain, packed = compressed_size(part, ctx.workdir / "weights")
        weights = {key: matrix.numel() for key, matrix in matrices.items()}
        zeros = sum(int((matrix == 0).sum()) for matrix in matrices.values())
        left_alone = {
            f"{name}:{path}": "outside the encoder's layers"
            for path, module in part.named_modules()
            if isinstance(module, nn.Linear | nn.Embedding) and f"{path}.weight" not in matrices
        }
        report: dict[str, Any] = {
            "structure": "none",
            "weights": sum(weights.values()),
            "zeros": zeros,
            "sparsity": round(zeros / sum(weights.values()), 6),
            "sparsity_by_layer": {key: round(share, 6) for key, share in by_layer.items()},
            "weight_file": {
                "bytes": plain,
                "zlib_level": ZLIB_LEVEL,
                "compressed_bytes": packed,
                "compressed_bytes_before": dense,
            },
            "note": _ZEROS,
            "left_alone": left_alone,
        }
        held = dict.fromkeys([*state.sparse, *(f"{name}:{key}" for key in matrices)])
        return PassResult(dataclasses.replace(after, sparse=tuple(held)), report)

    def _smaller(self, state: ModelState, after: ModelState, ctx: PassContext) -> PassResult:
        from edgec.passes.prune_structure import cut, parameters, structure

        ((name, part),) = after.parts.items()
        before, sizes = structure(part), parameters(part)
        report: dict[str, Any] = {"structure": self.structure}
        kept, left_alone = self._kept(after, ctx, report)
        after = cut(after, self.structure, kept)
        report |= {
            "parameters": {"before": sizes, "after": parameters(part)},
            "shape": {"before": before, "after": structure(part)},
            "left_alone": {f"{name}:{path}": reason for path, reason in left_alone.items()},
        }
        return PassResult(after, report)

    def _kept(
        self, state: ModelState, ctx: PassContext, report: dict[str, Any]
    ) -> tuple[list[list[int]], dict[str, str]]:
        """What stays, by layer, or as one list for all; and the layers of which everything does. Fills the report."""
        from edgec.nn.layout import layers
        from edgec.passes.importance import ranked
        from edgec.passes.prune_structure import Share, choose_channels, choose_heads, rounded

        (part,) = state.parts.values()
        share = Share(self.keep, self.ratio)
        if self.structure == "layers":
            chosen = self._layers(state, share, ctx, report)
            report["kept_layers"] = list(chosen)
            return [list(chosen)], {}
        report["importance"] = self.importance
        scores = self._scores(state, ctx, report)
        if self.structure == "hidden":
            width = rounded(share.of(len(scores[0])), self.multiple, len(scores[0]))
            return [sorted(ranked(scores[0])[:width])], {}
        if self.structure == "heads":
            kept = choose_heads(scores, share, self.scope)
        else:
            kept = choose_channels(scores, share, self.scope, self.multiple)
        paths = [layer.path for layer in layers(part)]
        counts = [len(score) for score in scores]
        if self.structure == "heads":
            report["removed_heads"] = {
                path: [head for head in range(count) if head not in units]
                for path, count, units in zip(paths, counts, kept, strict=True)
            }
        whole = [path for path, count, units in zip(paths, counts, kept, strict=True) if len(units) == count]
        return kept, dict.fromkeys(whole, f"its {self.structure} matter more than those of other layers")

    def _layers(self, state: ModelState, share: Share, ctx: PassContext, report: dict[str, Any]) -> tuple[int, ...]:
        from edgec.nn.layout import layers
        from edgec.passes.importance import similarity
        from edgec.passes.prune_structure import bound_to_first, evenly, least_similar

        (part,) = state.parts.values()
        count = len(layers(part))
        if isinstance(self.select, tuple):
            return self.select
        keep = share.of(count)
        if self.select != "similarity":
            return tuple(range(keep)) if self.select == "first" else evenly(count, keep)
        found = similarity(
            part,
            self._text_rows(state, ctx, report),
            pad_id=int(state.tokenizer.pad_token_id or 0),
            batch_size=self.batch_size,
            progress=ctx.progress,
        )
        report["similarity"] = [round(value, 6) for value in found]
        return least_similar(found, keep, bound=bound_to_first(part) is not None)

    def _scores(self, state: ModelState, ctx: PassContext, report: dict[str, Any]) -> list[torch.Tensor]:
        from edgec.passes.importance import OutputChange, magnitude, taylor
        from edgec.training.features import Featurizer
        from edgec.training.objectives import Supervised

        assert self.structure in ("heads", "ffn", "hidden")
        (part,) = state.parts.values()
        if self.importance == "magnitude":
            return magnitude(part, self.structure)
        report["loss"] = self.loss
        objective: Any
        if self.loss == "outputs":
            rows, objective = self._text_rows(state, ctx, report), OutputChange(ctx.seed)
        else:
            rows = _spread(Featurizer(state).labelled(_spread(ctx.data.train, self.rows)), self.rows)
            report["rows"] = len(rows)
            if not rows:
                raise DataError("no row of data.train has a label on a token that the model sees", "look at the file")
            highest = max((float(row.targets.get("score", 0)) for row in rows), default=0.0)
            objective = Supervised(multi_label=state.spec.multi_label, score_range=(0.0, highest or 1.0))
        return taylor(
            part,
            self.structure,
            rows,
            objective,
            pad_id=int(state.tokenizer.pad_token_id or 0),
            batch_size=self.batch_size,
            progress=ctx.progress,
        )

    def _text_rows(self, state: ModelState, ctx: PassContext, report: dict[str, Any]) -> list[Any]:
        from edgec.training.features import Featurizer

        rows = _spread(Featurizer(state).texts(_spread(_texts(ctx), self.rows)), self.rows)
        report["rows"] = len(rows)
        return rows


def _texts(ctx: PassContext) -> Sequence[Text]:
    """Texts of the application: those of data.train, else data.unlabelled, else what quantization calibrates on."""
    return [_text(example) for example in ctx.data.train] or ctx.data.unlabelled or ctx.texts


def _text(example: Labelled) -> Text:
    match example:
        case Tagged():
            return example.text
        case Question():
            return example.question, example.context
        case Example():
            return example.request


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]

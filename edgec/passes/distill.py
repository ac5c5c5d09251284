"""distill: a smaller model learns what a larger one computes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgec.data.examples import Example, Labelled, Question, Tagged, Text
from edgec.errors import DataError, PassError, UserError
from edgec.passes.learn import (
    copied,
    fit,
    require_float,
    require_length,
    require_room,
    require_scored,
    require_train,
    require_whole,
)
from edgec.passes.supervised import require_scores
from edgec.state import ModelState, PassContext, PassResult
from edgec.training.options import MEANINGS, TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgec.training.distillation import Matching
    from edgec.training.features import TrainingRow


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingOptions):
    __doc__ = f"""Training on what a teacher computes, with or without labels.

    keep: the student is that many of the model's layers, from the lowest to the highest at equal distances. layers: the
    student is these layers of the model, 0 the lowest. config: the student has the model's configuration with these
    settings, such as hidden_size, and new weights. student: the student is another model with the same vocabulary, a
    folder, hub id or pkg://package/path. teacher: who teaches, a folder, hub id or pkg://package/path; null: the model
    as it comes into the pass, which else is the student itself. on: what is learnt from, data.train or
    data.unlabelled. logits: the weight of the answers, as softened distributions (Hinton et al. 2015, section 2); null:
    1 where the task has such. temperature: what softens them; the loss is multiplied by its square. hidden: the weight
    of the hidden states, mean squared difference (TinyBERT, Jiao et al. 2020, equation 8). first_states: compare them
    below the first layer, too (TinyBERT, equation 9). normalized_states: compare them as vectors of unit length
    (Patient KD, Sun et al. 2019, equation 7). attention: the weight of the attention maps, mean squared difference
    (TinyBERT, equation 7). maps: what of them is compared, the "scores" before the softmax or the "probabilities".
    layer_map: for each layer of the student the one of the teacher that hidden and attention compare it with, 0 the
    lowest, null for none; null: at equal distances, the highest with the highest. embeddings: the weight of the
    sentence embeddings; null: 1 where they are the task. embedding_loss: how they are compared, mean squared difference
    (Reimers and Gurevych 2020, equation 1) or 1 - cosine. labels: the weight of the loss on the labels of data.train,
    as in finetune. max_score: the score of two texts that mean the same; feature-extraction with labels. max_length:
    tokens a training row; null: the model's. {MEANINGS}"""

    name: ClassVar[str] = "distill"

    keep: int | None = None
    layers: tuple[int, ...] | None = None
    config: dict[str, Any] | None = None
    student: str | None = None
    teacher: str | None = None
    on: Literal["train", "unlabelled"] = "train"
    logits: float | None = None
    temperature: float = 2.0
    hidden: float = 0.0
    first_states: bool = False
    normalized_states: bool = False
    attention: float = 0.0
    maps: Literal["scores", "probabilities"] = "scores"
    layer_map: tuple[int | None, ...] | None = None
    embeddings: float | None = None
    embedding_loss: Literal["mse", "cosine"] = "mse"
    labels: float = 0.0
    max_score: float = 5.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [name for name in ("keep", "layers", "config", "student") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{named[0]} and {named[1]} both say what the student is: name one")
        if not named and self.teacher is None:
            raise ValueError("say what the student is: keep, layers, config or student; or name a teacher for it")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep should be at least 1, not {self.keep}")
        if self.config is not None and not self.config:
            raise ValueError("config names no setting")
        require_room(self.max_length)
        for name in ("logits", "hidden", "attention", "embeddings", "labels"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is a weight and should not be below 0")
        for name in ("temperature", "max_score"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} should be above 0, not {getattr(self, name)}")
        if self.labels and self.on == "unlabelled":
            raise ValueError("labels are those of data.train: leave them out, or say on: train")
        compares = self.hidden or self.attention
        for name, used in (
            ("first_states", self.hidden),
            ("normalized_states", self.hidden),
            ("layer_map", compares),
        ):
            if getattr(self, name) not in (False, None) and not used:
                raise ValueError(f"{name} has no effect without hidden{' or attention' * (name == 'layer_map')}")
        if self.layer_map is not None and not any(layer is not None for layer in self.layer_map):
            raise ValueError("layer_map compares no layer: leave hidden and attention out instead")

    def requires_data(self, ctx: PassContext) -> None:
        if self.on == "train":
            require_train(self.name, ctx)
        elif not ctx.data.unlabelled:
            raise DataError(f"{self.name} needs texts to learn from", "give data.unlabelled in the recipe")
        require_scored(self, ctx, None)

    def requires(self, state: ModelState) -> None:
        require_whole(self.name, state)
        require_float(self.name, state)
        require_length(self.max_length, state)
        if state.lora is not None:
            raise UserError("the model has LoRA adapters beside its weights", "merge them with fuse-adapters first")
        if getattr(state.parts["encoder"], "adapter", None) is not None:
            raise UserError("the model has an alignment adapter, which was made for its layers", "distill before align")
        self._weights(state.spec.task)

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from edgec.models.student import encoder_parameters, require_same_vocabulary
        from edgec.training.distillation import Distillation, Terms
        from edgec.training.features import Featurizer
        from edgec.training.objectives import Supervised

        if self.labels and state.spec.task == "feature-extraction":
            require_scores(ctx.data.train, self.max_score)
        teacher = state
        if self.teacher is not None:
            from edgec.models import load_model

            teacher = load_model(self.teacher)
            require_same_vocabulary(teacher, state, self.teacher)
        after, origin = self._student(state, ctx.seed)
        weights = self._weights(state.spec.task)
        matching = self._matching(after, teacher, weights)
        student, taught = after.parts["encoder"], teacher.parts["encoder"]
        length = min(self.max_length or after.spec.max_length, teacher.spec.max_length)
        objective = Distillation(
            student,
            taught,
            weights,
            matching,
            supervised=Supervised(multi_label=after.spec.multi_label, score_range=(0.0, self.max_score)),
            seed=ctx.seed,
        )
        terms = Terms(objective)
        rows = self._rows(Featurizer(after, max_length=length, say=ctx.say), after, ctx)
        trained = fit(
            after, rows, objective, self.trains, _with_fitting(ctx, after), label="distill", callbacks=[terms]
        )
        student_size, teacher_size = encoder_parameters(student), encoder_parameters(taught)
        report: dict[str, Any] = {
            "teacher": teacher.spec.name,
            "student": origin,
            "parameters": {"student": student_size[0], "teacher": teacher_size[0]},
            "encoder_parameters": {"student": student_size[1], "teacher": teacher_size[1]},
            "smaller": round(1 - student_size[0] / teacher_size[0], 4),
            "encoder_smaller": round(1 - student_size[1] / teacher_size[1], 4),
            "weights": objective.weights,
            "layer_map": [list(pair) for pair in matching.layers],
            "projected": sorted(objective.projections),
            "terms": terms.by_step,
            **trained.to_dict(),
            "left_alone": {},
        }
        return PassResult(after, report)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        for fact in ("task", "labels", "multi_label", "pooling", "normalize"):
            if getattr(after.spec, fact) != getattr(before.spec, fact):
                raise PassError(f"distill should keep the model's {fact}, and it is {getattr(after.spec, fact)} now")
        for name, tensor in after.parts["encoder"].state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise PassError(f"the tensor {name} of the student is not finite", "lower learning_rate")

    def _student(self, state: ModelState, seed: int) -> tuple[ModelState, dict[str, Any]]:
        """The student before it learns, and what it was made of."""
        from edgec.models.student import evenly, from_config, from_layers, from_source
        from edgec.nn.layout import layers

        if self.student is not None:
            made, taken = from_source(state, self.student, seed)
            return made, {"model": made.spec.name, **taken}
        if self.config is not None:
            made, taken = from_config(state, self.config, seed)
            return made, {"config": dict(self.config), **taken}
        if self.keep is None and self.layers is None:
            return copied(state), {"model": state.spec.name}
        count = len(layers(state.parts["encoder"]))
        if self.keep is not None and self.keep > count:
            raise UserError(f"the model has {count} layers, and {self.keep} should be kept", "lower keep")
        kept = self.layers if self.layers is not None else evenly(count, int(self.keep or 0))
        return from_layers(state, kept), {"layers": list(kept), "of": count}

    def _weights(self, task: str) -> dict[str, float]:
        """The weight of each target. Raises UserError for one that the task does not have."""
        embeds = task == "feature-extraction"
        if embeds and self.logits:
            raise UserError("a sentence encoder has no logits to learn from", "leave logits out; embeddings is its own")
        if self.embeddings and not embeds:
            raise UserError(f"a model for {task} gives no sentence embeddings", "leave embeddings out; take logits")
        if self.labels and task == "fill-mask":
            raise UserError("there are no labels to train fill-mask on", "leave labels out")
        weights = {
            "logits": 0.0 if embeds else 1.0 if self.logits is None else self.logits,
            "hidden": self.hidden,
            "attention": self.attention,
            "embeddings": 0.0 if not embeds else 1.0 if self.embeddings is None else self.embeddings,
            "labels": self.labels,
        }
        if not any(weights.values()):
            raise UserError("distill has nothing to learn: every weight is 0", "give one of them a weight")
        return weights

    def _matching(self, student: ModelState, teacher: ModelState, weights: dict[str, float]) -> Matching:
        """How the two are compared. Raises UserError where they cannot be."""
        from edgec.nn.layout import layers
        from edgec.training.distillation import Matching, uniform_layers

        mine, yours = (len(layers(state.parts["encoder"])) for state in (student, teacher))
        pairs: tuple[tuple[int, int], ...] = ()
        if weights["hidden"] or weights["attention"]:
            pairs = uniform_layers(mine, yours)
            if self.layer_map is not None:
                if len(self.layer_map) != mine:
                    raise UserError(
                        f"layer_map has {len(self.layer_map)} entries, and the student {mine} layers",
                        "give each layer one, null for none",
                    )
                pairs = tuple((place, layer) for place, layer in enumerate(self.layer_map) if layer is not None)
                if wrong := [layer for _, layer in pairs if not 0 <= layer < yours]:
                    raise UserError(
                        f"layer_map names layer {wrong[0]} of a teacher with {yours}", f"name 0 to {yours - 1}"
                    )
        order = None
        if weights["logits"] or weights["embeddings"]:
            if teacher.spec.task != student.spec.task:
                raise UserError(
                    f"{teacher.spec.name} is a model for {teacher.spec.task}, and the student for {student.spec.task}",
                    "take a teacher of the same task, or learn its hidden states alone: logits: 0, hidden: 1",
                )
            own, known = student.spec.labels, teacher.spec.labels
            if own != known or student.spec.multi_label != teacher.spec.multi_label:
                if set(own or ()) != set(known or ()) or student.spec.multi_label != teacher.spec.multi_label:
                    raise UserError(
                        f"{teacher.spec.name} has other labels than the student ({', '.join(known or ())})",
                        "take a teacher with the same ones, or learn its hidden states alone: logits: 0, hidden: 1",
                    )
                order = tuple((known or ()).index(label) for label in own or ())
        return Matching(
            layers=pairs,
            temperature=self.temperature,
            maps=self.maps,
            embeddings=self.embedding_loss,
            first_states=self.first_states,
            normalized_states=self.normalized_states,
            multi_label=student.spec.multi_label,
            labels=order,
        )

    def _rows(self, featurizer: Any, student: ModelState, ctx: PassContext) -> list[TrainingRow]:
        if self.on == "unlabelled":
            return list(featurizer.texts(ctx.data.unlabelled))
        # Long texts give windows only where the task does, and only for rows of its own kind.
        windowed = student.spec.task in ("token-classification", "question-answering")
        if self.labels or (windowed and _fit(student, ctx.data.train)):
            return list(featurizer.labelled(ctx.data.train))
        return list(featurizer.texts([_text(example) for example in ctx.data.train]))


def _with_fitting(ctx: PassContext, student: ModelState) -> PassContext:
    """Without validation rows that are for the task of a later pass."""
    if _fit(student, ctx.data.validation):
        return ctx
    return dataclasses.replace(ctx, data=dataclasses.replace(ctx.data, validation=()))


def _fit(student: ModelState, examples: Sequence[Labelled]) -> bool:
    """Whether the model can be asked all of these, and its answers be judged."""
    task, labels = student.spec.task, set(student.spec.labels or ())

    def fits(example: Labelled) -> bool:
        if isinstance(example, Tagged):
            return task == "token-classification" and labels.issuperset(example.tags)
        if isinstance(example, Question):
            return task == "question-answering"
        if task == "feature-extraction":
            return example.text_pair is not None and _is_number(example.label)
        named = example.labels if example.labels is not None else (example.label,)
        return task == "text-classification" and labels.issuperset(named)

    return all(map(fits, examples))


def _is_number(label: str | None) -> bool:
    try:
        float(str(label))
    except ValueError:
        return False
    return True


def _text(example: Labelled) -> Text:
    if isinstance(example, Example):
        return example.request
    return example.text if isinstance(example, Tagged) else (example.question, example.context)

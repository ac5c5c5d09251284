"""trim-vocab: keep the vocabulary that a language or a corpus needs, and drop the rows of the rest from the model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from edgec.data.examples import Labelled, Question, Tagged, Text
from edgec.errors import DataError, PassError, UserError
from edgec.passes.coverage import Coverage, chunks, coverage
from edgec.passes.learn import copied, require_whole
from edgec.state import QUOTED, ModelState, PassContext, PassResult

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgec.models.vocabulary import Vocabulary

LITTLE_KEPT: Final = 0.95
"""Where fewer of the pieces of held-out texts are left, that is told."""


@dataclass(frozen=True, kw_only=True)
class TrimVocab:
    """Keeps the pieces that the texts of the domain are cut into: data.unlabelled, else data.train, else
    data.calibrate.

    min_count: how often the texts must use a piece. size: how many pieces stay at most, special tokens counted; the
    most frequent are kept; null: no limit. keep_characters: all pieces of a single character or byte stay, so that any
    text can still be cut. multiple_of: the number of pieces is a multiple of this; more are kept until it is. examples:
    how many stretches of held-out text that are cut otherwise than before the report lists.
    """

    name: ClassVar[str] = "trim-vocab"

    min_count: int = 1
    size: int | None = None
    keep_characters: bool = True
    multiple_of: int = 1
    examples: int = 20

    def __post_init__(self) -> None:
        for option in ("min_count", "multiple_of"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} should be at least 1, not {getattr(self, option)}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size should be at least 1, not {self.size}")
        if self.examples < 0:
            raise ValueError(f"examples should not be negative, and is {self.examples}")

    def requires_data(self, ctx: PassContext) -> None:
        if not _domain(ctx)[1]:
            raise DataError(
                f"{self.name} needs texts of the domain whose vocabulary is kept",
                "give data.unlabelled, data.train or data.calibrate in the recipe",
            )

    def requires(self, state: ModelState) -> None:
        require_whole(self.name, state)
        if state.quantization is not None:
            raise UserError(
                "the model is quantized, and its embeddings with it", f"put {self.name} before quantize in the recipe"
            )

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from edgec.models.vocabulary import Vocabulary, with_backend
        from edgec.nn.vocabulary import keep_rows, tables

        source, given = _domain(ctx)
        texts = _with_prompts(_singles(given), state)
        ((_, part),) = state.parts.items()
        tables(part)
        vocabulary = Vocabulary(state.tokenizer.backend_tokenizer)
        counts = _counts(vocabulary, texts)
        kept = self._kept(vocabulary, _fixed(state, vocabulary), counts)
        backend, new = vocabulary.trimmed(kept)
        _require_same_padding(state, new)
        identical = _identical(vocabulary, backend, new, texts)

        after = dataclasses.replace(copied(state), tokenizer=with_backend(state.tokenizer, backend))
        ((_, trimmed),) = after.parts.items()
        keep_rows(trimmed, sorted(kept))
        held_source, held = _held_out(ctx, source)
        unknown = state.tokenizer.unk_token
        covered = coverage(_singles(held), vocabulary.backend, backend, kept, unknown) if held else None
        if covered is not None:
            _warn(covered, held_source, source, ctx)
        sizes = [_megabytes(one) for one in (part, trimmed)]
        report: dict[str, Any] = {
            "kind": vocabulary.kind,
            "domain": source,
            "texts": len(texts),
            "identical_texts": identical,
            "pieces": len(vocabulary.pieces),
            "kept": len(kept),
            "removed": len(vocabulary.pieces) - len(kept),
            "used": len(counts),
            "used_share": round(sum(n for index, n in counts.items() if index in kept) / max(counts.total(), 1), 6),
            "rows_before": part.model.get_input_embeddings().num_embeddings,
            "megabytes_before": round(sizes[0], 3),
            "megabytes_after": round(sizes[1], 3),
            "megabytes_saved": round(sizes[0] - sizes[1], 3),
            "coverage": None if covered is None else covered.to_dict(held_source),
            QUOTED: {"changes": [] if covered is None else covered.listed(self.examples)},
            "left_alone": {},
        }
        return PassResult(after, report)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        """Every piece that is still there has the row that it had."""
        import torch

        from edgec.nn.vocabulary import tables

        old, new = before.tokenizer.get_vocab(), after.tokenizer.get_vocab()
        ((_, first),), ((_, second),) = before.parts.items(), after.parts.items()
        for name, table in tables(second).items():
            if table.weight.shape[0] != len(new):
                raise PassError(f"trim-vocab left {table.weight.shape[0]} {name} rows for {len(new)} pieces")
            rows = torch.tensor([old[piece] for piece in new])
            places = torch.tensor(list(new.values()))
            for kind, tensor in table.named_parameters():
                was = tables(first)[name].get_parameter(kind)
                if not torch.equal(tensor[places], was[rows]):
                    raise PassError(f"trim-vocab mixed up the rows of the {name} embeddings ({kind})")

    def _kept(self, vocabulary: Vocabulary, fixed: set[int], counts: Counter[int]) -> set[int]:
        """The ids that stay: the fixed ones, the characters, the frequent ones, and what a multiple still takes."""
        kept = fixed | (vocabulary.characters if self.keep_characters else set())
        limit = None if self.size is None else self.size // self.multiple_of * self.multiple_of
        if limit is not None and len(kept) > limit:
            characters = self.keep_characters
            raise UserError(
                f"at most {limit} pieces may stay, and {len(kept)} must: special tokens"
                + (" and all single characters" if characters else ""),
                f"take a size of {len(kept)} or more" + (", or keep_characters: false" if characters else ""),
            )
        frequent = sorted(counts, key=lambda index: (-counts[index], index))
        allowed = [index for index in frequent if counts[index] >= self.min_count]
        _fill(vocabulary, kept, allowed, limit)
        if short := -len(kept) % self.multiple_of:
            # In the order of ids, so that what a piece is merged from comes before it.
            _fill(vocabulary, kept, [*frequent, *sorted(vocabulary.pieces)], len(kept) + short)
            if len(kept) % self.multiple_of:
                raise UserError(
                    f"{len(kept)} pieces stay, and there are not enough others for a multiple of {self.multiple_of}",
                    "leave multiple_of out, or take a smaller one",
                )
        return kept


def _fill(vocabulary: Vocabulary, kept: set[int], candidates: Iterable[int], size: int | None) -> None:
    """Add candidates, each with the pieces that it is merged from, as long as they fit."""
    for index in candidates:
        if size is not None and len(kept) >= size:
            return
        added = vocabulary.behind(index) - kept
        if size is None or len(kept) + len(added) <= size:
            kept |= added


def _fixed(state: ModelState, vocabulary: Vocabulary) -> set[int]:
    """What the tokenizer's file and the model's configuration name, and where positions are counted from the padding
    id, all below it: it must not move."""
    from edgec.models.families import FAMILIES

    ((_, part),) = state.parts.items()
    config = part.model.config
    named = {value for name, value in vars(config).items() if name.endswith("_token_id") and isinstance(value, int)}
    if FAMILIES[state.spec.family].pad_positions:
        named |= set(range(int(config.pad_token_id)))
    return set(vocabulary.fixed | (named & vocabulary.pieces.keys()))


def _require_same_padding(state: ModelState, new: dict[int, int]) -> None:
    from edgec.models.families import FAMILIES

    padding = state.tokenizer.pad_token_id
    if FAMILIES[state.spec.family].pad_positions and new[padding] != padding:
        raise UserError(
            f"the padding id would move from {padding} to {new[padding]}, and the positions of {state.spec.family} are "
            "counted from it",
            "leave trim-vocab out: the vocabulary has gaps below its padding",
        )


def _counts(vocabulary: Vocabulary, texts: Sequence[str]) -> Counter[int]:
    """How often the texts need each piece."""
    counts: Counter[int] = Counter()
    for chunk in chunks(texts):
        encoded = vocabulary.backend.encode_batch(chunk, add_special_tokens=False)
        for text, encoding in zip(chunk, encoded, strict=True):
            counts.update(vocabulary.needed(text, encoding))
    return counts


def _identical(vocabulary: Vocabulary, backend: Tokenizer, new: dict[int, int], texts: Sequence[str]) -> int:
    """How many texts are cut as before. Raises PassError where one is not although its pieces are all there."""
    identical = 0
    for chunk in chunks(texts):
        rows = zip(chunk, vocabulary.backend.encode_batch(chunk), backend.encode_batch(chunk), strict=True)
        for text, old, cut in rows:
            same = [new.get(index) for index in old.ids] == cut.ids
            identical += same
            if not same and all(index in new for index in vocabulary.needed(text, old)):
                raise PassError(
                    f"the trimmed tokenizer cuts {text[:80]!r} into {cut.tokens[:20]} instead of {old.tokens[:20]}",
                    "this tokenizer's vocabulary cannot be trimmed: leave trim-vocab out",
                )
    return identical


def _domain(ctx: PassContext) -> tuple[str, Sequence[Text | Labelled]]:
    """Where the texts of the domain are from, and they themselves."""
    if ctx.data.unlabelled:
        return "data.unlabelled", ctx.data.unlabelled
    return ("data.train", ctx.data.train) if ctx.data.train else ("data.calibrate", ctx.texts)


def _held_out(ctx: PassContext, domain: str) -> tuple[str, Sequence[Text | Labelled]]:
    """Texts that the vocabulary was not chosen by."""
    if ctx.data.validation:
        return "data.validation", ctx.data.validation
    return "data.calibrate", ctx.texts if domain != "data.calibrate" else ()


def _warn(covered: Coverage, held_source: str, domain: str, ctx: PassContext) -> None:
    """Tell where other texts than the domain's lose more than a trimmed vocabulary should cost them."""
    share = covered.kept / max(covered.pieces, 1)
    unknown = covered.unknown_after - covered.unknown_before
    if share < LITTLE_KEPT or unknown > 0:
        lost = f"{1 - share:.1%} of the pieces of {held_source} are gone"
        cut = f"{covered.changed_texts} of its {covered.texts} texts are cut otherwise"
        doubt = f"is {domain} like them, and large enough?"
        ctx.say(f"warning: trim-vocab: {lost}, {cut}, unknown pieces {unknown:+d}: {doubt}")


def _singles(rows: Iterable[Text | Labelled]) -> list[str]:
    """Every text of the rows, those of pairs one by one."""
    texts: list[str] = []
    for row in rows:
        if isinstance(row, Question):
            texts += [row.question, row.context]
        elif isinstance(row, Tagged):
            texts.append(row.text)
        else:
            request = row if isinstance(row, str | tuple) else row.request
            texts += [request] if isinstance(request, str) else request
    return texts


def _with_prompts(texts: list[str], state: ModelState) -> list[str]:
    """The texts as they are, and behind each of the model's prompts."""
    return texts + [prompt + text for prompt in state.spec.prompts.values() if prompt for text in texts]


def _megabytes(part: Any) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in part.parameters()) / 1e6)

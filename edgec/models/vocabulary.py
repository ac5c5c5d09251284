"""The pieces of a tokenizer: which of them a text needs, and the same tokenizer with fewer of them.

A text whose needed pieces all stay is cut as before, whichever others go:

    WordPiece    takes the longest prefix that is a piece. What it took before is still there, and nothing longer came.
    Unigram      takes the cheapest path (Viterbi). The path is still there, and no other became cheaper: a character
                 without a piece of its own costs 10 more than the dearest piece, which therefore stays.
    BPE          merges by rank. A merge that was applied is in the derivation of a piece that came out, so it is still
                 there, and of fewer merges the first to apply is the same one.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from edgec.errors import PassError, UserError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")


class Vocabulary:
    """The pieces of `backend` by their id. Raises UserError for a kind of tokenizer that is not known here."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self._data: dict[str, Any] = json.loads(backend.to_str())
        model = self._data["model"]
        if model["type"] not in _KINDS:
            raise UserError(
                f"the tokenizer is a {model['type']}, whose vocabulary cannot be trimmed",
                f"trim-vocab knows {', '.join(_KINDS)}",
            )
        self.pieces: Mapping[int, str] = {index: piece for piece, index in backend.get_vocab().items()}
        self._kind = _KINDS[model["type"]](model)

    @property
    def kind(self) -> str:
        """WordPiece, Unigram or BPE."""
        return str(self._data["model"]["type"])

    @cached_property
    def fixed(self) -> frozenset[int]:
        """What stays whatever the texts are: added tokens, those that the post-processor puts around a text, the
        padding, the unknown piece, and what the cost of unknown characters depends on."""
        ids = {token["id"] for token in self._data["added_tokens"]} | set(self._kind.fixed)

        def seen(index: int) -> int:
            ids.add(index)
            return index

        _post_processor(self._data["post_processor"], seen)
        if self._data["padding"] is not None:
            ids.add(self._data["padding"]["pad_id"])
        return frozenset(ids & self.pieces.keys())

    @cached_property
    def characters(self) -> frozenset[int]:
        """The pieces of a single character or byte, at the start and inside of a word."""
        prefix = self._kind.prefix
        return frozenset(
            index
            for index, piece in self.pieces.items()
            if len(piece) == 1 or (prefix and len(piece.removeprefix(prefix)) == 1) or _BYTE.fullmatch(piece)
        )

    def needed(self, text: str, encoding: Encoding) -> list[int]:
        """The ids that the text is cut into (its `encoding`), and behind them the pieces that keep an unknown word
        unknown."""
        ids = list(encoding.ids)
        if self._kind.unknown in ids:
            ids += [index for word in self._words(text) for index in self._kind.tried(word)]
        return ids

    def behind(self, index: int) -> frozenset[int]:
        """The piece itself and those that it is merged from."""
        return self._kind.behind(index, self.pieces[index])

    def trimmed(self, kept: Collection[int]) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer of the pieces `kept` alone, and the new id of each; their order stays.

        Raises PassError where `tokenizers` does not give the pieces these ids.
        """
        from tokenizers import Tokenizer

        new = {old: place for place, old in enumerate(sorted(kept))}
        data = dict(self._data, model=self._kind.trimmed(new))
        data["added_tokens"] = [dict(token, id=new[token["id"]]) for token in data["added_tokens"]]
        data["post_processor"] = _post_processor(data["post_processor"], new.__getitem__)
        if data["padding"] is not None:
            data["padding"] = dict(data["padding"], pad_id=new[data["padding"]["pad_id"]])
        backend = Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
        expected = {self.pieces[old]: place for old, place in new.items()}
        if (found := backend.get_vocab()) != expected:
            piece = min(piece for piece, _ in found.items() ^ expected.items())
            raise PassError(
                f"the piece {piece!r} has another id in the trimmed tokenizer than its row in the model",
                "the vocabulary has gaps or pieces that occur twice: leave trim-vocab out",
            )
        return backend, new

    def _words(self, text: str) -> list[str]:
        """What the text is before it is cut into pieces."""
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        if self.backend.pre_tokenizer is None:
            return [text]
        return [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]


def with_backend(tokenizer: Any, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with the settings of `tokenizer` around `backend`.

    Of the general class: those of the families build their own backend from lists of pieces, and so would lose this
    one's ids.
    """
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        split_special_tokens=tokenizer.split_special_tokens,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )
    if made.backend_tokenizer.to_str() != backend.to_str():
        raise PassError("transformers changes the trimmed tokenizer", "leave trim-vocab out")
    return made


class _Kind(Protocol):
    """fixed: ids that always stay. unknown: that of the unknown piece. prefix: of pieces inside of a word."""

    fixed: Collection[int]
    unknown: int | None
    prefix: str

    def tried(self, word: str) -> list[int]: ...
    def behind(self, index: int, piece: str) -> frozenset[int]: ...
    def trimmed(self, new: Mapping[int, int]) -> dict[str, Any]: ...


class _WordPiece:
    def __init__(self, model: dict[str, Any]) -> None:
        self._model, self._ids = model, model["vocab"]
        self.prefix = model["continuing_subword_prefix"]
        self.unknown = self._ids.get(model["unk_token"])
        self.fixed = () if self.unknown is None else (self.unknown,)

    def tried(self, word: str) -> list[int]:
        """Longest prefix by longest prefix, up to where no piece fits. Without those pieces a shorter prefix would be
        tried, and could go on."""
        path: list[int] = []
        start = 0
        while start < len(word) <= self._model["max_input_chars_per_word"]:
            prefix = self.prefix if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in self._ids)
            if (end := next(ends, None)) is None:
                return path
            path.append(self._ids[prefix + word[start:end]])
            start = end
        return path

    def behind(self, index: int, piece: str) -> frozenset[int]:
        return frozenset((index,))

    def trimmed(self, new: Mapping[int, int]) -> dict[str, Any]:
        return dict(self._model, vocab={piece: new[old] for piece, old in self._ids.items() if old in new})


class _Unigram:
    prefix = ""

    def __init__(self, model: dict[str, Any]) -> None:
        self._model, self.unknown = model, model["unk_id"]
        scores = [score for _, score in model["vocab"]]
        self.fixed = {scores.index(min(scores))} | ({self.unknown} - {None})

    def tried(self, word: str) -> list[int]:
        return []

    def behind(self, index: int, piece: str) -> frozenset[int]:
        return frozenset((index,))

    def trimmed(self, new: Mapping[int, int]) -> dict[str, Any]:
        pieces = [entry for old, entry in enumerate(self._model["vocab"]) if old in new]
        return dict(self._model, vocab=pieces, unk_id=None if self.unknown is None else new[self.unknown])


class _BPE:
    prefix = ""

    def __init__(self, model: dict[str, Any]) -> None:
        for mark in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model[mark]:
                raise UserError(
                    f"the BPE tokenizer marks pieces with {model[mark]!r} ({mark}), which trim-vocab does not know",
                    "leave trim-vocab out",
                )
        self._model, self._ids = model, model["vocab"]
        self._merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}
        self.unknown = self._ids.get(model["unk_token"])
        self.fixed = () if self.unknown is None else (self.unknown,)

    def tried(self, word: str) -> list[int]:
        return []

    def behind(self, index: int, piece: str) -> frozenset[int]:
        """Merges the piece's own characters as it would come about in any text."""
        symbols = list(piece)
        seen = set(symbols)
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in pairs]
            best = ranks.index(min(ranks))
            if pairs[best] not in self._ranks:
                return frozenset((index,))  # no merge makes it: a byte, an added token
            symbols[best : best + 2] = ["".join(pairs[best])]
            seen.add(symbols[best])
        return frozenset(self._ids[symbol] for symbol in seen if symbol in self._ids) | {index}

    def trimmed(self, new: Mapping[int, int]) -> dict[str, Any]:
        vocabulary = {piece: new[old] for piece, old in self._ids.items() if old in new}
        merges = [
            [left, right]
            for left, right in self._merges
            if left in vocabulary and right in vocabulary and left + right in vocabulary
        ]
        return dict(self._model, vocab=vocabulary, merges=merges)


_KINDS: Final[Mapping[str, Any]] = {"WordPiece": _WordPiece, "Unigram": _Unigram, "BPE": _BPE}


def _post_processor(data: Any, new: Callable[[int], int]) -> Any:
    """The JSON of a post-processor with every id in it replaced by new(id)."""
    if data is None:
        return None
    if data["type"] == "Sequence":
        return dict(data, processors=[_post_processor(inner, new) for inner in data["processors"]])
    if data["type"] == "TemplateProcessing":
        tokens = {
            name: dict(token, ids=[new(index) for index in token["ids"]])
            for name, token in data["special_tokens"].items()
        }
        return dict(data, special_tokens=tokens)
    # BertProcessing, RobertaProcessing: [token, id]
    return {key: [value[0], new(value[1])] if key in ("sep", "cls") else value for key, value in data.items()}

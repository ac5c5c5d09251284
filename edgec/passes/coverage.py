"""What a trimmed vocabulary does to texts: how many of their pieces are still there, and what is cut otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHUNK: Final = 1000
"""Texts that are tokenized together, so that a large corpus does not fill the memory with encodings."""

Change = tuple[str, tuple[str, ...], tuple[str, ...]]


@dataclass
class Coverage:
    """Counts over texts. kept: pieces that are still there. unknown_before, unknown_after: unknown pieces. changes: how
    often each stretch of text was cut otherwise, with its pieces before and after."""

    texts: int = 0
    changed_texts: int = 0
    pieces: int = 0
    kept: int = 0
    unknown_before: int = 0
    unknown_after: int = 0
    changes: Counter[Change] = field(default_factory=Counter)

    def to_dict(self, source: str) -> dict[str, Any]:
        """source: where the texts are from."""
        return {
            "source": source,
            "texts": self.texts,
            "changed_texts": self.changed_texts,
            "pieces": self.pieces,
            "kept_share": round(self.kept / self.pieces, 6) if self.pieces else 1.0,
            "unknown_before": self.unknown_before,
            "unknown_after": self.unknown_after,
        }

    def listed(self, most: int) -> list[dict[str, Any]]:
        """The most frequent changes, which quote the texts."""
        listed = sorted(self.changes.items(), key=lambda item: (-item[1], item[0]))[:most]
        return [
            {"text": text, "count": count, "before": list(before), "after": list(after)}
            for (text, before, after), count in listed
        ]


def coverage(
    texts: Sequence[str], before: Tokenizer, after: Tokenizer, kept: Collection[int], unknown: str | None
) -> Coverage:
    """How `after`, which has the pieces `kept` of `before`, cuts texts, special tokens left out. unknown: the unknown
    piece."""
    found = Coverage(texts=len(texts))
    for chunk in chunks(texts):
        pairs = zip(
            chunk,
            before.encode_batch(chunk, add_special_tokens=False),
            after.encode_batch(chunk, add_special_tokens=False),
            strict=True,
        )
        for text, old, new in pairs:
            # Not the tokens of the encodings: those spell what is unknown.
            pieces, others = (
                [str(tokenizer.id_to_token(index)) for index in encoding.ids]
                for tokenizer, encoding in ((before, old), (after, new))
            )
            found.pieces += len(pieces)
            found.kept += sum(index in kept for index in old.ids)
            found.unknown_before += pieces.count(str(unknown))
            found.unknown_after += others.count(str(unknown))
            if pieces != others:
                found.changed_texts += 1
                found.changes.update(_changes(text, (old, pieces), (new, others)))
    return found


def chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts, a thousand at a time."""
    for first in range(0, len(texts), CHUNK):
        yield list(texts[first : first + CHUNK])


def _changes(text: str, before: tuple[Encoding, list[str]], after: tuple[Encoding, list[str]]) -> Iterator[Change]:
    """The shortest stretches of the text at whose ends both are cut, where the pieces between differ."""
    (old, old_pieces), (new, new_pieces) = before, after
    cuts, other_cuts = _cuts(old), _cuts(new)
    cuts[len(text)], other_cuts[len(text)] = len(old_pieces), len(new_pieces)
    start = first = other = 0
    for end in sorted(cuts.keys() & other_cuts.keys()):
        pieces, others = tuple(old_pieces[first : cuts[end]]), tuple(new_pieces[other : other_cuts[end]])
        if pieces != others:
            yield text[start:end].strip(), pieces, others
        start, first, other = end, cuts[end], other_cuts[end]


def _cuts(encoding: Encoding) -> dict[int, int]:
    """Characters at which a piece ends, to the number of pieces up to there: of the bytes of one character, all."""
    return {end: place for place, (_, end) in enumerate(encoding.offsets, start=1)}

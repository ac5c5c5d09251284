"""From texts to rows of token ids.

The tokenizer's own truncation and padding are switched off. The runtime cuts and pads itself, so that nothing
is cut without a word, windows of a long text share tokens, and a text's ids are the same alone and in a
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from .errors import ManifestInvalid, TextInvalid
from .manifest import Preprocessing
from .notices import TruncationWarning, warn
from .record import Record
from .tokenizer_file import open_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

    Ids = NDArray[np.int32]

_PROBES: Final = ("a", "the", "1", "?")


class Content(Record):
    """The tokens of one text without special tokens. `encoding` has offsets into the text, in characters."""

    ids: Ids
    encoding: Encoding

    def __len__(self) -> int:
        return len(self.ids)


class Row(Record):
    """One input of the graph: ids and type_ids of shape (tokens,), special tokens included.

    The row holds the tokens [first, first + count) of the text that was windowed (of a pair: the second one),
    from position `start` of the row on.
    """

    ids: Ids
    type_ids: Ids
    start: int
    first: int
    count: int


class Encoded(Record):
    """A request, ready for the graph. content: the tokens of its text (of a pair: the second one). dropped:
    how many tokens of the request are in no row."""

    rows: tuple[Row, ...]
    content: Content
    dropped: int = 0


class _Template(Record):
    """Where the tokenizer's post-processor puts special tokens: ids and type ids before, between and
    after."""

    ids: tuple[Ids, ...]
    type_ids: tuple[Ids, ...]
    content_type_ids: tuple[int, ...]

    @property
    def specials(self) -> int:
        return sum(len(ids) for ids in self.ids)


class Encoder:
    """A tokenizer with the limits of a manifest. Thread-safe: it is never changed after it was made."""

    def __init__(self, tokenizer: bytes | Tokenizer, preprocessing: Preprocessing) -> None:
        """tokenizer: the content of a tokenizer.json, or what `open_tokenizer` made of it.

        Raises ExtraMissing or ManifestInvalid.
        """
        if isinstance(tokenizer, bytes):
            tokenizer = open_tokenizer(tokenizer, preprocessing.tokenizer)
        self.tokenizer = tokenizer
        self.limits = preprocessing
        self._single = self._template(pair=False)
        self._pair = self._template(pair=True) if preprocessing.pairs else None
        room = preprocessing.max_length - (self._pair or self._single).specials
        if room < 2 or not 0 <= preprocessing.stride < preprocessing.max_length:
            raise ManifestInvalid(
                f"preprocessing: max_length {preprocessing.max_length} and stride {preprocessing.stride} leave no room",
                "export the bundle again",
            )

    def content(self, text: str) -> Content:
        """Tokenize without special tokens. Raises TextInvalid for what is no text."""
        require_text(text)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return Content(np.array(encoding.ids, np.int32), encoding)

    def single(self, text: str) -> Encoded:
        """One row; what is beyond max_length is dropped from the end."""
        content = self.content(text)
        kept = min(len(content), self.limits.max_length - self._single.specials)
        return Encoded((self._row(self._single, [content.ids[:kept]], 0),), content, len(content) - kept)

    def pair(self, text: str, other: str) -> Encoded:
        """One row of two texts; the longer one is cut first, as in tokenizers' "longest_first"."""
        a, b = self.content(text), self.content(other)
        template = self._pair_template()
        n, m = _longest_first(len(a), len(b), self.limits.max_length - template.specials)
        row = self._row(template, [a.ids[:n], b.ids[:m]], 0)
        return Encoded((row,), b, len(a) - n + len(b) - m)

    def windows(self, text: str) -> Encoded:
        """As many rows as it takes; two neighbours share `stride` tokens."""
        content = self.content(text)
        room = self.limits.max_length - self._single.specials
        rows = [
            self._row(self._single, [content.ids[first : first + room]], first)
            for first in self._starts(len(content), room)
        ]
        return Encoded(tuple(rows), content)

    def pair_windows(self, text: str, other: str) -> Encoded:
        """`text` whole in every row (at most half of it), with windows over `other`."""
        a, b = self.content(text), self.content(other)
        template = self._pair_template()
        room = self.limits.max_length - template.specials
        kept = min(len(a), room // 2)
        rows = [
            self._row(template, [a.ids[:kept], b.ids[first : first + room - kept]], first)
            for first in self._starts(len(b), room - kept)
        ]
        return Encoded(tuple(rows), b, len(a) - kept)

    def side(self, side: int, ids: Ids) -> tuple[Ids, slice]:
        """The ids that one text of a pair has in a row, its special tokens included, and where its own are among them.

        side: 0 the first text, 1 the second. ids: of its content. Raises TextInvalid.
        """
        nothing = np.zeros(0, np.int32)
        template = self._pair_template()
        row = self._row(template, [ids, nothing] if side == 0 else [nothing, ids], 0)
        start = len(template.ids[0]) if side == 0 else row.start
        before = int((row.type_ids[:start] == side).sum())
        return row.ids[row.type_ids == side], slice(before, before + len(ids))

    def _starts(self, tokens: int, room: int) -> range:
        return starts(tokens, room, min(self.limits.stride, room // 2))

    def _row(self, template: _Template, contents: Sequence[Ids], first: int) -> Row:
        ids, types = [template.ids[0]], [template.type_ids[0]]
        start = 0
        for i, content in enumerate(contents):
            start = sum(len(piece) for piece in ids)
            ids += [content, template.ids[i + 1]]
            types += [np.full(len(content), template.content_type_ids[i], np.int32), template.type_ids[i + 1]]
        row_ids, row_types = np.concatenate(ids), np.concatenate(types)
        if not len(row_ids):  # an empty text of a tokenizer without special tokens: no graph takes no token at all
            row_ids, row_types = np.array([self.limits.pad_id], np.int32), np.zeros(1, np.int32)
        return Row(row_ids, row_types, start, first, len(contents[-1]))

    def _pair_template(self) -> _Template:
        if self._pair is None:
            raise TextInvalid("this model was made for single texts", "give one text instead of a pair")
        return self._pair

    def _template(self, pair: bool) -> _Template:
        """Learn the places of special tokens from the tokenizer itself, with a short probe text."""
        probe = next((p for p in _PROBES if self.tokenizer.encode(p, add_special_tokens=False).ids), None)
        if probe is None:
            raise ManifestInvalid(f"{self.limits.tokenizer} gives no token for a plain word", "export again")
        encoding = self.tokenizer.encode(probe, probe) if pair else self.tokenizer.encode(probe)
        ids: list[list[int]] = [[]]
        types: list[list[int]] = [[]]
        content_types: list[int] = []
        previous: int | None = None
        for i, sequence in enumerate(encoding.sequence_ids):
            if encoding.special_tokens_mask[i]:
                ids[-1].append(encoding.ids[i])
                types[-1].append(encoding.type_ids[i])
                previous = None
            elif sequence != previous:
                ids.append([])
                types.append([])
                content_types.append(encoding.type_ids[i])
                previous = sequence
        if len(content_types) != (2 if pair else 1):
            raise ManifestInvalid(
                f"{self.limits.tokenizer} does not keep {'two texts' if pair else 'a text'} in one piece",
                "export the bundle again",
            )
        return _Template(
            tuple(np.array(i, np.int32) for i in ids),
            tuple(np.array(t, np.int32) for t in types),
            tuple(content_types),
        )


def starts(tokens: int, room: int, shared: int) -> range:
    """Where windows of `room` tokens begin, of which two neighbours share `shared`; the first one at 0."""
    return range(0, max(1, tokens - shared), room - shared)


def require_text(text: object) -> None:
    """Raises TextInvalid for anything but a string that has a UTF-8 form."""
    if not isinstance(text, str):
        raise TextInvalid(f"a text was expected, not {type(text).__name__}", "give a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextInvalid(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}",
            'decode the input with the right encoding, or clean it: text.encode("utf-8", "replace").decode()',
        ) from None


def report_truncation(encoded: Sequence[Encoded], max_length: int) -> None:
    """One TruncationWarning for all texts of a call that were cut."""
    cut = [e.dropped for e in encoded if e.dropped]
    if cut:
        warn(
            f"{len(cut)} of {len(encoded)} inputs were cut to {max_length} tokens; {sum(cut)} tokens were left out",
            TruncationWarning,
        )


def _longest_first(a: int, b: int, room: int) -> tuple[int, int]:
    if a + b <= room:
        return a, b
    half = room // 2
    if a <= b:
        return (a, room - a) if a <= half else (half, room - half)
    return (room - b, b) if b <= half else (room - half, half)

"""BM25: passages that share rare words with the question, by the full-text search of Python's own sqlite."""

from __future__ import annotations

import sqlite3
import threading
import unicodedata
from itertools import groupby
from typing import Final

from edgec_runtime.errors import ExtraMissing
from edgec_runtime.store import Store

from . import index_file
from .search import Match, Query, live_matches

INDEX: Final = "bm25.sqlite"
_FORMS: Final = "\ufe0e\ufe0f"
"""Marks that say how the character before them is drawn, as behind an emoji."""

# Other marks belong to words: the vowel signs of many scripts are some.
_TABLE: Final = f"""CREATE VIRTUAL TABLE passages USING fts5(
    title, text, content='', tokenize="unicode61 categories 'L* N* Co Mn Mc' separators '{_FORMS}'"
)"""

_UNSPACED: Final = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How Unicode's names of letters begin, of scripts that put no blanks between words."""


class BM25:
    """Words are letters, their marks and digits between others, without case and accents; k1 is 1.2 and b 0.75.

    The index, without the texts themselves, is kept in the store's folder and grows with the store. Deleted passages
    stay in it, and are passed over, until the store is compacted.
    """

    def __init__(self, store: Store) -> None:
        """Makes, extends or opens the index. Raises StoreDamaged, and ExtraMissing where sqlite has no FTS5."""
        self.store = store
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        kind = f"fts5 unicode61 with marks but forms, sqlite {sqlite3.sqlite_version}"
        saved = index_file.read(store, INDEX, kind)
        try:
            if saved is not None:
                self._database.deserialize(saved.content)
            else:
                self._database.execute(_TABLE)
        except sqlite3.OperationalError as error:
            raise ExtraMissing(
                f"the sqlite {sqlite3.sqlite_version} of this Python has no full-text search: {error}",
                "search with dense, or use a Python whose sqlite has FTS5",
            ) from error
        done = 0 if saved is None else saved.rows
        if done == store.rows:
            return
        live = set(store.live.tolist())
        with self._database:
            for row in range(done, store.rows):
                if row in live:
                    passage = store.passage(row)
                    self._database.execute(
                        "INSERT INTO passages(rowid, title, text) VALUES (?, ?, ?)",
                        (row, passage.title, passage.text),
                    )
            self._database.execute("INSERT INTO passages(passages) VALUES ('optimize')")
        index_file.write(store, INDEX, kind, self._database.serialize())

    def find(self, query: Query, k: int) -> list[Match]:
        """Passages that share at least one word with the question; none where no passage does."""
        words = _words(query.text)
        if not words:
            return []
        # Quoted, a word is never an operator of the query language.
        either = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))

        def best(count: int) -> list[Match]:
            with self._lock:
                rows = self._database.execute(
                    "SELECT rowid, bm25(passages) FROM passages WHERE passages MATCH ? ORDER BY 2, rowid LIMIT ?",
                    (either, count),
                ).fetchall()
            return [Match(int(row), -float(score)) for row, score in rows]

        return live_matches(self.store, k, best)


def has_words(text: str) -> bool:
    """Whether blanks part the words of a text: those of some scripts do not."""
    return not any(unicodedata.name(character, "").startswith(_UNSPACED) for character in text)


def _words(text: str) -> list[str]:
    words = ("".join(letters) for inside, letters in groupby(text, _in_a_word) if inside)
    return [word for word in words if any(unicodedata.category(character)[0] in "LN" for character in word)]


def _in_a_word(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LN" or (category in ("Co", "Mn", "Mc") and character not in _FORMS)

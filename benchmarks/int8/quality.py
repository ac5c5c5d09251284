"""How close a contender's embeddings are to float torch's, alone and padded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgec.data.readers import read_texts

from .workers import Worker

HELD_OUT = 200
SEED = 0
PADDED_BATCH = 8

Rows = list[list[int]]
Embeddings = NDArray[np.float64]


def held_out_sentences(data: Path) -> list[str]:
    """200 sentences of STS-B's dev part, none of which anybody was calibrated on."""
    sentences = sorted({str(text) for text in read_texts(data / "stsb" / "stsb-en-dev.csv", text="sentence1")})
    chosen = np.random.default_rng(SEED).choice(len(sentences), HELD_OUT, replace=False)
    return [sentences[index] for index in sorted(chosen)]


def token_ids(tokenizer: Path, sentences: Sequence[str]) -> Rows:
    """Uncut: no sentence of STS-B comes near a model's limit."""
    opened = Tokenizer.from_file(str(tokenizer))
    opened.no_padding()
    opened.no_truncation()
    return [encoding.ids for encoding in opened.encode_batch(list(sentences))]


def embed(worker: Worker, rows: Rows, batch: int = 1) -> Embeddings:
    return np.array(worker.ask("embed", rows=rows, batch=batch)["embeddings"])


def cosines(reference: Embeddings, found: Embeddings) -> dict[str, float]:
    """Mean and least cosine over rows. Lengths are divided out, whether or not the rows are of unit length."""
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(found, axis=1)
    values = (reference * found).sum(axis=1) / lengths
    return {"mean": float(values.mean()), "min": float(values.min())}


def unequal_rows(rows: Rows) -> Rows:
    """Eight rows from the shortest to the longest, in an order in which neighbours differ in length."""
    ordered = sorted(rows, key=len)
    chosen = [ordered[round(at)] for at in np.linspace(0, len(ordered) - 1, PADDED_BATCH)]
    return chosen[::2] + chosen[1::2]


def measure(worker: Worker, rows: Rows, reference: Embeddings) -> dict[str, Any]:
    """n sentences alone against the reference; and eight of unequal length in one padded batch against the same
    eight alone, where 1 and 0 are right: padding and batch-mates leave no trace."""
    some = unequal_rows(rows)
    alone, together = embed(worker, some), embed(worker, some, batch=len(some))
    return {
        "n": len(rows),
        "cosine": cosines(reference, embed(worker, rows)),
        "padded": {
            "tokens": [len(row) for row in some],
            "min_cosine": cosines(alone, together)["min"],
            "max_abs": float(np.abs(alone - together).max()),
        },
    }


def against_texts(worker: Worker, texts: Sequence[str], reference: Embeddings) -> dict[str, float]:
    """What the contender's own tokenizer and pooling give: a way to be fast is to compute something else."""
    return cosines(reference, np.array(worker.ask("texts", texts=list(texts))["embeddings"]))

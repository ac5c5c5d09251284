"""How fast passages are indexed, what a token of them takes, and how soon a large store is open.

The contexts of SQuAD, read by a decoupled all-MiniLM-L6-v2 (3-3, states compressed 4 times, static int8) through the
runtime. Its head is untrained: nothing here depends on what it answers.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgec_runtime import Document, PassageReader, index, machine
from edgec_runtime.store import Store

from edgec.data.examples import Question
from edgec.data.load import read_rows
from edgec.models import load_model
from edgec.models.heads import with_head
from edgec.target import detect

from .models import TOKENIZER, bundles, cut

SPLIT: Final = 3
COMPRESSION: Final = 4.0
OPENED: Final = 30
_OPEN: Final = (
    "import sys, time\nfrom edgec_runtime.store import Store\n"
    "start = time.perf_counter()\nstore = Store.open(sys.argv[1])\nprint((time.perf_counter() - start) * 1e3)"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with squad2")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    contexts = _contexts(options.data / "squad2" / "train-from-dev.json.gz")
    target, _ = detect(machine.facts())
    found: dict[str, Any] = {"target": target.name, "threads": options.threads, "contexts": len(contexts)}
    with tempfile.TemporaryDirectory(prefix="edgec-store-") as temporary:
        folder = Path(temporary)
        state = with_head(load_model(TOKENIZER, max_length=256), "question-answering")
        made = bundles(cut(state, SPLIT, COMPRESSION), folder, target, "reader")
        for states in ("float16", "int8"):
            first = index(
                made["int8"],
                [Document(str(number), text) for number, text in enumerate(contexts)],
                folder / states,
                states=states,
                threads=options.threads,
            )
            store = Store.open(folder / states)
            width, tokens = store.header.component.width, store.tokens
            store.close()
            state_bytes = width + 2 if states == "int8" else 2 * width
            hidden = state.parts["encoder"].hidden_size
            found[states] = {
                "tokens": tokens,
                "passages": first.total,
                "tokens_per_s": round(first.tokens / first.seconds),
                "state_bytes_per_token": state_bytes,
                "smaller_than_float16_uncompressed": round(2 * hidden / state_bytes, 2),
                "bytes_per_token_with_texts_offsets_and_embeddings": round(first.bytes / tokens, 1),
            }
            print(states, found[states], flush=True)
        large = folder / "large"
        whole = index(made["int8"], _repeated(contexts, options.tokens), large, threads=options.threads)
        opened = [float(subprocess.check_output([sys.executable, "-c", _OPEN, str(large)])) for _ in range(OPENED)]
        with PassageReader.open(made["int8"], large, threads=options.threads) as reader:
            reader.ask("When was it founded?", search="bm25")
            start = time.perf_counter()
            for question in ("Who wrote it?", "Where is the river?", "How many people live there?"):
                reader.ask(question, k=5, search="bm25")
            asked = (time.perf_counter() - start) / 3
        found["large"] = {
            "tokens": whole.tokens,
            "passages": whole.total,
            "bytes": whole.bytes,
            "open_ms": {"p50": round(float(np.median(opened)), 2), "most": round(max(opened), 2), "n": OPENED},
            "ask_ms_k5_bm25": round(1e3 * asked, 1),
        }
    return found


def _contexts(file: Path) -> list[str]:
    rows = read_rows(file, format="squad").examples
    return list(dict.fromkeys(row.context for row in rows if isinstance(row, Question)))


def _repeated(contexts: list[str], tokens: int) -> Iterator[Document]:
    """The contexts over and over, until there are about so many tokens: 1.25 a word and more."""
    words = 0
    for number, text in enumerate(itertools.cycle(contexts)):
        words += len(text.split())
        yield Document(str(number), text)
        if words * 1.25 > tokens:
            return


def table(result: Mapping[str, Any]) -> str:
    lines = ["| states | tokens/s | bytes a token | times less than float16, uncompressed |", "|---|---|---|---|"]
    for states in ("float16", "int8"):
        one = result[states]
        lines.append(
            f"| {states} | {one['tokens_per_s']} | {one['state_bytes_per_token']} | "
            f"{one['smaller_than_float16_uncompressed']} |"
        )
    large = result["large"]
    lines.append(
        f"\n{large['tokens']} tokens: open in {large['open_ms']['p50']} ms (most {large['open_ms']['most']} ms), "
        f"a question over 5 passages {large['ask_ms_k5_bm25']} ms"
    )
    return "\n".join(lines)


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Nothing to draw."""

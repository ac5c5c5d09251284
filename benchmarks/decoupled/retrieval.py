"""What a trained reader finds: the passage that answers a question, and the answer, by BM25 and by dense search.

The contexts of SQuAD's dev-a are indexed by the int8 bundle of a decoupled model, a folder that `quality` left below
build/papers. Asked are the questions of the half of dev-a that chose nothing, those that have an answer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgec_runtime import Document, PassageReader, index, load, machine

from edgec.data.answers import answer_f1
from edgec.data.examples import Question
from edgec.exporter import Exporter
from edgec.models import load_model
from edgec.passes import Quantize, run_pass
from edgec.scoring import score
from edgec.state import PassContext
from edgec.target import detect

from .materials import dev_questions, questions

SEARCHES: Final = ("bm25", "dense")
CALIBRATION: Final = 128


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with squad2")
    parser.add_argument("--model", type=Path, required=True, help="build of a decoupled model for question-answering")
    parser.add_argument("--k", type=int, default=5, help="passages that a question reads")
    parser.add_argument("--questions", type=int, help="how many are asked; default all")
    parser.add_argument("--threads", type=int, default=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rows = dev_questions(options.data, 1)
    asked = [row for row in rows if row.answers][: options.questions]
    contexts = list(dict.fromkeys(row.context for half in (0, 1) for row in dev_questions(options.data, half)))
    target, _ = detect(machine.facts())
    with tempfile.TemporaryDirectory(prefix="edgec-retrieval-") as temporary:
        bundle, store = Path(temporary) / "reader", Path(temporary) / "store"
        given = questions(options.data)
        texts = tuple((row.question, row.context) for row in given[:: len(given) // CALIBRATION])
        state = run_pass(Quantize(scheme="static"), load_model(options.model), PassContext(Path(temporary), texts))
        Exporter(state, name="reader", null_answers=False).write(bundle, target, min_cosine=-1.0)
        index(bundle, [Document(str(at), text) for at, text in enumerate(contexts)], store, threads=options.threads)
        with load(bundle, threads=options.threads) as model:
            known = score(model, asked, where="dev-a", null_answers=False)["f1"]
        with PassageReader.open(bundle, store, threads=options.threads) as reader:
            found = {search: _asked(reader, asked, contexts, search, options.k) for search in SEARCHES}
            passages = len(reader.store)
    return {
        "target": target.name,
        "model": options.model.name,
        "documents": len(contexts),
        "passages": passages,
        "questions": len(asked),
        "k": options.k,
        "f1_with_the_right_passage": round(100 * known, 1),
        "searches": found,
    }


def _asked(
    reader: PassageReader, asked: Sequence[Question], contexts: Sequence[str], search: Any, k: int
) -> dict[str, float]:
    """In per cent: how often the best passage, and one of k, is of the right document; F1 of the best answer."""
    place = {text: str(at) for at, text in enumerate(contexts)}
    first, any_of, scores = [], [], []
    for row in asked:
        answers = list(reader.ask(row.question, k=k, search=search))
        right = [answer.document == place[row.context] for answer in answers]
        best = max(answers, key=lambda answer: answer.match, default=None)
        first.append(best is not None and best.document == place[row.context])
        any_of.append(any(right))
        scores.append(answer_f1([answer.text for answer in row.answers], answers[0].text if answers else ""))
    figures = {"right_first": first, "right_among_k": any_of, "f1": scores}
    return {name: round(100 * float(np.mean(values)), 1) for name, values in figures.items()}


def table(result: Mapping[str, Any]) -> str:
    k = result["k"]
    lines = [f"| search | right passage first | among {k} | F1 of the answer |", "|---|---|---|---|"]
    for name, one in result["searches"].items():
        lines.append(f"| {name} | {one['right_first']} | {one['right_among_k']} | {one['f1']} |")
    lines.append(f"| the right passage given | | | {result['f1_with_the_right_passage']} |")
    return "\n".join(lines)


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Nothing to draw."""

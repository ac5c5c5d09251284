"""`python -m edgec_runtime ask`: questions about passages that were read before."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from edgec_runtime.arguments import positive, thread_count

from .search import NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("questions", nargs="+", metavar="QUESTION", help="- reads questions from stdin, one a line")
    parser.add_argument("--k", type=positive, default=5, metavar="N", help="passages to read (5)")
    parser.add_argument(
        "--search", choices=NAMES, help="how they are found (dense where the model was trained for it, else bm25)"
    )
    parser.add_argument("--threads", type=thread_count)


def run(options: argparse.Namespace) -> int:
    from .reader import PassageReader

    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):  # bytes that are no UTF-8 become a TextInvalid that names the place
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "strict")
    with PassageReader.open(options.bundle, options.store, threads=options.threads) as reader:
        for question in _questions(options.questions):
            answers = reader.ask(question, options.k, options.search).to_dict()
            sys.stdout.write(json.dumps(answers, ensure_ascii=False) + "\n")
            sys.stdout.flush()
    return 0


def _questions(given: Sequence[str]) -> Iterator[str]:
    for question in given:
        if question == "-":
            yield from (line.strip() for line in sys.stdin if line.strip())
        else:
            yield question

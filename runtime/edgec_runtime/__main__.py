"""`python -m edgec_runtime check|run|ask|bench|facts|unpack`: stdout carries data, stderr the rest.

Exit codes: 0 done, 1 a check failed or the bundle was refused, 2 the input is wrong, 3 the machine or its
file system failed, 130 interrupted. EDGEC_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from . import __version__
from .arguments import positive, thread_count
from .errors import BundleError, TaskMismatch
from .notices import BundleWarning

if TYPE_CHECKING:
    from .loading import Model

_CHUNK: Final = 256  # texts a call: enough to keep all streams busy
_COMMANDS: Final = {
    "check": "replay the golden vectors and compare",
    "run": "answer inputs, one JSON object a line",
    "ask": "answer questions from a store of passages, one JSON object a line",
    "bench": "measure bundles side by side",
    "facts": "describe this machine",
    "unpack": "make a bundle's folder from its archive",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message}\nhint: {self.prog} --help\n")
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser(arguments).parse_args(arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("always", BundleWarning)
            warnings.showwarning = _show_warning
            code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BundleError as error:
        return _fail(error, error.message, error.hint, error.exit_code)
    except BrokenPipeError:
        # The reader of stdout has gone (as in `run … | head`); Python must not try to flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        return _fail(error, what, "check the path, the permissions and the free space", 3)
    except KeyboardInterrupt as error:
        return _fail(error, "interrupted", "", 130)


def _parser(arguments: Sequence[str]) -> _Parser:
    parser = _Parser(prog="python -m edgec_runtime", description="Run and check edgec bundles.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            _ADD[name](sub)
    return parser


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--threads", type=thread_count)
    parser.add_argument("--json", metavar="FILE", help="write the figures here; - is stdout")
    parser.set_defaults(run=_check)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a text; - reads texts from stdin, one a line")
    parser.add_argument("--pair", metavar="TEXT", help="text-classification: the second text of every pair")
    parser.add_argument("--context", metavar="TEXT", help="question-answering: the text that holds the answer")
    parser.add_argument("--prompt", metavar="NAME", help='feature-extraction: a named prompt; "" is none')
    parser.add_argument("--top-k", type=positive, metavar="N", help="fill-mask: candidates a mask (5)")
    parser.add_argument("--threads", type=thread_count)
    parser.set_defaults(run=_run)


def _add_elsewhere(name: str) -> Any:
    def add(parser: argparse.ArgumentParser) -> None:
        module = importlib.import_module(f".{name}", __package__)
        module.add_arguments(parser)
        parser.set_defaults(run=module.run)

    return add


_ADD: Final = {
    "check": _add_check,
    "run": _add_run,
    "ask": _add_elsewhere("retrieval.command"),
    "bench": _add_elsewhere("bench"),
    "facts": _add_elsewhere("machine"),
    "unpack": _add_elsewhere("archive"),
}


def _check(options: argparse.Namespace) -> int:
    from .check import check

    result = check(options.bundle, threads=options.threads)
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        if options.json:
            Path(options.json).write_text(text, encoding="utf-8")
        sys.stdout.write(
            f"{len(result.requests)} golden vectors: largest difference {result.max_abs:.3g} "
            f"(limit {result.limit_max_abs:.3g}), smallest cosine {result.min_cosine:.6f} "
            f"(limit {result.limit_min_cosine:.6f})\n"
        )
    result.require_ok()
    return 0


def _run(options: argparse.Namespace) -> int:
    from .loading import load

    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):  # bytes that are no UTF-8 become a TextInvalid that names the place
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "strict")
    with load(options.bundle, threads=options.threads) as model:
        _require_options_fit(model.task, options)
        texts = _inputs(options.inputs)
        while chunk := list(islice(texts, _CHUNK)):
            for line in _answers(model, chunk, options):
                sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            sys.stdout.flush()
    return 0


def _inputs(inputs: Sequence[str]) -> Iterator[str]:
    for text in inputs:
        if text == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin)
        else:
            yield text


def _require_options_fit(task: str, options: argparse.Namespace) -> None:
    owners = {
        "pair": "text-classification",
        "context": "question-answering",
        "prompt": "feature-extraction",
        "top_k": "fill-mask",
    }
    for option, owner in owners.items():
        flag = "--" + option.replace("_", "-")
        if getattr(options, option) is not None and task != owner:
            raise TaskMismatch(f"{flag} belongs to {owner}; this bundle was made for {task}", f"leave {flag} out")
    if task == "question-answering" and options.context is None:
        raise TaskMismatch("this bundle answers questions about a text", "give the text with --context")


def _answers(model: Model, texts: Sequence[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from .tasks.answer import Reader
    from .tasks.classify import Classifier
    from .tasks.embed import EmbeddingModel
    from .tasks.tag import Tagger

    if isinstance(model, EmbeddingModel):
        for text, vector in zip(texts, model.embed(texts, prompt=options.prompt), strict=True):
            yield {"text": text, "embedding": vector.tolist()}
    elif isinstance(model, Classifier):
        pair = options.pair
        requests = texts if pair is None else [(text, pair) for text in texts]
        for text, label in zip(texts, model.classify(requests), strict=True):
            yield {"text": text, **({} if pair is None else {"pair": pair}), **asdict(label)}
    elif isinstance(model, Tagger):
        for text in texts:
            yield {"text": text, "spans": [asdict(span) for span in model.tag(text)]}
    elif isinstance(model, Reader):
        for text in texts:
            yield {"question": text, "answer": asdict(model.answer(text, options.context))}
    else:
        for text in texts:
            fills = model.fill_mask(text, top_k=options.top_k or 5)
            yield {"text": text, "fills": [asdict(fill) for fill in fills]}


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"warning: {message}\n")


def _fail(error: BaseException, message: str, hint: str, code: int) -> int:
    if os.environ.get("EDGEC_TRACEBACK") == "1":
        raise error
    sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return code


if __name__ == "__main__":
    sys.exit(main())

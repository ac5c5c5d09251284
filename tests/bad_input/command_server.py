"""python command_server.py PARTS EXPORTS: every command in a fork of this process, which has imported all it takes.

To start Python and import torch costs seconds, many times what most of these commands do. A fork is a process of its
own in all else: arguments, environment, folder, streams, session, signals, exit code. PARTS is "torch", or "lean": then
an import of torch fails. Exports are kept in the folder EXPORTS, as in tests/traced_once.py.

Each line of stdin is a request: `args`, `cwd`, `environment`, the files `stdin`, `stdout` and `stderr`, and how many
bytes a file may have or null. For each, a line with the process id and, when it has ended, a line with its exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

LEAN: Final = (
    "edgec.cli.main",
    "edgec.evaluation",
    "edgec.operations",
    "edgec.pipeline",
    "onnxruntime",
    "tokenizers",
    "typer._adapters",
)
WITH_TORCH: Final = (
    *LEAN,
    "transformers.models.bert.modeling_bert",
    "torch.onnx._internal.exporter._core",
    "onnxscript",
)

TIME_LIMIT: Final = 120
"""Seconds; a command that hangs is killed."""


class NoTorch:
    """What is refused at once must not wait for torch."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name == "torch":
            raise RuntimeError("torch was imported")


def main() -> None:
    parts, exports = sys.argv[1], Path(sys.argv[2])
    if parts == "lean":
        sys.meta_path.insert(0, NoTorch())
    for name in WITH_TORCH if parts == "torch" else LEAN:
        importlib.import_module(name)
    if parts == "torch":
        import torch
        from traced_once import once

        torch.onnx.export = once(torch.onnx.export, exports)
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(json.loads(line))
        answer(child)
        _, status = os.waitpid(child, 0)
        answer(os.waitstatus_to_exitcode(status))


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def run(request: dict[str, Any]) -> None:
    from edgec.cli.main import main

    os.setsid()
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        with Path(request[name]).open(mode) as file:
            os.dup2(file.fileno(), number)
        # As Python opens them: bytes that are no text come through a command line and back, and stderr is not kept.
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        setattr(sys, name, os.fdopen(number, mode, 1 if name == "stderr" else -1, errors=errors, closefd=False))
    if request["file_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["edgec", *request["args"]]
    signal.alarm(TIME_LIMIT)
    main()  # exits, and Python ends as after any command


if __name__ == "__main__":
    main()

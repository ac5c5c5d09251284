"""Finished passes of an interrupted run, so that `--resume` can take them up."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edgec import __version__
from edgec.errors import ModelError

if TYPE_CHECKING:
    from edgec.state import ModelState


class PassCache:
    """A hidden folder beside the output, one build a pass, named by everything that the pass depends on."""

    def __init__(self, out: Path, *, resume: bool) -> None:
        self.folder = out.parent / f".{out.name}.passes"
        if not resume:
            self.clear()

    @staticmethod
    def key(original: ModelState, passes: Sequence[dict[str, Any]], data: Sequence[Any], seed: int) -> str:
        """Of the result of the last of `passes` (name -> options, in order), applied to `original`.

        data: everything that a pass may read, texts and labelled rows.
        """
        facts = [__version__, asdict(original.spec), original.tokenizer.backend_tokenizer.to_str()]
        text = json.dumps([facts, list(passes), list(data), seed], sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]

    def get(self, key: str) -> ModelState | None:
        """The state after that pass, or None; a half-written one does not count."""
        if not (self.folder / key).is_dir():
            return None
        from edgec.models import load_build

        try:
            return load_build(self.folder / key)
        except ModelError:
            return None

    def put(self, key: str, state: ModelState) -> None:
        from edgec.models import save_build

        shutil.rmtree(self.folder / key, ignore_errors=True)
        save_build(state, self.folder / key)

    def training_folder(self, key: str) -> Path:
        """Where the pass of that key keeps its checkpoints while it trains."""
        return self.folder / f"{key}.training"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Only an interruption leaves something to take up: an error would come again.
        if kind is None or issubclass(kind, Exception):
            self.clear()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

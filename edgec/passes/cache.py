"""Finished passes of an interrupted run, so that `--resume` can take them up."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edgec import __version__
from edgec.errors import ModelError, ProcessLost
from edgec.files import missing_parents, remove_empty
from edgec.processes import world_size
from edgec.training.checkpoint import CHECKPOINT, is_whole

if TYPE_CHECKING:
    from edgec.state import ModelState


class PassCache:
    """A hidden folder beside the output, one build a pass, named by everything that the pass depends on.

    Used as a context, inside which `begin` is called once no other run can be at work on `out`. resume: take up what is
    there. writes: of several processes that train together one does; the others only read. say:
    is told that something is kept where an error ends the run.
    """

    def __init__(
        self, out: Path, *, resume: bool, writes: bool = True, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.say, self.trained, self.begun = say, False, False
        self.folder = out.parent / f".{out.name}.passes"
        self.resume, self.writes = resume, writes
        self.made = missing_parents(out)

    def begin(self) -> None:
        """Without resume, what an earlier run has left goes."""
        self.begun = True
        if not self.resume:
            self.clear()
        elif not self.folder.is_dir():
            self.say("no interrupted run is there to be taken up")

    @staticmethod
    def key(original: ModelState, passes: Sequence[dict[str, Any]], data: Sequence[Any], seed: int) -> str:
        """Of the result of the last of `passes` (name -> options, in order), applied to `original`.

        data: everything that a pass may read, texts and labelled rows. A folder that an option names, such as that of
        an adapter, counts with the bytes of its files.
        """
        facts = [__version__, asdict(original.spec), original.tokenizer.backend_tokenizer.to_str(), world_size()]
        folders = {
            value: _content(Path(value))
            for options in passes
            for value in _texts(options)
            if Path(value).expanduser().is_dir()
        }
        text = json.dumps([facts, list(passes), folders, list(data), seed], sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]

    def get(self, key: str) -> ModelState | None:
        """The state after that pass, or None; a half-written one does not count."""
        if not (self.resume and (self.folder / key).is_dir()):
            return None
        from edgec.models import load_build

        try:
            state = load_build(self.folder / key)
        except ModelError:
            return None
        self.trained |= _learned(state)
        return state

    def put(self, key: str, state: ModelState) -> None:
        if not self.writes:
            return
        from edgec.models import save_build

        shutil.rmtree(self.folder / key, ignore_errors=True)
        save_build(state, self.folder / key)
        self.trained |= _learned(state)

    def goes_on(self, key: str) -> bool:
        """Whether the pass of that key was interrupted after it had kept something of its training."""
        return self.resume and _kept(self.training_folder(key))

    def training_folder(self, key: str) -> Path:
        """Where the pass of that key keeps its checkpoints while it trains."""
        return self.folder / f"{key}.training"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.begun:
            return
        if kind is None:
            self.clear()
        elif issubclass(kind, Exception) and not issubclass(kind, ProcessLost):
            # After an error, which may come again, only what took long is worth its room.
            if self.trained or any(map(_kept, self.folder.glob("*.training"))):
                self.say("what was trained is kept: with --resume the next run takes it up")
            else:
                self.clear()
                remove_empty(self.made)

    def clear(self) -> None:
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)


def _kept(folder: Path) -> bool:
    """Whether a pass has kept something of its training there; half a checkpoint does not count."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return any(not path.parent.name.startswith(CHECKPOINT) or is_whole(path.parent) for path in files)


def _learned(state: ModelState) -> bool:
    """Whether the last pass has learned something."""
    return bool(state.history) and '"losses"' in json.dumps(state.history[-1].report)


def _texts(value: Any) -> Iterator[str]:
    """Every text among the options, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.expanduser().iterdir()):
        if path.is_file():
            digest.update(path.name.encode("utf-8", "surrogateescape"))
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()

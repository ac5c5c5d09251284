"""The input component of a loaded bundle: what reads one text of a row by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgec_runtime.decoupled import CROSS, INPUT, Components
from edgec_runtime.errors import TaskMismatch
from edgec_runtime.loading import load
from edgec_runtime.manifest import Manifest
from edgec_runtime.store import InputComponent
from edgec_runtime.tasks.answer import Reader

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgec_runtime.text import Ids


class Reading(NamedTuple):
    """What the input component makes of a text: states float32 (tokens, width), embedding float32 (dimension,)."""

    states: NDArray[np.float32]
    embedding: NDArray[np.float32]


class Decoupled:
    """A decoupled question-answering bundle, its two parts within reach.

    component: what a store has to be made by to serve it. embedding_dim: of a text's mean states.
    """

    def __init__(self, reader: Reader, parts: Components) -> None:
        """Used by `open_decoupled`."""
        self.reader, self.parts = reader, parts
        self.encoder, self.manifest = reader.encoder, reader.manifest
        self.component = InputComponent(self.manifest.build_id, _last_axis(self.manifest, INPUT, "states"))
        self.embedding_dim = _last_axis(self.manifest, INPUT, "text_embedding")
        self._dtype = {part: _dtype(self.manifest, part) for part in (INPUT, CROSS)}

    @property
    def trained_to_search(self) -> bool:
        """Whether the states of a question and its passage were made alike, by the contrastive loss of decouple."""
        options = [record.options for record in self.manifest.passes if record.name == "decouple"]
        return any(one.get("contrastive", 0) > 0 for one in options)

    @property
    def together(self) -> bool:
        """Whether rows of unequal length may be padded and run as one batch."""
        return self.reader.runner.schedule == "batches"

    def read(self, ids: Ids, side: int) -> Reading:
        """What the input component makes of a text: the ids of one side of a row. Raises EngineFailed."""
        outputs = self.parts.encode([ids], side, self._dtype[INPUT])
        return Reading(outputs["states"][0], outputs["text_embedding"][0])

    def join(self, states: NDArray[np.float32], mask: NDArray[Any], types: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The task's outputs of rows: states (rows, tokens, width), mask and types (rows, tokens).

        Raises EngineFailed.
        """
        dtype = self._dtype[CROSS]
        feeds = {"states": states, "attention_mask": mask.astype(dtype), "token_type_ids": types.astype(dtype)}
        return self.parts.cross.run(feeds)


def open_decoupled(bundle: str | Path, *, threads: int | None = None, schedule: str) -> Decoupled:
    """The bundle, loaded. Raises TaskMismatch where it cannot answer from passages that were read before, and whatever
    `load` raises."""
    reader = load(bundle, threads=threads, schedule=schedule)
    parts = reader.runner.engine
    if isinstance(reader, Reader) and isinstance(parts, Components):
        return Decoupled(reader, parts)
    reader.close()
    what = f"was made for {reader.task}" if not isinstance(reader, Reader) else "is one graph, not decoupled"
    raise TaskMismatch(
        f"{bundle} {what}; passages are read ahead by a decoupled model for question-answering",
        "compress the model with the pass decouple in its recipe",
    )


def _last_axis(manifest: Manifest, part: str, name: str) -> int:
    size = next(tensor.shape[-1] for tensor in manifest.part(part).outputs if tensor.name == name)
    assert isinstance(size, int)
    return size


def _dtype(manifest: Manifest, part: str) -> np.dtype[Any]:
    return np.dtype(next(tensor.dtype for tensor in manifest.part(part).inputs if tensor.name == "attention_mask"))

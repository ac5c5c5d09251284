"""All graphs of a loaded bundle, as another kind of CPU would run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from edgec_runtime import integrity
from edgec_runtime.decoupled import together
from edgec_runtime.engine import Engine

from .graph import EmulatedEngine, Pairs, emulate
from .kinds import Kind

if TYPE_CHECKING:
    from edgec_runtime.loading import Model


class EmulatedModel:
    """An edgec_runtime Engine of a whole model. pairs: of all its graphs (EmulatedEngine.pairs)."""

    def __init__(self, engines: list[EmulatedEngine]) -> None:
        self._engines = engines
        self._engine: Engine = together(engines)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """As Engine.run."""
        return self._engine.run(feeds)

    @property
    def pairs(self) -> dict[str, Pairs]:
        """By module path, over all runs so far."""
        return {module: pairs for engine in self._engines for module, pairs in engine.pairs.items()}


def emulated(model: Model, bundle: Path, kind: Kind) -> EmulatedModel:
    """What a bundle's graphs answer on a CPU of this kind. Raises what emulate raises."""
    return EmulatedModel([emulate(integrity.locate(bundle, part.file), kind) for part in model.manifest.parts])

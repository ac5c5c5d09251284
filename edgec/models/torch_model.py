"""A torch model behind the interface of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt
import torch
from edgec_runtime.decoupled import whole
from edgec_runtime.engine import Engine
from edgec_runtime.manifest import Manifest
from edgec_runtime.runner import Runner
from edgec_runtime.tasks.answer import Reader
from edgec_runtime.tasks.classify import Classifier
from edgec_runtime.tasks.embed import EmbeddingModel
from edgec_runtime.tasks.mask import MaskFiller
from edgec_runtime.tasks.tag import Tagger
from edgec_runtime.text import Encoder

from edgec.models.describe import describe
from edgec.state import ModelState

if TYPE_CHECKING:
    from edgec_runtime.loading import Model

_TASKS: Final[dict[str, type[Model]]] = {
    kind.task: kind for kind in (EmbeddingModel, Classifier, Tagger, Reader, MaskFiller)
}


class TorchEngine:
    """Executes a torch module as an engine of the runtime does a graph (edgec_runtime.engine.Engine)."""

    def __init__(self, module: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self.module, self.inputs, self.outputs = module.eval(), inputs, outputs

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        device = next(self.module.parameters()).device  # on a GPU while it is being trained there
        with torch.inference_mode():
            values = self.module(*(torch.from_numpy(feeds[name]).to(device) for name in self.inputs))
        return {name: value.cpu().numpy() for name, value in zip(self.outputs, values, strict=True)}


def torch_model(state: ModelState, manifest: Manifest | None = None, *, schedule: str = "batches") -> Model:
    """The model of `state`, run by torch, with the methods of a loaded bundle (embed, classify, raw ...).

    manifest: that of a bundle of the same model, whose limits are then used; by default they follow from the
    state. schedule: "batches", or "streams" for one unpadded text at a time. The state has one part. Raises
    BundleError where the tokenizer cannot be used without transformers.
    """
    (module,) = state.parts.values()
    manifest = manifest or describe(state)
    part = whole(manifest.parts)
    engine = TorchEngine(module, tuple(t.name for t in part.inputs), tuple(t.name for t in part.outputs))
    return model_on(engine, manifest, tokenizer_json(state), schedule=schedule)


def model_on(engine: Engine, manifest: Manifest, tokenizer: bytes, *, schedule: str = "streams") -> Model:
    """Any engine behind the interface of a bundle: a graph that is in no folder yet, a torch module."""
    runner = Runner(
        engine,
        whole(manifest.parts),
        schedule=schedule,
        threads=1,
        batch_size=manifest.execution.batch_size,
        pad_id=manifest.preprocessing.pad_id,
    )
    return _TASKS[manifest.task](manifest, Encoder(tokenizer, manifest.preprocessing), runner)


def tokenizer_json(state: ModelState) -> bytes:
    """The content of the tokenizer.json that a bundle ships."""
    text: str = state.tokenizer.backend_tokenizer.to_str()
    return text.encode()

"""feature-extraction: texts to vectors. Pooling and normalisation are inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec_runtime.errors import ManifestInvalid, TextInvalid
from edgec_runtime.manifest import Manifest
from edgec_runtime.runner import Runner
from edgec_runtime.text import Encoded, Encoder, require_text

from .base import TextModel, joined, require_outputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec_runtime.runner import Outputs

OUTPUT = "sentence_embedding"


class EmbeddingModel(TextModel):
    task = "feature-extraction"

    def __init__(self, manifest: Manifest, encoder: Encoder, runner: Runner) -> None:
        super().__init__(manifest, encoder, runner)
        require_outputs(manifest, OUTPUT)
        dimension = manifest.postprocessing.dimension
        if dimension is None:
            raise ManifestInvalid("postprocessing.dimension is not set", "export the bundle again")
        self.dimension = dimension
        name = manifest.preprocessing.default_prompt
        if name is not None and name not in manifest.preprocessing.prompts:
            raise ManifestInvalid(f"preprocessing.default_prompt {name!r} is no prompt", "export the bundle again")
        self._default = manifest.preprocessing.prompts[name] if name is not None else ""

    def embed(self, texts: Sequence[str], prompt: str | None = None) -> NDArray[np.float32]:
        """(texts, dimension). prompt: the name of one of the bundle's prompts, "" for none at all; without it
        the bundle's default prompt is put before every text.

        Raises TextInvalid or EngineFailed.
        """
        prefix = self._default if prompt is None else self._prompt(prompt)
        encoded = self.encode_all(texts, lambda text: self._encode(text, prefix))
        if not encoded:
            return np.empty((0, self.dimension), np.float32)
        return np.stack([joined(rows)[OUTPUT] for rows in self.outputs(encoded)])

    def encode(self, request: Any) -> Encoded:
        return self._encode(request, self._default)

    def interpret(self, request: Any, encoded: Encoded, outputs: Sequence[Outputs]) -> None:
        """The outputs are the answer."""
        return

    def _encode(self, text: Any, prefix: str) -> Encoded:
        require_text(text)
        return self.encoder.single(prefix + text)

    def _prompt(self, name: str) -> str:
        prompts = self.manifest.preprocessing.prompts
        if name and name not in prompts:
            known = ", ".join(sorted(prompts)) or "none"
            raise TextInvalid(f"unknown prompt {name!r}", f"this bundle's prompts: {known}")
        return prompts[name] if name else ""

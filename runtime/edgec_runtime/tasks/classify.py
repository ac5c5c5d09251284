"""text-classification: a label and its score for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec_runtime.errors import ManifestInvalid, TextInvalid
from edgec_runtime.manifest import Manifest
from edgec_runtime.runner import Runner
from edgec_runtime.text import Encoded, Encoder

from .base import TextModel, require_labels, require_outputs, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec_runtime.runner import Outputs

ACTIVATIONS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Label:
    """The best label and its probability."""

    label: str
    score: float


class Classifier(TextModel):
    task = "text-classification"

    def __init__(self, manifest: Manifest, encoder: Encoder, runner: Runner) -> None:
        super().__init__(manifest, encoder, runner)
        require_outputs(manifest, "logits")
        self.labels = require_labels(manifest)
        if manifest.postprocessing.activation not in ACTIVATIONS:
            raise ManifestInvalid(
                f"postprocessing.activation is {manifest.postprocessing.activation!r}; "
                f"text-classification takes {' or '.join(ACTIVATIONS)}",
                "export the bundle again",
            )

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> list[Label]:
        """The best label of each text or pair. Raises TextInvalid or EngineFailed."""
        return [self._best(row) for row in self.probabilities(texts)]

    def probabilities(self, texts: Sequence[str | tuple[str, str]]) -> NDArray[np.float64]:
        """(texts, labels), in the order of `labels`: softmax over them, or a sigmoid each where labels
        combine."""
        rows = self.raw(texts)
        if not rows:
            return np.empty((0, len(self.labels)))
        return self._activate(np.stack([row["logits"] for row in rows]))

    def encode(self, request: Any) -> Encoded:
        if isinstance(request, str):
            return self.encoder.single(request)
        if isinstance(request, tuple | list) and len(request) == 2:
            return self.encoder.pair(request[0], request[1])
        raise TextInvalid("neither a text nor a pair of texts", 'give "text" or ("text", "other text")')

    def interpret(self, request: Any, encoded: Encoded, outputs: Sequence[Outputs]) -> dict[str, Any]:
        best = self._best(self._activate(outputs[0]["logits"]))
        return {"label": best.label, "score": best.score}

    def _activate(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        if self.manifest.postprocessing.activation == "softmax":
            return softmax(logits)
        # tanh does not overflow where exp(-x) would.
        result: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
        return result

    def _best(self, probabilities: NDArray[np.float64]) -> Label:
        best = int(probabilities.argmax())
        return Label(self.labels[best], float(probabilities[best]))

"""What the five tasks share: encoding requests, running them, and the raw outputs that checks compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edgec_runtime.errors import ManifestInvalid, TextInvalid
from edgec_runtime.manifest import Manifest
from edgec_runtime.runner import Runner
from edgec_runtime.text import Encoded, Encoder, Row, report_truncation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec_runtime.runner import Outputs
    from edgec_runtime.text import Ids


class TextModel(ABC):
    """A loaded bundle. Thread-safe; `close` (or a `with` block) ends its worker threads.

    A request is what a golden vector starts from: a text, a pair [a, b], or {"question": ..., "context":
    ...}.
    """

    task: str
    long_text: tuple[str, ...] = ("truncate",)

    def __init__(self, manifest: Manifest, encoder: Encoder, runner: Runner) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.runner = runner
        if manifest.preprocessing.long_text not in self.long_text:
            raise ManifestInvalid(
                f"preprocessing.long_text is {manifest.preprocessing.long_text!r}; "
                f"{manifest.task} takes {' or '.join(self.long_text)}",
                "export the bundle again",
            )

    @abstractmethod
    def encode(self, request: Any) -> Encoded:
        """The rows of one request. Raises TextInvalid."""

    @abstractmethod
    def interpret(self, request: Any, encoded: Encoded, outputs: Sequence[Outputs]) -> Any:
        """The answer to a request, as JSON values, from the `keep`-ed outputs of its rows."""

    def keep(self, row: Row, outputs: Outputs) -> Outputs:
        """The part of a row's outputs that an answer needs."""
        return outputs

    def ids(self, requests: Sequence[Any]) -> list[Ids]:
        """The token ids of each request, int32 (tokens,); the windows of a long text one after the other."""
        return [np.concatenate([row.ids for row in self.encode(request).rows]) for request in requests]

    def raw(self, requests: Sequence[Any]) -> list[dict[str, NDArray[np.float32]]]:
        """The graph's outputs for each request, without batch axis and padding; windows joined along the
        first axis.

        fill-mask: only the rows of the mask tokens, (masks, vocabulary).
        """
        encoded = self.encode_all(requests)
        return [joined(outputs) for outputs in self.outputs(encoded)]

    def encode_all(self, requests: Sequence[Any], encode: Callable[[Any], Encoded] | None = None) -> list[Encoded]:
        """`encode` (or another way to) for every request of a call, with one warning for all that were
        cut."""
        encode = encode or self.encode
        require_list(requests)
        encoded = []
        for i, request in enumerate(requests):
            try:
                encoded.append(encode(request))
            except TextInvalid as error:
                raise TextInvalid(f"input {i}: {error.message}", error.hint) from None
        report_truncation(encoded, self.encoder.limits.max_length)
        return encoded

    def outputs(self, encoded: Sequence[Encoded]) -> list[list[Outputs]]:
        """The kept outputs of every row of every request."""
        flat = self.runner.map([row for e in encoded for row in e.rows], self.keep)
        rest = iter(flat)
        return [[next(rest) for _ in e.rows] for e in encoded]

    def close(self) -> None:
        self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def joined(rows: Sequence[Outputs]) -> dict[str, NDArray[np.float32]]:
    """The outputs of a request's rows as one array each, float32."""
    if len(rows) == 1:
        return {name: np.ascontiguousarray(value, np.float32) for name, value in rows[0].items()}
    return {name: np.concatenate([row[name] for row in rows]).astype(np.float32) for name in rows[0]}


def split(encoded: Encoded, values: dict[str, NDArray[np.float32]]) -> list[Outputs]:
    """The rows that `joined` put together; used for tasks whose outputs have a token axis first."""
    if len(encoded.rows) == 1:
        return [dict(values)]
    cuts = np.cumsum([len(row.ids) for row in encoded.rows])[:-1]
    pieces = {name: np.split(value, cuts) for name, value in values.items()}
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(len(encoded.rows))]


def require_list(texts: object) -> None:
    """Raises TextInvalid for a single text where several belong: its characters would pass for texts."""
    if isinstance(texts, str | bytes):
        raise TextInvalid("a list of texts was expected, not one text", "put it into a list: [text]")
    if not isinstance(texts, Sequence):
        raise TextInvalid(f"a list of texts was expected, not {type(texts).__name__}", "give a list")


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Along the last axis, in double precision."""
    values = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = values / values.sum(axis=-1, keepdims=True)
    return result


def require_labels(manifest: Manifest, output: str = "logits") -> tuple[str, ...]:
    """The manifest's labels, as many as the graph gives. Raises ManifestInvalid."""
    require_outputs(manifest, output)
    labels = manifest.labels or ()
    classes = next(tensor.shape[-1] for tensor in manifest.parts[-1].outputs if tensor.name == output)
    if classes != len(labels):
        raise ManifestInvalid(
            f"{len(labels)} labels do not fit the {classes} classes of the output {output!r}",
            "export the bundle again",
        )
    return labels


def require_outputs(manifest: Manifest, *names: str) -> None:
    has = [tensor.name for tensor in manifest.parts[-1].outputs]
    for name in names:
        if name not in has:
            raise ManifestInvalid(
                f"{manifest.task} needs the output {name!r}; the graph gives {', '.join(has)}",
                "export the bundle again",
            )

"""Runs rows through an engine: unpadded on parallel one-thread streams, or in padded batches of similar
length."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from .engine import Engine
from .errors import ManifestInvalid
from .manifest import Part
from .text import Row

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    Outputs = dict[str, NDArray[Any]]

T = TypeVar("T")
_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")


class Runner:
    """Feeds rows to one part. Thread-safe.

    schedule "streams": every row alone and unpadded, `threads` rows at a time, each on one thread, the
    longest first so that no long row runs alone at the end. "batches": sorted by length, padded, `batch_size`
    rows at a time; the engine itself uses the threads.
    """

    def __init__(
        self, engine: Engine, part: Part, *, schedule: str, threads: int, batch_size: int, pad_id: int
    ) -> None:
        unknown = [tensor.name for tensor in part.inputs if tensor.name not in _INPUTS]
        if unknown:
            raise ManifestInvalid(
                f"part {part.name!r} takes the input {unknown[0]!r}; this runtime gives {', '.join(_INPUTS)}",
                "update edgec-runtime, or export the bundle again",
            )
        self.engine, self.part = engine, part
        self.schedule, self.threads, self.batch_size, self.pad_id = schedule, threads, batch_size, pad_id
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def map(self, rows: Sequence[Row], finish: Callable[[Row, Outputs], T]) -> list[T]:
        """`finish(row, outputs)` for every row, in order. Outputs have no batch axis and no padding.

        Raises EngineFailed.
        """
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
        if self.schedule == "batches":
            results: list[tuple[int, T]] = []
            for at in range(0, len(order), self.batch_size):
                chosen = order[at : at + self.batch_size]
                outputs = self._run([rows[i] for i in chosen])
                results += [(i, finish(rows[i], out)) for i, out in zip(chosen, outputs, strict=True)]
            return [result for _, result in sorted(results, key=lambda pair: pair[0])]

        def alone(i: int) -> T:
            return finish(rows[i], self._run([rows[i]])[0])

        if self.threads == 1 or len(rows) < 2:
            return [alone(i) for i in range(len(rows))]
        pool = self._streams()
        futures = {i: pool.submit(alone, i) for i in order}
        try:
            return [futures[i].result() for i in range(len(rows))]
        finally:
            for future in futures.values():
                future.cancel()  # after a failure or Ctrl-C nothing is left in the queue

    def close(self) -> None:
        """Ends the streams' threads. The next `map` would start them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _streams(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor  # several milliseconds that one text does without

        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="edgec-stream")
            return self._pool

    def _run(self, rows: Sequence[Row]) -> list[Outputs]:
        width = max(len(row.ids) for row in rows)
        outputs = self.engine.run({t.name: self._input(t.name, t.dtype, rows, width) for t in self.part.inputs})
        trimmed: list[Outputs] = []
        for i, row in enumerate(rows):
            one: Outputs = {}
            for tensor in self.part.outputs:
                cut = tuple(slice(len(row.ids)) if axis == "tokens" else slice(None) for axis in tensor.shape[1:])
                value = outputs[tensor.name][i][cut]
                # A view would keep the whole batch alive.
                one[tensor.name] = value if len(rows) == 1 else value.copy()
            trimmed.append(one)
        return trimmed

    def _input(self, name: str, dtype: str, rows: Sequence[Row], width: int) -> NDArray[Any]:
        table = np.full((len(rows), width), self.pad_id if name == "input_ids" else 0, dtype)
        for i, row in enumerate(rows):
            values = {"input_ids": row.ids, "attention_mask": 1, "token_type_ids": row.type_ids}[name]
            table[i, : len(row.ids)] = values
        return table

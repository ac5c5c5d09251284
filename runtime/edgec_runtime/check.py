"""Replays a bundle's golden vectors from raw text on: tokenizer, model and post-processing."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import cpu, golden, integrity
from .errors import CheckFailed
from .loading import load
from .manifest import Golden
from .notices import TruncationWarning
from .tasks.base import TextModel, split

_WORST: Final = float(np.finfo(np.float32).max)  # stands for "not comparable": a NaN, or another shape
# How a CPU adds 8-bit products: the keys of Golden.spread.
_ADDS: Final = {
    "vnni": "this CPU has VNNI, whose sums of 8-bit products are exact",
    "avx2": "this CPU has no VNNI, and its sums of 8-bit products saturate at 16 bits",
    "arm64": "this is an arm64 CPU",
}
_SCORE: Final = 1e-4  # post-processing starts from stored outputs: only exp and sums may round differently


@dataclass(frozen=True)
class RequestResult:
    """One golden vector. worst_output: the output with the largest difference."""

    index: int
    ids_equal: bool
    answer_equal: bool
    max_abs: float
    min_cosine: float
    worst_output: str


@dataclass(frozen=True)
class CheckResult:
    """All golden vectors of a bundle, the worst figures first, with the limits of its manifest."""

    ok: bool
    bundle: str
    build_id: str
    target: str
    max_abs: float
    min_cosine: float
    worst_output: str
    worst_request: int
    limit_max_abs: float
    limit_min_cosine: float
    failure: str | None
    requests: tuple[RequestResult, ...]

    def require_ok(self) -> None:
        """Raises CheckFailed, naming the worst output."""
        if self.failure is not None:
            raise CheckFailed(
                f"{self.bundle}: {self.failure}",
                "this machine does not reproduce the answers: export for a target that fits it",
            )


def check(path: str | Path, *, threads: int | None = None) -> CheckResult:
    """Load a bundle (every file verified) and compare ids exactly, outputs within the manifest's limits, and
    the answers that post-processing makes of the stored outputs.

    Raises what `load` raises, and FileDamaged for unreadable golden vectors.
    """
    folder = Path(path)
    with load(folder, threads=threads) as model:
        manifest = model.manifest
        vectors = golden.read(integrity.locate(folder, manifest.golden.file))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # long requests are there on purpose
            ids, outputs = model.ids(vectors.requests), model.raw(vectors.requests)
        results = []
        for i in range(len(vectors.requests)):
            same_ids = np.array_equal(ids[i], vectors.ids[i])
            max_abs, min_cosine, worst = compare(vectors.outputs[i], outputs[i])
            same_answer = same_ids and _same_answer(model, vectors, i)
            results.append(RequestResult(i, same_ids, same_answer, max_abs, min_cosine, worst))
    # Other ids explain any difference in outputs, so they come first.
    worst_result = max(results, key=lambda r: (not r.ids_equal, _badness(r, manifest.golden)))
    failure = _failure(results, worst_result, manifest.golden)
    return CheckResult(
        ok=failure is None,
        bundle=str(path),
        build_id=manifest.build_id,
        target=manifest.target.name,
        max_abs=max(r.max_abs for r in results),
        min_cosine=min(r.min_cosine for r in results),
        worst_output=worst_result.worst_output,
        worst_request=worst_result.index,
        limit_max_abs=manifest.golden.max_abs,
        limit_min_cosine=manifest.golden.min_cosine,
        failure=failure,
        requests=tuple(results),
    )


def compare(
    expected: dict[str, NDArray[np.float32]], computed: dict[str, NDArray[np.float32]]
) -> tuple[float, float, str]:
    """(max_abs, min_cosine, worst output) over the outputs of one request, each output flattened."""
    figures = []
    for name in sorted(expected.keys() | computed.keys()):
        a, b = expected.get(name), computed.get(name)
        if a is None or b is None or a.shape != b.shape or not np.isfinite(b).all():
            figures.append((_WORST, -1.0, name))
            continue
        x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
        norms = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
        cosine = float(x @ y) / norms if norms else float(np.array_equal(x, y))
        figures.append((float(np.abs(x - y).max(initial=0.0)), min(1.0, cosine), name))
    worst = max(figures)
    return worst[0], min(f[1] for f in figures), worst[2]


def _badness(result: RequestResult, limits: Golden) -> tuple[bool, float]:
    return not (result.max_abs <= limits.max_abs and result.min_cosine >= limits.min_cosine), result.max_abs


def _failure(results: list[RequestResult], worst: RequestResult, limits: Golden) -> str | None:
    if not worst.ids_equal:
        return f"request {worst.index}: the tokenizer gives other ids than the golden vectors"
    if _badness(worst, limits)[0]:
        what = (
            "not comparable (another shape, or not a number)"
            if worst.max_abs == _WORST
            else f"off by {worst.max_abs:.3g} (limit {limits.max_abs:.3g}), "
            f"cosine {worst.min_cosine:.6f} (limit {limits.min_cosine:.6f})"
        )
        return f"output {worst.worst_output!r} of request {worst.index} is {what}{_expected(limits)}"
    for result in results:
        if not result.answer_equal:
            return f"request {result.index}: post-processing makes another answer of the same outputs"
    return None


def _expected(limits: Golden) -> str:
    """Whether that was to be expected of this kind of CPU, by what its emulation gave at export."""
    kind = _kind()
    told = limits.spread.get(kind or "")
    if kind is None or told is None:
        return ""
    emulated = f"{_ADDS[kind]}: emulated at export, it was off by {told['max_abs']:.3g}"
    if told["max_abs"] > limits.max_abs or told["min_cosine"] < limits.min_cosine:
        return f". That was to be expected: {emulated}"
    return f". That was not to be expected: {emulated}"


def _kind() -> str | None:
    machine = cpu.architecture()
    if machine != "x86_64":
        return "arm64" if machine == "aarch64" else None
    has = {cpu.feature(name) for name in cpu.features() or ()}
    return "vnni" if "vnni" in has else "avx2" if "avx2" in has else None


def _same_answer(model: TextModel, vectors: golden.GoldenVectors, i: int) -> bool:
    expected = vectors.answers[i]
    if expected is None:
        return True
    request = vectors.requests[i]
    encoded = model.encode(request)
    return _alike(expected, model.interpret(request, encoded, split(encoded, vectors.outputs[i])))


def _alike(a: Any, b: Any) -> bool:
    """Equal JSON values, numbers within `_SCORE`."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=_SCORE, abs_tol=_SCORE)
    return bool(a == b)

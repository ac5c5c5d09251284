"""The figures of a benchmark: ids to output, texts to answers, fresh processes. All bundles take turns."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from . import fresh, golden, load, statistics
from .decoupled import CROSS
from .engine import Engine
from .errors import TaskMismatch
from .loading import opened
from .manifest import Manifest, Part
from .notices import BundleWarning
from .rounds import Series, interleave
from .schedule import SCHEDULES
from .tasks.base import TextModel

SEED = 0
_TEXTS = 32
# A pass over the texts takes long and holds many calls; a fresh process is slow. Fewer rounds do for both.
_MOST_TEXT_ROUNDS = 7
_MOST_COLD_ROUNDS = 10
_LOAD_ROUNDS = 3

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A bundle in a comparison, its one part opened. vocabulary: token ids are below it."""

    path: Path
    manifest: Manifest
    part: Part
    engine: Engine
    vocabulary: int
    title: str
    """What warnings call it."""

    @classmethod
    def open(cls, path: Path, threads: int, warnings: list[str]) -> Self:
        """Verify and load the bundle. What the runtime warns of goes to `warnings`. Raises BundleError."""
        with python_warnings.catch_warnings(record=True) as caught:
            python_warnings.simplefilter("always", BundleWarning)
            # Under this schedule the engine itself has the threads.
            model = load(path, threads=threads, schedule="batches")
        warnings.extend(f"{model.manifest.name}: {one.message}" for one in caught)
        runner, engine = model.runner, model.runner.engine
        if runner.schedule != "batches" and threads > 1:  # a bundle that never runs in batches
            engine = opened(path, model.manifest, threads)
        vocabulary = model.encoder.tokenizer.get_vocab_size()
        title = f"{model.manifest.name} {runner.part.precision} {model.manifest.target.name}"
        return cls(path.resolve(), model.manifest, runner.part, engine, vocabulary, title)


def told_apart(contenders: Sequence[Contender]) -> list[Contender]:
    """The same, with titles of which no two are alike."""
    titles = unlike([(one.title, one.path) for one in contenders])
    return [replace(one, title=title) for one, title in zip(contenders, titles, strict=True)]


def unlike(titles: Sequence[tuple[str, Path]]) -> list[str]:
    """The titles; those that several folders have with as much of each one's path as tells them apart."""
    folders: dict[str, list[Path]] = {}
    for title, path in titles:
        folders.setdefault(title, []).append(path)
    return [
        f"{title} ({_ending(path, folders[title])})" if len(folders[title]) > 1 else title for title, path in titles
    ]


def _ending(path: Path, paths: Sequence[Path]) -> str:
    """As many of the last names of `path` as none of the other `paths` ends in."""
    others = [other.parts for other in paths if other != path]
    length = next((n for n in range(1, len(path.parts)) if path.parts[-n:] not in {other[-n:] for other in others}), 0)
    return str(Path(*path.parts[-length:])) if length else str(path)


def shape(
    contenders: Sequence[Contender], batch: int, tokens: int, rounds: int, tell: Tell, warnings: list[str]
) -> list[dict[str, Any]]:
    """From ids to the graph's outputs, for rows of equal length without padding; one entry a bundle."""
    where = f"{batch}x{tokens} tokens"
    # The same ids for all: below the smallest vocabulary.
    ids = np.random.default_rng(SEED).integers(0, min(one.vocabulary for one in contenders), (batch, tokens))
    work = [partial(one.engine.run, feeds(one.part, ids)) for one in contenders]
    series = interleave(work, rounds, lambda line: tell(f"{where}: {line}"))
    return [
        {
            "batch": batch,
            "tokens": tokens,
            **_figures(found, series[0], batch, f"{one.title}, {where}", warnings),
        }
        for one, found in zip(contenders, series, strict=True)
    ]


def feeds(part: Part, ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Inputs of a part for ids of shape (batch, tokens), every token a real one; to a decoupled model the first eighth
    is the first text, to others all of it."""
    types = np.zeros_like(ids)
    if part.name == CROSS:
        types[:, max(1, ids.shape[1] // 8) :] = 1
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
    return {tensor.name: values[tensor.name].astype(tensor.dtype) for tensor in part.inputs}


def schedules(
    contenders: Sequence[Contender],
    texts: Sequence[str] | None,
    threads: int,
    rounds: int,
    tell: Tell,
    warnings: list[str],
) -> list[dict[str, Any]]:
    """From texts to answers, tokenizing included, under every schedule; one mapping of schedules a bundle.

    A ratio compares with the first bundle under the same schedule, where that bundle can run so.
    """
    requests = [_requests(one, texts) for one in contenders]
    keys: list[tuple[int, str]] = []
    work = []
    with ExitStack() as stack:
        stack.enter_context(python_warnings.catch_warnings())
        # Told once already; and a text that is cut is fair to time.
        python_warnings.simplefilter("ignore", BundleWarning)
        for number, one in enumerate(contenders):
            for schedule in SCHEDULES:
                model = stack.enter_context(load(one.path, threads=threads, schedule=schedule))
                if model.runner.schedule == schedule:  # not every bundle may run in batches
                    keys.append((number, schedule))
                    work.append(partial(_answer, model, requests[number]))
        series = interleave(work, min(rounds, _MOST_TEXT_ROUNDS), lambda line: tell(f"texts: {line}"))
    found: list[dict[str, Any]] = [{} for _ in contenders]
    for (number, schedule), one_series in zip(keys, series, strict=True):
        baseline = keys.index((0, schedule)) if (0, schedule) in keys else 0
        found[number][schedule] = _figures(
            one_series,
            series[baseline],
            len(requests[number]),
            f"{contenders[number].title}, texts by {schedule}",
            warnings,
        )
    return found


def _answer(model: TextModel, requests: Sequence[Any]) -> None:
    """All that the task's own method does, for requests of any task."""
    encoded = model.encode_all(requests)
    for request, one, outputs in zip(requests, encoded, model.outputs(encoded), strict=True):
        model.interpret(request, one, outputs)


def _requests(one: Contender, texts: Sequence[str] | None) -> list[Any]:
    """The golden requests, short and long in their order, repeated to a fixed number; or the user's texts."""
    if texts is None:
        return list(islice(cycle(golden.read(one.path / one.manifest.golden.file).requests), _TEXTS))
    if one.manifest.task == "question-answering":
        raise TaskMismatch(
            f"{one.path} answers questions about a context: plain texts do not fit it",
            "leave --text-file out; the golden requests are timed then",
        )
    return list(texts)


FRESH_FIGURES: Final = ("load_ms", "peak_memory_mb", "cold_start_ms", "cold_start_ratio")


def fresh_processes(
    contenders: Sequence[Contender],
    threads: int,
    rounds: int,
    cold_start: bool,
    tell: Tell,
    warnings: list[str],
) -> tuple[list[dict[str, Any]], float | None]:
    """Load time, peak memory and, where asked for, the cold start; one entry a bundle, and the time of the
    imports alone in ms."""
    entries: list[dict[str, Any]] = []
    for one in contenders:
        tell(f"loading {one.title} in fresh processes")
        loads = [fresh.load(one.path, threads) for _ in range(_LOAD_ROUNDS)]
        peaks = [peak for _, peak in loads if peak is not None]
        entries.append(
            {
                "load_ms": statistics.median([ms for ms, _ in loads]),
                "peak_memory_mb": statistics.median(peaks) if peaks else None,
                "cold_start_ms": None,
                "cold_start_ratio": None,
            }
        )
    if not cold_start:
        return entries, None
    return entries, _cold_starts(contenders, entries, threads, min(rounds, _MOST_COLD_ROUNDS), tell, warnings)


def _cold_starts(
    contenders: Sequence[Contender],
    entries: list[dict[str, Any]],
    threads: int,
    rounds: int,
    tell: Tell,
    warnings: list[str],
) -> float:
    imports: list[float] = []
    starts: list[list[float]] = [[] for _ in contenders]
    for number in range(rounds):
        tell(f"cold start: round {number + 1}/{rounds}")
        imports.append(fresh.imports_ms())
        for one, times in zip(contenders, starts, strict=True):
            times.append(fresh.cold_start_ms(one.path, threads))
    for one, entry, times in zip(contenders, entries, starts, strict=True):
        # How many times as long as the imports: the other way round than a speed-up.
        found = statistics.ratio(times, imports)
        entry["cold_start_ms"] = statistics.median(times)
        entry["cold_start_ratio"] = asdict(found)
        _warn(f"cold start of {one.title}", statistics.unstable_ratio(found), warnings)
    return statistics.median(imports)


def _figures(series: Series, baseline: Series, texts: int, where: str, warnings: list[str]) -> dict[str, Any]:
    """What is reported of a series. texts: how many a call answers."""
    summary = statistics.summarise(series.calls)
    found = statistics.ratio(baseline.rounds, series.rounds)
    reasons = [
        None if series.settled else "the warm-up came to no steady time",
        statistics.unstable(series.rounds),
        statistics.unstable_ratio(found),
    ]
    for reason in reasons:
        _warn(where, reason, warnings)
    return {
        "rounds": len(series.rounds),
        "calls": summary.n,
        "mean_ms": summary.mean,
        "p50_ms": summary.p50,
        "p90_ms": summary.p90,
        "p99_ms": summary.p99,
        "texts_per_s": texts * 1e3 / summary.mean,
        "ratio": asdict(found),
        "unstable": any(reasons),
    }


def _warn(what: str, reason: str | None, warnings: list[str]) -> None:
    if reason:
        warnings.append(f"{what}: unstable, {reason}")

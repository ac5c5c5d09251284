"""`python -m edgec_runtime bench`: measures bundles side by side and compares each with the first.

docs/bench.md explains the method and the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import machine, measure
from .arguments import positive, thread_count
from .cpu import usable_cpus
from .errors import TaskMismatch

SCHEMA = 1
_DEFAULT_TOKENS = (16, 64, 128)
_BUSY = 0.25  # of all CPU time, in the moment before the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundles",
        nargs="+",
        type=Path,
        metavar="BUNDLE",
        help="the first is what the others are compared with",
    )
    parser.add_argument(
        "--tokens", type=_sizes, default=_DEFAULT_TOKENS, metavar="N,N", help="tokens a row (16,64,128)"
    )
    parser.add_argument("--batch", type=_sizes, default=(1,), metavar="N,N", help="rows at a time (1)")
    parser.add_argument(
        "--threads", type=thread_count, metavar="N", help="1 for ids to output, all CPUs for texts to answers"
    )
    parser.add_argument(
        "--rounds", type=positive, default=20, metavar="N", help="how often the bundles take turns (20)"
    )
    parser.add_argument("--text-file", type=Path, metavar="FILE", help="texts for the end-to-end figures, one a line")
    parser.add_argument("--cold-start", action="store_true", help="time fresh processes up to their first answer")
    parser.add_argument("--shapes-only", action="store_true", help="neither texts nor fresh processes, only shapes")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")


def run(options: argparse.Namespace) -> int:
    """`python -m edgec_runtime bench`. Raises BundleError."""
    texts = _texts(options.text_file) if options.text_file else None
    report = bench(
        options.bundles,
        tokens=options.tokens,
        batch=options.batch,
        threads=options.threads,
        rounds=options.rounds,
        texts=texts,
        cold_start=options.cold_start,
        shapes_only=options.shapes_only,
        tell=once_a_second(lambda line: print_line(sys.stderr, line)),
    )
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        if options.json:
            Path(options.json).write_text(text, encoding="utf-8")
        sys.stdout.write(plain_table(report))
    for warning in report["warnings"]:
        print_line(sys.stderr, f"warning: {warning}")
    return 0


def bench(
    bundles: Sequence[Path],
    *,
    tokens: Sequence[int] = _DEFAULT_TOKENS,
    batch: Sequence[int] = (1,),
    threads: int | None = None,
    rounds: int = 20,
    texts: Sequence[str] | None = None,
    cold_start: bool = False,
    shapes_only: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure bundles side by side; the report is the JSON that docs/bench.md describes.

    threads: None is 1 for the figures from ids to output, and all usable CPUs for those from texts to
    answers. texts: for the latter; None takes the bundle's own golden requests. shapes_only: leave out texts and fresh
    processes, so that load time and memory are None. tell: gets lines about the
    progress. Raises BundleError where a bundle cannot be run.
    """
    # Before anything of ours runs: the load should be that of the others.
    facts = machine.facts()
    warnings = _state_of(facts, machine.busy())
    shape_threads, text_threads = threads or 1, threads or usable_cpus()
    opened = [measure.Contender.open(path, shape_threads, warnings) for path in bundles]
    contenders = measure.told_apart(opened)
    lengths = _lengths(tokens, contenders, warnings)
    shapes = [measure.shape(contenders, rows, length, rounds, tell, warnings) for rows in batch for length in lengths]
    schedules: list[dict[str, Any]] = [{} for _ in contenders]
    fresh: list[dict[str, Any]] = [dict.fromkeys(measure.FRESH_FIGURES) for _ in contenders]
    imports_ms: float | None = None
    if not shapes_only:
        schedules = measure.schedules(contenders, texts, text_threads, rounds, tell, warnings)
        fresh, imports_ms = measure.fresh_processes(contenders, shape_threads, rounds, cold_start, tell, warnings)
    return {
        "schema": SCHEMA,
        "machine": facts,
        "settings": {
            "tokens": lengths,
            "batch": list(batch),
            "threads": shape_threads,
            "text_threads": text_threads,
            "rounds": rounds,
            "cold_start": cold_start,
            "seed": measure.SEED,
        },
        "imports_ms": imports_ms,
        "bundles": [
            {
                "path": str(one.path),
                "name": one.manifest.name,
                "build_id": one.manifest.build_id,
                "task": one.manifest.task,
                "precision": one.part.precision,
                "target": one.manifest.target.name,
                "bytes": one.manifest.total_bytes,
                **fresh[number],
                "shapes": [shape[number] for shape in shapes],
                "schedules": schedules[number],
            }
            for number, one in enumerate(contenders)
        ],
        "warnings": warnings,
    }


def once_a_second(tell: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but dropping what comes within a second of the last line."""
    last = -1.0

    def throttled(line: str) -> None:
        nonlocal last
        now = time.monotonic()
        if last < 0 or now - last >= 1:
            last = now
            tell(line)

    return throttled


def print_line(stream: Any, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def plain_table(report: dict[str, Any]) -> str:
    """The report for a person to read."""
    titles = measure.unlike(
        [(f"{one['name']} {one['precision']} {one['target']}", Path(one["path"])) for one in report["bundles"]]
    )
    width = max(len(title) for title in titles) + 2
    lines = [f"{'':<{width}}{'':>12}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}{'texts/s':>10}{'speed-up':>10}"]
    for title, one in zip(titles, report["bundles"], strict=True):
        for shape in one["shapes"]:
            size = f"{shape['batch']} x {shape['tokens']}"
            lines.append(f"{title:<{width}}{_row(size, shape)}")
        for schedule, found in one["schedules"].items():
            lines.append(f"{title:<{width}}{_row(schedule, found)}")
        facts = [f"{one['bytes'] / 1e6:.1f} MB", *([] if one["load_ms"] is None else [f"load {one['load_ms']:.0f} ms"])]
        if one["peak_memory_mb"] is not None:
            facts.append(f"peak memory {one['peak_memory_mb']:.0f} MiB")
        if one["cold_start_ms"] is not None:
            imports = one["cold_start_ratio"]["median"]
            facts.append(f"cold start {one['cold_start_ms']:.0f} ms, {imports:.2f} times the imports alone")
        lines.append(f"{title:<{width}}  {', '.join(facts)}")
    return "\n".join(lines) + "\n"


def _row(what: str, found: dict[str, Any]) -> str:
    times = "".join(f"{found[name]:>10.2f}" for name in ("p50_ms", "p90_ms", "p99_ms"))
    unstable = " unstable" if found["unstable"] else ""
    return f"{what:>12}{times}{found['texts_per_s']:>10.1f}{found['ratio']['median']:>10.2f}{unstable}"


def _lengths(tokens: Sequence[int], contenders: Sequence[measure.Contender], warnings: list[str]) -> list[int]:
    """The lengths asked for, none beyond what every bundle takes."""
    shortest = min(contenders, key=lambda one: one.manifest.preprocessing.max_length)
    most = shortest.manifest.preprocessing.max_length
    if max(tokens) > most:
        warnings.append(f"{shortest.manifest.name} takes {most} tokens at most: longer rows were cut to that")
    return list(dict.fromkeys(min(length, most) for length in tokens))


def _state_of(facts: dict[str, Any], busy: float | None) -> list[str]:
    warnings = []
    if busy is not None and busy > _BUSY:
        warnings.append(f"the machine was busy before the run: other work took {busy:.0%} of the CPU time")
    if facts["governor"] not in (None, "performance"):
        warnings.append(f"the CPU's governor is {facts['governor']}: its clock changes with the load")
    return warnings


def _texts(path: Path) -> list[str]:
    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TaskMismatch(f"{path} cannot be read: {error}", "give a UTF-8 file with a text a line") from None
    if not found:
        raise TaskMismatch(f"{path} holds no text", "give a UTF-8 file with a text a line")
    return found


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(positive(one) for one in text.split(","))

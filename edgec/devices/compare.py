"""Measures bundles on a device, one run for all of them, and reads the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.errors import DeviceError, GateFailed, UserError

from .device import Completed, Device, last_words, refusal

SCHEMA = 1
_FAILURES = ("error: ", "hint: ")


@dataclass(frozen=True)
class Ratio:
    """The median over the rounds of one run, and the interval that eight rounds in ten lie in."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Figures:
    """Times of one kind of call, in ms. ratio: to the first bundle in the same round, above 1 is faster."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    texts_per_s: float
    ratio: Ratio
    unstable: bool


@dataclass(frozen=True)
class BundleFigures:
    """What was measured of one bundle.

    path: of the bundle on the machine that asked. shapes: by (batch, tokens), from ids to output. schedules:
    from texts to answers. cold_start_ratio: how many times as long as the imports alone; with cold_start_ms
    None where it was not asked for. peak_memory_mb: MiB, None where the device does not tell.
    """

    path: Path
    name: str
    build_id: str
    precision: str
    target: str
    bytes: int
    load_ms: float | None
    peak_memory_mb: float | None
    cold_start_ms: float | None
    cold_start_ratio: Ratio | None
    shapes: Mapping[tuple[int, int], Figures]
    schedules: Mapping[str, Figures]


@dataclass(frozen=True)
class BenchReport:
    """A run. data: the JSON of docs/bench.md, with the device, and the bundles' paths where they were asked
    for."""

    device: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    bundles: tuple[BundleFigures, ...]
    warnings: tuple[str, ...]
    data: Mapping[str, Any]


def bench(
    device: Device,
    bundles: Sequence[Path],
    *,
    tokens: Sequence[int] = (16, 64, 128),
    batch: Sequence[int] = (1,),
    threads: int | None = None,
    rounds: int = 20,
    cold_start: bool = True,
    shapes_only: bool = False,
    on_line: Callable[[str], None] | None = None,
) -> BenchReport:
    """Place the bundles on the device and measure them there, interleaved; the first is the baseline.

    threads: None is 1 from ids to output, and all CPUs of the device from texts to answers. on_line: gets
    lines about the progress. shapes_only: neither texts nor fresh processes. Raises UserError for an emulated device, a
    BundleError for what is no bundle, GateFailed where the runtime refuses one, DeviceError where the device fails.
    """
    if device.emulated:
        raise UserError(
            f"{device.name} is emulated: its times say nothing about a real machine",
            f"`edgec verify --on {device.name}` checks the answers there; measure on a real device (ssh://...)",
        )
    placed = [device.place(bundle) for bundle in bundles]
    args = ["bench", "--json", "-", "--rounds", str(rounds)]
    args += ["--tokens", ",".join(map(str, tokens)), "--batch", ",".join(map(str, batch))]
    args += ["--threads", str(threads)] if threads else []
    args += ["--cold-start"] if cold_start else []
    args += ["--shapes-only"] if shapes_only else []
    # Errors come back as exceptions; told as progress they would be told twice.
    tell = on_line and (lambda line: None if line.startswith(_FAILURES) else on_line(line))
    done = device.runtime([*args, "--", *placed], on_line=tell)
    return read_report(_json(done, device), bundles, device.name)


def read_report(data: Mapping[str, Any], bundles: Sequence[Path], device: str) -> BenchReport:
    """The typed form of the JSON that `python -m edgec_runtime bench` wrote for these bundles."""
    named = [{**one, "path": str(path)} for one, path in zip(data["bundles"], bundles, strict=True)]
    return BenchReport(
        device=device,
        machine=data["machine"],
        settings=data["settings"],
        bundles=tuple(_bundle(one) for one in named),
        warnings=tuple(data["warnings"]),
        data={**data, "device": device, "bundles": named},
    )


COLUMNS = ("bundle", "", "p50 ms", "p90 ms", "p99 ms", "texts/s", "speed-up", "p10-p90")
FACTS = ("bundle", "MB", "load ms", "cold start ms", "x imports", "peak MiB")


def rows(report: BenchReport) -> list[tuple[str, ...]]:
    """The times of a report as a table of COLUMNS: first the shapes, then the schedules."""
    table: list[tuple[str, ...]] = []
    shapes = list(report.bundles[0].shapes)
    for shape in shapes:
        what = f"{shape[0]} x {shape[1]} tokens"
        table += [_row(_title(one, report), what, one.shapes[shape]) for one in report.bundles]
    # Not every bundle may run under every schedule.
    for schedule in dict.fromkeys(name for one in report.bundles for name in one.schedules):
        table += [
            _row(_title(one, report), f"texts, {schedule}", one.schedules[schedule], False)
            for one in report.bundles
            if schedule in one.schedules
        ]
    return table


def fact_rows(report: BenchReport) -> list[tuple[str, ...]]:
    """Size, load time, cold start and memory as a table of FACTS."""
    return [
        (
            _title(one, report),
            f"{one.bytes / 1e6:.1f}",
            "-" if one.load_ms is None else f"{one.load_ms:.0f}",
            "-" if one.cold_start_ms is None else f"{one.cold_start_ms:.0f}",
            "-" if one.cold_start_ratio is None else f"{one.cold_start_ratio.median:.2f}",
            "-" if one.peak_memory_mb is None else f"{one.peak_memory_mb:.0f}",
        )
        for one in report.bundles
    ]


def _row(title: str, what: str, found: Figures, times: bool = True) -> tuple[str, ...]:
    # A call of a schedule answers many texts: its time in ms depends on how many, its texts a second do not.
    return (
        title,
        what,
        *((f"{ms:.2f}" if times else "") for ms in (found.p50_ms, found.p90_ms, found.p99_ms)),
        f"{found.texts_per_s:.1f}",
        f"{found.ratio.median:.2f}{' (unstable)' if found.unstable else ''}",
        f"{found.ratio.p10:.2f}-{found.ratio.p90:.2f}",
    )


def _title(bundle: BundleFigures, report: BenchReport) -> str:
    """What tells a bundle from the others; a name that all share would only widen the table."""
    facts = f"{bundle.precision} {bundle.target}"
    shared = len(report.bundles) > 1 and len({one.name for one in report.bundles}) == 1
    return facts if shared else f"{bundle.name} {facts}"


def _bundle(one: Mapping[str, Any]) -> BundleFigures:
    cold = one["cold_start_ratio"]
    return BundleFigures(
        path=Path(one["path"]),
        name=one["name"],
        build_id=one["build_id"],
        precision=one["precision"],
        target=one["target"],
        bytes=one["bytes"],
        load_ms=one["load_ms"],
        peak_memory_mb=one["peak_memory_mb"],
        cold_start_ms=one["cold_start_ms"],
        cold_start_ratio=Ratio(**cold) if cold else None,
        shapes={(shape["batch"], shape["tokens"]): _figures(shape) for shape in one["shapes"]},
        schedules={name: _figures(found) for name, found in one["schedules"].items()},
    )


def _figures(found: Mapping[str, Any]) -> Figures:
    return Figures(
        p50_ms=found["p50_ms"],
        p90_ms=found["p90_ms"],
        p99_ms=found["p99_ms"],
        mean_ms=found["mean_ms"],
        texts_per_s=found["texts_per_s"],
        ratio=Ratio(**found["ratio"]),
        unstable=found["unstable"],
    )


def _json(done: Completed, device: Device) -> dict[str, Any]:
    if done.code in (1, 2):
        cause, hint = refusal(done) or (last_words(done), "")
        raise (GateFailed if done.code == 1 else UserError)(f"{device.name}: {cause}", hint)
    try:
        data = json.loads(done.stdout) if done.code == 0 else None
    except ValueError:
        data = None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise DeviceError(f"{device.name}: the benchmark did not finish: {last_words(done)}")
    return data

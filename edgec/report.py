"""report.json: what was asked, what came out, and how it was measured. docs/report.md documents the schema."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgec_runtime.manifest import Manifest, PassRecord

from edgec.budget import JUDGED_SHAPE, Verdict, judged_shape
from edgec.data.readers import Sample
from edgec.devices.compare import BenchReport
from edgec.files import megabytes

if TYPE_CHECKING:
    from edgec.costs import Choices
    from edgec.evaluation.original import Original
    from edgec.put_back import Outcome
    from edgec.ranking import Ranking

SCHEMA: Final = 2
REPORT_FILE: Final = "report.json"
COLUMNS: Final = (
    "bundle", "MB", "p50 ms", "p90 ms", "speed-up", "cold start ms", "peak MiB", "quality", "budget",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The outcome of `compress`.

    out: the folder. baseline: the manifest of the fp32 bundle. bundles: manifests by target. measured: the target
    whose bundle was timed, None where none fits the device. data: the JSON of report.json.
    """

    out: Path
    baseline: Manifest
    bundles: Mapping[str, Manifest]
    bench: BenchReport | None
    measured: str | None
    verdicts: Sequence[Verdict]
    data: Mapping[str, Any]


def make_report(
    out: Path,
    *,
    recipe: Mapping[str, Any],
    command: str,
    device: str,
    facts: Mapping[str, Any],
    history: Sequence[PassRecord],
    original: Original | None,
    baseline: Manifest,
    bundles: Mapping[str, Manifest],
    bench: BenchReport | None,
    measured: str | None,
    verified: Mapping[str, Mapping[str, Any]],
    verdicts: Sequence[Verdict],
    fell_back: Sequence[str],
    calibration: Sample,
    data: Mapping[str, Mapping[str, int]],
    choices: Choices,
    ranking: Ranking | None,
    outcome: Outcome | None,
    audits: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Sequence[Mapping[str, Any]]],
    archives: Mapping[str, int],
    seconds: float,
) -> Report:
    """Gather a Report.

    command: what repeats the run. original: None where the passes left the model what it was, but for rounding.
    verified: by target, how far the device was from the golden vectors; a target that the device is not of has none.
    fell_back: targets that ship fp32, as on_miss says. audits, tensors: by target, what edgec.auditing tells of its
    bundle. data: by name of the recipe's training data, its rows, those skipped as malformed and the tags repaired.
    archives: by target, the bytes of its bundle as one compressed file, where there is one. ranking, outcome: None
    where no layer had to be put back.
    """
    content = {
        "schema": SCHEMA,
        "command": command,
        "recipe": recipe,
        "device": device,
        "machine": facts,
        "versions": baseline.versions,
        "source": dataclasses.asdict(baseline.source),
        "passes": [dataclasses.asdict(record) for record in history],
        "original": None if original is None else original.to_dict(),
        "baseline": {"path": "baseline", **_summary(baseline)},
        "bundles": [
            {
                "path": f"bundles/{name}",
                **_summary(m),
                "verified": verified.get(name),
                "audit": audits.get(name),
                "tensors": tensors.get(name),
                "spread": m.golden.spread or None,
                "archive_bytes": archives.get(name),
            }
            for name, m in bundles.items()
        ],
        "measured": measured,
        "bench": None if bench is None else _bench(bench, measured),
        "budget": [dataclasses.asdict(verdict) for verdict in verdicts],
        "fell_back": list(fell_back),
        "calibration": _calibration(calibration),
        "data": data,
        "choices": choices.to_dict(),
        "sensitivity": None if ranking is None else ranking.to_dict(),
        **({"put_back": [], "put_back_steps": []} if outcome is None else outcome.to_dict()),
        "seconds": round(seconds, 1),
    }
    return Report(out, baseline, bundles, bench, measured, tuple(verdicts), content)


def write_report(folder: Path, report: Report) -> None:
    text = json.dumps(report.data, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")


def warnings(report: Report) -> list[str]:
    """What nobody asked for and everybody should know: passes that cost more than the budget allows a bundle, and a
    bundle that was made to be fast and is not.
    """
    return [*_lost_by_passes(report), *_slower(report)]


def _lost_by_passes(report: Report) -> Iterator[str]:
    quality = (report.data["original"] or {}).get("quality")
    limit = report.data["recipe"].get("budget", {}).get("accuracy_drop")
    if quality is not None and limit is not None and quality["drop"] > limit:
        group = f" in the group {quality['group']}" if quality["group"] else ""
        yield (
            f"the passes cost {quality['drop']:.4g} in {quality['metric']}{group} before int8, beside the model before "
            f"{report.data['original']['before_pass']}: accuracy_drop ({limit:g}) judges a bundle against its fp32 form"
        )


def _slower(report: Report) -> list[str]:
    if report.bench is None or report.measured is None:
        return []
    ratio = report.bench.bundles[1].shapes[judged_shape(report.bench.bundles[1])].ratio
    if ratio.median >= 1:
        return []
    return [
        f"{report.measured} is slower than fp32 on {report.data['device']}: {ratio.median:.2f}x "
        f"(p10 {ratio.p10:.2f}, p90 {ratio.p90:.2f}); `edgec audit` shows where its time goes"
    ]


def title(report: Report) -> str:
    """What the times in `rows` are of."""
    batch, tokens = JUDGED_SHAPE if report.bench is None else judged_shape(report.bench.bundles[0])
    return f"{report.baseline.name}: batch {batch}, {tokens} tokens, 1 thread, on {report.data['device']}"


def rows(report: Report) -> list[tuple[str, ...]]:
    """The table of COLUMNS: the model before it was compressed, where that is another one; the fp32 baseline; then a
    row a target. Times are as the budget judges them. The quality of fp32 is against the model before, that of a target
    against fp32.
    """
    table: list[tuple[str, ...]] = []
    baseline = _row("fp32 baseline", report.baseline, _figures(report, 0), "-")
    original = report.data["original"]
    if original is not None:
        quality, place = original["quality"], COLUMNS.index("quality")
        metric, was, now = (None, 0, 0) if quality is None else (quality[key] for key in ("metric", "before", "after"))
        told = ["-" if metric is None else f"{metric} {score:.4f}" for score in (was, now)]
        name = f"before {original['before_pass']}"
        # Its weights alone: a bundle's size counts all its files.
        table.append((name, f"{megabytes(original['bytes'])} weights", *["-"] * (place - 2), told[0], "-"))
        baseline = (*baseline[:place], told[1], *baseline[place + 1 :])
    table.append(baseline)
    for name, manifest in report.bundles.items():
        # Where fp32 ships instead, the figures are those of the baseline: it is the same model.
        index = 0 if name in report.data["fell_back"] else 1
        figures = _figures(report, index) if name == report.measured else None
        table.append(_row(name, manifest, figures, _budget(report, name)))
    return table


def _figures(report: Report, index: int) -> Any:
    return report.bench.bundles[index] if report.bench is not None else None


def _row(name: str, manifest: Manifest, measured: Any, budget: str) -> tuple[str, ...]:
    quality = manifest.quality
    size = megabytes(manifest.total_bytes)
    judged = "-" if quality is None else f"{quality.metric} {quality.after:.4f}"
    if measured is None:
        return (name, size, "-", "-", "not measured here", "-", "-", judged, budget)
    shape = measured.shapes[judged_shape(measured)]
    return (
        name,
        size,
        f"{shape.p50_ms:.2f}",
        f"{shape.p90_ms:.2f}",
        f"{shape.ratio.median:.2f}x{' (unstable)' if shape.unstable else ''}",
        "-" if measured.cold_start_ms is None else f"{measured.cold_start_ms:.0f}",
        "-" if measured.peak_memory_mb is None else f"{measured.peak_memory_mb:.0f}",
        judged,
        budget,
    )


def _budget(report: Report, target: str) -> str:
    verdicts = [verdict for verdict in report.verdicts if verdict.target == target]
    missed = [verdict for verdict in verdicts if verdict.met is False]
    if not verdicts:
        return "none set"
    unmeasured = [verdict.what for verdict in verdicts if verdict.met is None]
    rest = f" ({', '.join(unmeasured)} not measured)" if unmeasured else ""
    if not missed:
        return "met" + rest
    ships = "; fp32 ships" if target in report.data["fell_back"] else ""
    return "missed: " + ", ".join(f"{v.what} {v.value:.4g} ({v.limit:g})" for v in missed) + rest + ships


def _bench(bench: BenchReport, measured: str | None) -> dict[str, Any]:
    """Its JSON, with the bundles' places in the finished folder: they were measured in one that is gone.

    The plain export is only measured: no folder of that name stays.
    """
    places = ["baseline", f"bundles/{measured}", "plain"]
    bundles = [{**one, "path": place} for one, place in zip(bench.data["bundles"], places, strict=False)]
    return {**bench.data, "bundles": bundles}


def _calibration(sample: Sample) -> dict[str, Any] | None:
    return {"texts": len(sample.texts), "groups": dict(Counter(sample.groups))} if sample.texts else None


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "target": manifest.target.name,
        "precision": manifest.parts[0].precision,
        "bytes": manifest.total_bytes,
        "graph_bytes": sum(f.bytes for f in manifest.files if f.path.endswith((".onnx", ".data"))),
        "build_id": manifest.build_id,
        "digest": manifest.digest,
        "quality": None if manifest.quality is None else dataclasses.asdict(manifest.quality),
        "parity": manifest.parity,
        "forms": manifest.parts[0].forms,
        "golden": dataclasses.asdict(manifest.golden),
        "schedule": manifest.execution.schedule,
        "measured": manifest.measured,
    }

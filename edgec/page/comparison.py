"""Several builds side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import figures
from .charts import Bar, Chart, bar_chart
from .figures import At, Cell, Sentence, text
from .outcome import judged_shape, name_of, role_of, stability, timed, worst_quality
from .view import Section, Table


def comparison_section(builds: Mapping[str, At]) -> Section:
    """A row a bundle of every build (name: report), and the charts of size, speed and quality."""
    rows = tuple(row for name, report in builds.items() for row in _rows(name, report))
    columns = (
        "build",
        "bundle for",
        "precision",
        "size",
        "p50",
        "speed-up",
        "stability",
        "metric",
        "score",
        "drop",
        "budget",
    )
    notes: list[Sentence] = [("Each build is told in full below. Times are those of one row at the judged length.",)]
    machines = {str(report["machine"].get("cpu").value) for report in builds.values()}
    if len(machines) > 1:
        notes.append(("They were measured on different machines: compare speed-ups, not times.",))
    metrics = {
        at["quality"]["metric"].value for _, report in builds.items() for at in report["bundles"] if at["quality"]
    }
    if len(metrics) > 1:
        notes.append((f"Their drops are of different metrics ({', '.join(sorted(metrics))}): not comparable.",))
    return Section("Side by side", tuple(notes), tuple(_charts(builds)), (Table("", columns, rows),))


def _rows(name: str, report: At) -> Iterator[tuple[Cell, ...]]:
    for bundle in report["bundles"]:
        figure = _judged(report, bundle)
        quality = bundle["quality"]
        yield (
            text(name),
            text(bundle["target"]),
            text(bundle["precision"]),
            figures.megabytes(bundle["bytes"]),
            figures.milliseconds(figure.get("p50_ms")),
            figures.times(figure.get("ratio").get("median")),
            stability(figure),
            text(quality.get("metric")),
            figures.score(quality.get("after")),
            figures.score(quality.get("drop")),
            _verdict(report, bundle),
        )


def _judged(report: At, bundle: At) -> At:
    """What was timed of what ships for this target; nothing where that was not timed."""
    if not report["bench"] or bundle["target"].value != report["measured"].value:
        return At(None)
    fell_back = bundle["target"].value in report["fell_back"].value
    return judged_shape(timed(report)[0 if fell_back else 1].at)


def _verdict(report: At, bundle: At) -> Cell:
    met = [at["met"].value for at in report["budget"] if at["target"].value == bundle["target"].value]
    if not met:
        return text("none set", "muted")
    if False in met:
        return text("missed", "bad")
    return text("met", "good") if None not in met else text("met as judged", "good")


def _charts(builds: Mapping[str, At]) -> Iterator[Chart]:
    """One bundle a build: the one that was timed, else the first. The table has all of them."""
    sizes: list[Bar] = []
    times: list[Bar] = []
    ratios: list[Bar] = []
    drops: dict[str, list[Bar]] = {}
    for name, report in builds.items():
        baseline, bundle = report["baseline"], _shown(report)
        sizes.append(Bar("fp32 baseline", figures.megabytes(baseline["bytes"]), "fp32", heading=name))
        sizes.append(Bar(name_of(bundle), figures.megabytes(bundle["bytes"]), role_of(bundle)))
        for number, one in enumerate(timed(report) if report["bench"] else []):
            at = judged_shape(one.at)
            p50, ratio, heading = at["p50_ms"], at["ratio"], "" if number else name
            spread = (p50.value, at["p90_ms"].value)
            times.append(Bar(one.label, figures.milliseconds(p50), one.role, spread, heading))
            spread = (ratio["p10"].value, ratio["p90"].value)
            ratios.append(Bar(one.label, figures.times(ratio["median"]), one.role, spread, heading))
        quality = worst_quality(report)
        if quality is not None:
            bar = Bar(name, figures.score(quality["drop"]), "int8")
            drops.setdefault(str(quality["metric"].value), []).append(bar)
    yield bar_chart("Size of all files", sizes)
    if times:
        yield bar_chart("Time of a call: p50, the whisker up to p90", times)
        yield bar_chart("Speed-up over fp32, the whisker from p10 to p90", ratios)
    for metric, bars in drops.items():  # drops of different metrics have no scale in common
        yield bar_chart(f"Drop in {metric} of the worst bundle: less is better", bars)


def _shown(report: At) -> At:
    measured = [at for at in report["bundles"] if at["target"].value == report["measured"].value]
    return (measured or list(report["bundles"]))[0]

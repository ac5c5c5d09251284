"""What came out of a build: the headline, the budget, size, speed and quality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from . import figures
from .charts import Bar, Chart, bar_chart
from .figures import At, Cell, Sentence, text
from .view import Section, Table

JUDGED: Final = (1, 128)
"""Batch and tokens that the budget judges speed at; the longest row below where there is none."""

WORST: Final = 12
"""How many bars a chart has at most; its table has all."""

_VERDICTS: Final = {True: text("met", "good"), False: text("missed", "bad"), None: text("not judged", "open")}


@dataclass(frozen=True)
class Timed:
    """A bundle that was timed. role: its colour."""

    label: str
    role: str
    at: At


def name_of(bundle: At) -> str:
    return f"{bundle['precision'].value} {bundle['target'].value}"


def role_of(bundle: At) -> str:
    """Its colour."""
    return "fp32" if bundle["precision"].value == "fp32" else "int8"


def timed(report: At) -> list[Timed]:
    """The fp32 baseline first, then the candidate, then the plain export where it was measured."""
    found = []
    for at in report["bench"].get("bundles"):
        known = {"baseline": ("fp32 baseline", "fp32"), "plain": ("plain export", "plain")}
        found.append(Timed(*known.get(at["path"].value, (name_of(at), "int8")), at))
    return found


def judged_shape(bundle: At) -> At:
    """The figures of the shape that the budget judges."""
    shapes = {(at["batch"].value, at["tokens"].value): at for at in bundle["shapes"]}
    return shapes[max([shape for shape in shapes if shape <= JUDGED] or shapes)]


def stability(at: At) -> Cell:
    """Whether the machine was steady enough for the figures of `at`."""
    return {True: text("unstable", "bad"), False: text("steady", "muted"), None: text("")}[at.get("unstable").value]


def worst_quality(report: At) -> At | None:
    """The quality of the bundle that lost most."""
    judged = [bundle["quality"] for bundle in report["bundles"] if bundle["quality"]]
    return max(judged, key=lambda quality: float(quality["drop"].value), default=None)


def met(report: At) -> bool | None:
    verdicts = [verdict["met"].value for verdict in report["budget"]]
    return False if False in verdicts else True if True in verdicts else None


def headline(report: At) -> Sentence:
    """One sentence: how fast, how small, how good, and whether that was enough."""
    parts = list(_speed_and_size(report))
    quality = worst_quality(report)
    if quality is not None:
        parts += [f"; {quality['metric'].value} falls by at most ", figures.score(quality["drop"])]
    return (*parts, *_passes_words(report), *_budget_words(report))


def _passes_words(report: At) -> Iterator[str | Cell]:
    """What the passes did to the model before it was rounded."""
    original = report.get("original")
    if not original:
        return
    yield f"; before {original['before_pass'].value} its weights were "
    yield figures.megabytes(original["bytes"])
    quality = original["quality"]
    if quality:
        yield f", and {quality['metric'].value} "
        yield from (figures.score(quality["before"]), " where fp32 now has ", figures.score(quality["after"]))


def _speed_and_size(report: At) -> Iterator[str | Cell]:
    largest = max(report["bundles"], key=lambda bundle: int(bundle["bytes"].value))
    size, before = figures.megabytes(largest["bytes"]), figures.megabytes(report["baseline"]["bytes"])
    if not report["bench"]:
        yield from ("The bundles take at most ", size, " instead of ", before, "; their speed was not measured")
        return
    bundles = timed(report)
    baseline, candidate = judged_shape(bundles[0].at), judged_shape(bundles[1].at)
    yield f"{bundles[1].label} answers "
    yield figures.times(candidate["ratio"]["median"])
    yield " (unstable)" if candidate["unstable"].value else ""
    yield " as fast as fp32 ("
    yield figures.milliseconds(candidate["p50_ms"])
    yield " instead of "
    yield figures.milliseconds(baseline["p50_ms"])
    yield f" at {candidate['batch'].value} × {candidate['tokens'].value} tokens), in "
    yield from (size, " instead of ", before)


def _budget_words(report: At) -> Iterator[str | Cell]:
    missed = [verdict for verdict in report["budget"] if verdict["met"].value is False]
    unknown = [verdict for verdict in report["budget"] if verdict["met"].value is None]
    if not report["budget"]:
        yield "; no budget was set."
    elif missed:
        yield "; the budget is missed: "
        for number, verdict in enumerate(missed):
            yield f"{', ' if number else ''}{verdict['what'].value} of {verdict['target'].value} is "
            yield figures.digits(verdict["value"])
            yield " (limit "
            yield figures.digits(verdict["limit"])
            yield ")"
        fell_back = ", ".join(at.value for at in report["fell_back"])
        yield f"; fp32 ships for {fell_back}." if fell_back else "."
    elif unknown:
        what = " and ".join(dict.fromkeys(at["what"].value for at in unknown))
        targets = ", ".join(dict.fromkeys(at["target"].value for at in unknown))
        said = "what was judged keeps the budget" if met(report) else "the budget could not be judged"
        yield f"; {said} (not judged: {what} for {targets})."
    else:
        yield "; the budget is met."


def budget_section(report: At) -> Section:
    rows = tuple(
        (
            text(verdict["target"]),
            text(verdict["what"]),
            _VERDICTS[verdict["met"].value],
            figures.digits(verdict["value"]),
            figures.digits(verdict["limit"]),
        )
        for verdict in report["budget"]
    )
    if not rows:
        return Section("Budget", absent="The recipe sets no budget.")
    return Section("Budget", tables=(Table("", ("target", "limit on", "verdict", "came out", "limit"), rows),))


def size_section(report: At) -> Section:
    """What ships, and how large it is."""
    bars = [Bar("fp32 baseline", figures.megabytes(report["baseline"]["bytes"]), "fp32")]
    bars += [Bar(name_of(at), figures.megabytes(at["bytes"]), role_of(at)) for at in report["bundles"]]
    bars += [Bar(one.label, figures.megabytes(one.at["bytes"]), one.role) for one in _plain(report)]
    rows = [_size_row(text(at["path"]), at) for at in (report["baseline"], *report["bundles"])]
    rows += [_size_row(text(f"{one.label} (not shipped)"), one.at) for one in _plain(report)]
    columns = ("bundle", "precision", "all files", "graph", "mean cosine", "worst cosine", "on the device", "schedule")
    notes: list[Sentence] = [
        (
            "Mean and worst cosine compare the int8 graph with the float graph; “on the device” is the worst cosine of "
            f"what the device ({report['device'].value}) answered to the bundle's golden vectors.",
        )
    ]
    if report["fell_back"]:
        notes.append((f"fp32 ships for {', '.join(at.value for at in report['fell_back'])}: the budget was missed.",))
    return Section(
        "What ships", tuple(notes), (bar_chart("Size of all files", bars),), (Table("", columns, tuple(rows)),)
    )


def _size_row(name: Cell, at: At) -> tuple[Cell, ...]:
    parity = at.get("parity").get("int8_against_float")
    return (
        name,
        text(at["precision"]),
        figures.megabytes(at["bytes"]),
        figures.megabytes(at.get("graph_bytes")),
        figures.score(parity.get("mean_cosine")),
        figures.score(parity.get("min_cosine")),
        figures.score(at.get("verified").get("min_cosine")),
        text(at.get("schedule")),
    )


def speed_section(report: At) -> Section:
    if not report["bench"]:
        device = report["device"].value
        reason = "is emulated, and emulated time is no time" if device.startswith("qemu:") else "fits no target"
        return Section("Speed", absent=f"Speed was not measured: {device} {reason}.")
    bundles = timed(report)
    legend = tuple((one.role, one.label) for one in bundles)
    charts = (
        bar_chart("Time of a call: p50, the whisker up to p90", list(_time_bars(bundles)), legend=legend),
        bar_chart("Speed-up over fp32, the whisker from p10 to p90", list(_ratio_bars(bundles)), legend=legend[1:]),
    )
    settings = report["bench"]["settings"]
    threads = settings["threads"].value
    notes: list[Sentence] = [
        (
            f"One call for rows without padding, on {threads} thread{'s' * (threads != 1)}. The bundles take turns; a "
            "speed-up is the median over ",
            figures.count(settings["rounds"]),
            " rounds.",
        )
    ]
    if _plain(report):
        notes.append(("The plain export is the float graph as torch gives it, under onnxruntime's own optimizer.",))
    return Section("Speed", tuple(notes), charts, tuple(_speed_tables(report, bundles)))


def _time_bars(bundles: list[Timed]) -> Iterator[Bar]:
    for index, shape in enumerate(bundles[0].at["shapes"]):
        heading = f"{shape['batch'].value} × {shape['tokens'].value} tokens"
        for one in bundles:
            at = one.at["shapes"][index]
            spread = (at["p50_ms"].value, at["p90_ms"].value)
            yield Bar(one.label, figures.milliseconds(at["p50_ms"]), one.role, spread, heading)
            heading = ""


def _ratio_bars(bundles: list[Timed]) -> Iterator[Bar]:
    for index, shape in enumerate(bundles[0].at["shapes"]):
        heading = f"{shape['batch'].value} × {shape['tokens'].value} tokens"
        for one in bundles[1:]:
            ratio = one.at["shapes"][index]["ratio"]
            spread = (ratio["p10"].value, ratio["p90"].value)
            yield Bar(one.label, figures.times(ratio["median"]), one.role, spread, heading)
            heading = ""


def _speed_tables(report: At, bundles: list[Timed]) -> Iterator[Table]:
    rows = []
    for index, shape in enumerate(bundles[0].at["shapes"]):
        for one in bundles:
            at = one.at["shapes"][index]
            times = tuple(figures.milliseconds(at[key]) for key in ("p50_ms", "p90_ms", "p99_ms"))
            rows.append(
                (text(f"{shape['batch'].value} × {shape['tokens'].value}"), text(one.label), *times, *_rates(at))
            )
    rates = ("texts", "speed-up", "p10", "p90", "stability")
    yield Table("From ids to output", ("rows × tokens", "bundle", "p50", "p90", "p99", *rates), tuple(rows))
    schedules = [
        (text(name), text(one.label), *_rates(at)) for one in bundles for name, at in one.at["schedules"].items()
    ]
    yield Table("From texts to answers", ("schedule", "bundle", *rates), tuple(schedules))
    starts = tuple(
        (
            text(one.label),
            figures.milliseconds(one.at["load_ms"]),
            figures.milliseconds(one.at["cold_start_ms"]),
            figures.times(one.at["cold_start_ratio"].get("median")),
            figures.mebibytes(one.at["peak_memory_mb"]),
        )
        for one in bundles
    )
    yield Table("In a fresh process", ("bundle", "load", "cold start", "of imports alone", "peak memory"), starts)
    warnings = tuple((text(at),) for at in report["bench"]["warnings"])
    if warnings:
        yield Table(f"Warnings of the measurement ({len(warnings)})", ("warning",), warnings, folded=True)


def _rates(at: At) -> tuple[Cell, ...]:
    ratio = at["ratio"]
    ratios = (figures.times(ratio[key]) for key in ("median", "p10", "p90"))
    return (figures.per_second(at["texts_per_s"]), *ratios, stability(at))


def quality_section(report: At) -> Section:
    bundles = [bundle for bundle in report["bundles"] if bundle["quality"]]
    lost = list(_lost_by_passes(report))
    if not bundles:
        absent = "Quality was not judged: the recipe names no data.evaluate."
        return Section("Quality", tables=tuple(lost), absent="" if lost else absent)
    rows = tuple(
        (text(at["target"]), text(at["quality"]["metric"]), *_scores(at["quality"]), figures.count(at["quality"]["n"]))
        for at in bundles
    )
    tables = [Table("", ("target", "metric", "fp32", "bundle", "drop", "texts"), rows), *lost]
    grouped = [at for at in bundles if at["quality"].get("groups")]
    if not grouped:
        note: Sentence = ("All texts count together: data.evaluate has no group_column.",)
        return Section("Quality", (note,), (), tuple(tables))
    by = report["recipe"]["data"]["evaluate"].get("group_column").value or "group"
    grouped.sort(key=lambda at: -float(at["quality"]["drop"].value))
    for number, at in enumerate(grouped):
        tables.append(_groups_table(f"{at['target'].value} by {by}", at["quality"], folded=number > 0))
    note = (f"The worst {by} counts, not the mean; it is marked.",)
    return Section("Quality", (note,), (_groups_chart(report, grouped[0]),), tuple(tables))


def _lost_by_passes(report: At) -> Iterator[Table]:
    """The fp32 form beside the model before it was compressed."""
    original = report.get("original")
    if not original:
        return
    before = f"before {original['before_pass'].value}"
    quality = original["quality"]
    sizes = (figures.millions(original["parameters"]), figures.millions(original["parameters_after"]))
    rows: list[tuple[Cell, ...]] = [(text("parameters"), *sizes, text(""), text(""))]
    if quality:
        worst = quality.get("group").value
        metric = f"{quality['metric'].value}{f', the drop that of {worst}' if worst else ''}"
        rows.append((text(metric), *_scores(quality), figures.count(quality["n"])))
    else:
        rows.append((text(f"quality: {original['reason'].value}"), *[text("")] * 4))
    yield Table("What the passes cost in float", ("", before, "fp32 after the passes", "drop", "texts"), tuple(rows))
    if quality and quality.get("groups"):
        yield _groups_table("What they cost by group", quality, columns=(before, "fp32 after"), folded=True)


def _groups_table(title: str, quality: At, *, folded: bool, columns: tuple[str, str] = ("fp32", "bundle")) -> Table:
    worst = quality["group"].value
    rows = tuple(
        (text(name), *_scores(at), figures.count(at["n"]), text("worst", "bad") if name == worst else text(""))
        for name, at in quality["groups"].items()
    )
    return Table(title, ("group", *columns, "drop", "texts", "note"), rows, folded)


def _groups_chart(report: At, bundle: At) -> Chart:
    groups = sorted(bundle["quality"]["groups"].items(), key=lambda item: -float(item[1]["drop"].value))
    bars = [Bar(name, figures.score(at["drop"]), "int8") for name, at in groups[:WORST]]
    which = f"the worst {WORST} of {len(groups)} groups" if len(groups) > WORST else "by group"
    return bar_chart(f"Drop of {bundle['target'].value}, {which}", bars, limit=drop_limit(report))


def drop_limit(report: At) -> Cell | None:
    """That of the budget, where it sets one."""
    limit = report["recipe"].get("budget").get("accuracy_drop")
    return figures.score(limit) if limit.value is not None else None


def _scores(at: At) -> tuple[Cell, ...]:
    return tuple(figures.score(at[key]) for key in ("before", "after", "drop"))


def _plain(report: At) -> list[Timed]:
    return [one for one in timed(report) if one.role == "plain"] if report["bench"] else []

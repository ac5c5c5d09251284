"""What happened inside the model: what runs in int8, where the error arises, which layers matter, what was chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from . import figures
from .charts import Bar, Chart, bar_chart, depth_line, stacked_columns, step_chart
from .figures import At, Cell, Sentence, text
from .outcome import WORST, drop_limit
from .view import Section, Table

_ARITHMETIC: Final = (
    ("int8", "int8", "int8"),
    ("weight_only", "weight-only", "weight-only"),
    ("float", "fp32", "float"),
)
"""Key in the report, role and name of each kind of product."""


def sections(report: At) -> tuple[Section, ...]:
    """All that this module knows."""
    if report["schema"].value == 1:
        reason = "A report of schema 1 tells nothing of coverage, error, sensitivity, other CPUs and choices."
        return (Section("Inside the model", absent=reason),)
    return (
        _coverage_section(report),
        _tensor_section(report),
        _sensitivity_section(report),
        _put_back_section(report),
        _spread_section(report),
        _choices_section(report),
    )


def _coverage_section(report: At) -> Section:
    title = "Where int8 runs"
    found = _distinct(report, "audit", "layers")
    if not found:
        return Section(title, absent="The bundles were not audited.")
    notes: list[Sentence] = [("A bar a layer, as high as its multiply-accumulates in one row.",)]
    charts: list[Chart] = []
    tables: list[Table] = []
    for targets, audit in found:
        notes.append(
            (
                f"{targets}: ",
                figures.percent(audit["int8_share"]),
                " of the multiply-accumulates run in int8, ",
                figures.percent(audit["weight_only_share"]),
                " on weights of few bits, ",
                figures.percent(audit["float_share"]),
                " in float.",
            )
        )
        layers = [at["layer"].value for at in audit["layers"]]
        stacks = [
            (role, name, [figures.millions(at[key]) for at in audit["layers"]]) for key, role, name in _ARITHMETIC
        ]
        if layers:
            charts.append(
                stacked_columns(f"Layers of {targets}", layers, stacks, unit="million multiply-accumulates", scale=1e6)
            )
        tables += _coverage_tables(targets, audit)
    return Section(title, tuple(notes), tuple(charts), tuple(tables))


def _coverage_tables(targets: str, audit: At) -> Iterator[Table]:
    layers = tuple(
        (text(at["layer"]), *(figures.millions(at[key]) for key, _, _ in _ARITHMETIC)) for at in audit["layers"]
    )
    names = tuple(name for _, _, name in _ARITHMETIC)
    yield Table(f"Every layer of {targets}, multiply-accumulates", ("layer", *names), layers, folded=True)
    operators = tuple(
        (text(at["op"]), figures.count(at["count"]), figures.percent(at["share"]), figures.percent(at["time_share"]))
        for at in audit["operators"]
    )
    columns = ("operator", "nodes", "of the multiply-accumulates", "of the time")
    # Shares of the time differ from bundle to bundle a little; these are the first one's.
    yield Table(f"Operators of {targets.partition(', ')[0]}", columns, operators, folded=True)


def _tensor_section(report: At) -> Section:
    title = "Error along the depth"
    found = _distinct(report, "tensors")
    if not found:
        return Section(title, absent="The int8 bundles were not compared with float tensor by tensor.")
    notes: list[Sentence] = [
        (
            "The signal-to-noise ratio of each module's output against the float graph, on the golden requests: the "
            "higher the nearer; the worst is marked. A gap is a module without error.",
        )
    ]
    charts, tables = [], []
    for targets, tensors in found:
        modules = [at["module"].value for at in tensors]
        ratios = [figures.decibels(at["snr_db"]) for at in tensors]
        charts.append(depth_line(f"Signal-to-noise ratio, {targets}", modules, ratios, unit="dB"))
        measured = [at for at in tensors if at["snr_db"].value is not None]
        if measured:
            worst = min(measured, key=lambda at: float(at["snr_db"].value))
            place = (f"{targets}: worst in ", text(worst["module"]), ", ", figures.decibels(worst["snr_db"]), ".")
            notes.append(place)
        rows = tuple((text(at["module"]), _snr(at), figures.score(at["cosine"])) for at in tensors)
        tables.append(Table(f"Every module of {targets}", ("module", "SNR", "cosine"), rows, folded=True))
    return Section(title, tuple(notes), tuple(charts), tuple(tables))


def _sensitivity_section(report: At) -> Section:
    title = "Sensitivity"
    ranking = report.get("sensitivity")
    if not ranking:
        return Section(title, absent=f"Layers were not ranked: {_why_nothing_put_back(report)}")
    layers = list(ranking["layers"])
    # What not every ranking tells.
    known = {"min_cosine": ("worst cosine", figures.score), "macs_share": ("of the work", figures.percent)}
    more = {key: column for key, column in known.items() if all(key in at.value for at in layers)}
    bars = [Bar(at["layer"].value, figures.score(at["drop"]), "int8") for at in layers[:WORST]]
    rows = tuple(
        (
            text(at["layer"]),
            text(at["scheme"]),
            figures.score(at["drop"]),
            figures.megabytes(at["bytes"]),
            figures.megabytes(at["float_bytes"]),
            *(form(at[key]) for key, (_, form) in more.items()),
        )
        for at in layers
    )
    note: Sentence = (
        f"The drop of {ranking['metric'].value} where one layer alone is quantized, on ",
        figures.count(ranking["texts"]),
        " texts, measured in ",
        figures.seconds(ranking["seconds"]),
        ".",
    )
    which = f"The {len(bars)} most sensitive of {len(layers)} layers"
    columns = ("layer", "scheme", "drop alone", "quantized", "float", *(heading for heading, _ in more.values()))
    return Section(
        title, (note,), (bar_chart(which, bars),) if bars else (), (Table("All layers", columns, rows, folded=True),)
    )


def _put_back_section(report: At) -> Section:
    title = "Put back"
    layers = list(report.get("put_back"))
    if not layers:
        return Section(title, absent=f"No layer was put back: {_why_nothing_put_back(report)}")
    rows = tuple(
        (
            text(at["layer"]),
            text(at["to"]),
            text(at["reason"]),
            figures.score(at["drop_alone"]),
            figures.megabytes(at["bytes_added"]),
        )
        for at in layers
    )
    steps = [(figures.count(at["layers"]), figures.score(at["drop"])) for at in report.get("put_back_steps")]
    charts = []
    if steps:
        charts.append(step_chart("What it took", steps, x="layers put back", y="worst drop", limit=drop_limit(report)))
    columns = ("layer", "to", "reason", "drop alone", "added")
    measured = tuple(steps)
    tables = (
        Table("", columns, rows),
        Table("Every step that was measured", ("layers put back", "worst drop"), measured, folded=True),
    )
    return Section(title, charts=tuple(charts), tables=tables if steps else tables[:1])


def _spread_section(report: At) -> Section:
    rows = tuple(
        (
            text(bundle["target"]),
            text(cpu),
            *(figures.score(at[key]) for key in ("max_abs", "mean_cosine", "min_cosine")),
        )
        for bundle in report["bundles"]
        for cpu, at in bundle.get("spread").items()
    )
    if not rows:
        return Section("Other CPUs", absent="What other CPUs would answer was not emulated.")
    note: Sentence = ("How far the golden requests' answers are from the recorded ones, by emulated CPU.",)
    columns = ("bundle for", "CPU", "largest difference", "mean cosine", "worst cosine")
    return Section("Other CPUs", (note,), (), (Table("", columns, rows),))


def _choices_section(report: At) -> Section:
    title = "Choices by measurement"
    choices = report.get("choices")
    if not choices:
        return Section(title, absent="No form of the graph was chosen by measurement; all are the defaults.")
    taken = {name: at.value for name, at in choices.items() if name not in ("source", "measured")}
    said = ", ".join(f"{name}: {_word(value)}" for name, value in taken.items())
    origin = {
        "measured": "measured in this run",
        "kept": "kept from an earlier measurement on this machine",
        "replayed": "those of a bundle that was named",
        "default": "the defaults: nothing was measured",
    }
    source = choices["source"].value
    notes: list[Sentence] = [(f"{said} ({origin.get(source, source)}).",)]
    forms = tuple(
        (text(at["target"]), text(", ".join(f"{name}: {form.value}" for name, form in at["forms"].items())))
        for at in report["bundles"]
        if at.get("forms")
    )
    tables = [Table("Forms of each bundle", ("bundle for", "forms"), forms)] if forms else []
    rows = tuple(
        (
            text(at["choice"]),
            text(at["option"]),
            text("yes", "good") if taken.get(at["choice"].value) == at["option"].value else text("no", "muted"),
            *(figures.times(at[key]) for key in ("ratio", "p10", "p90")),
        )
        for at in choices["measured"]
    )
    if rows:
        notes.append(("A ratio says how many times as fast as the default form the option is.",))
        tables.insert(0, Table("", ("choice", "option", "taken", "ratio", "p10", "p90"), rows))
    return Section(title, tuple(notes), (), tuple(tables))


def _distinct(report: At, name: str, inside: str = "") -> list[tuple[str, At]]:
    """The bundles that have `name`, those where it is the same (in the member `inside`) as one; their targets."""
    found: list[tuple[list[str], At]] = []
    for bundle in report["bundles"]:
        at = bundle.get(name)
        if not at:
            continue
        same = [targets for targets, other in found if _part(other, inside) == _part(at, inside)]
        if same:
            same[0].append(bundle["target"].value)
        else:
            found.append(([bundle["target"].value], at))
    return [(", ".join(targets), at) for targets, at in found]


def _part(at: At, inside: str) -> object:
    return at[inside].value if inside else at.value


def _why_nothing_put_back(report: At) -> str:
    budget = report["recipe"].get("budget")
    if budget.get("accuracy_drop").value is None:
        return "the budget sets no accuracy_drop."
    if budget.get("put_back").value == "none":
        return "the budget says put_back: none."
    verdicts = {at["met"].value for at in report["budget"] if at["what"].value == "accuracy_drop"}
    if False in verdicts:
        return "accuracy_drop is missed, and no layer was found that would help."
    return "the budget was met at once." if True in verdicts else "accuracy_drop was not measured."


def _snr(tensor: At) -> Cell:
    equal = tensor["snr_db"].value is None and tensor["cosine"].value == 1
    return text("equal", "muted") if equal else figures.decibels(tensor["snr_db"])


def _word(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)

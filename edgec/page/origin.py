"""Where a build comes from: what was asked for, what the passes did, the machine, the versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from . import figures
from .figures import At, Cell, Sentence, text
from .view import Section, Table


def asked(report: At) -> Iterator[tuple[str, str]]:
    """The recipe in a few lines; all of it stands in `recipe_text`."""
    recipe = report["recipe"]
    yield "Model", str(report["source"]["model"].value)
    yield "Task", str(recipe["model"].get("task").value or "as the model says")
    yield "Targets", ", ".join(str(at.value) for at in recipe["targets"])
    yield "Passes", "; ".join(_pass(at.value) for at in recipe["passes"]) or "none"
    for name, heading in (
        ("train", "Trained on"),
        ("validation", "Validated on"),
        ("unlabelled", "Read without labels"),
        ("calibrate", "Calibrated on"),
        ("evaluate", "Judged on"),
    ):
        data = recipe["data"].get(name) if recipe.get("data") else None
        if data:
            yield heading, _plain(data["text"].value)


def recipe_text(report: At) -> str:
    return json.dumps(report["recipe"].value, indent=1, ensure_ascii=False)


def making_section(report: At) -> Section:
    """What the passes report, and the texts that they were calibrated on."""
    notes: list[Sentence] = []
    calibration = report.get("calibration")
    if calibration:
        notes.append(("Calibrated on ", figures.count(calibration["texts"]), " texts."))
    elif "calibration" in report.value:
        notes.append(("No pass was calibrated on texts.",))
    tables = []
    data = report.get("data")
    if data:
        columns = ("rows", "skipped", "repaired")
        rows = tuple((text(name), *(figures.count(at[column]) for column in columns)) for name, at in data.items())
        tables.append(Table("Data of the passes", ("data", "rows", "malformed and skipped", "tags repaired"), rows))
    if calibration.get("groups"):
        rows = tuple((text(name), figures.count(at)) for name, at in calibration["groups"].items())
        tables.append(Table("Texts of the calibration by group", ("group", "texts"), rows, folded=True))
    facts = tuple(
        (text(at["name"]), text(name), _fact(fact))
        for at in report["passes"]
        for name, fact in at["report"].items()
        if not isinstance(fact.value, dict | list)
    )
    if facts:
        tables.append(Table("What the passes report", ("pass", "figure", "value"), facts))
    reasons = tuple(
        (text(at["name"]), text(layer), text(reason))
        for at in report["passes"]
        for layer, reason in at["report"].get("left_alone").items()
    )
    if reasons:
        tables.append(Table(f"Layers left alone ({len(reasons)})", ("pass", "layer", "reason"), reasons, folded=True))
    return Section("How it was made", tuple(notes), (), tuple(tables))


def machine_section(report: At) -> Section:
    machine = report["machine"]
    facts: list[tuple[str, Cell]] = [("device", text(report["device"]))]
    facts += [(name, text(machine.get(name))) for name in ("cpu", "board", "arch", "governor", "os")]
    facts += [(name, figures.count(machine.get(name))) for name in ("cores", "cpus", "usable")]
    facts += [("memory", figures.mebibytes(machine.get("memory_mb")))]
    facts += [("the run took", figures.seconds(report["seconds"]))]
    shown = tuple((text(name), cell) for name, cell in facts if cell.text != figures.NOTHING)
    versions = [("device", machine.get("versions")), ("build", report["versions"])]
    packages = tuple((text(where), text(name), text(at)) for where, found in versions for name, at in found.items())
    return Section(
        "Machine and versions",
        tables=(
            Table("", ("fact", "value"), shown),
            Table("Versions", ("where", "package", "version"), packages, folded=True),
        ),
    )


def _pass(step: Any) -> str:
    """A pass of a recipe: its name, or {name: options}."""
    if not isinstance(step, dict):
        return str(step)
    return ", ".join(
        name + (f" ({', '.join(f'{key}: {_plain(value)}' for key, value in options.items())})" if options else "")
        for name, options in step.items()
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fact(at: At) -> Cell:
    if isinstance(at.value, bool) or not isinstance(at.value, int | float):
        return text(at)
    return figures.count(at) if isinstance(at.value, int) else figures.digits(at)

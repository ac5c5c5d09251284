"""How the passes learned: loss and score by step."""

from __future__ import annotations

from collections.abc import Iterator

from . import figures
from .charts import Chart, line_chart
from .figures import At, Cell, Sentence
from .view import Section, Table


def sections(report: At) -> tuple[Section, ...]:
    """One, or none where no pass was trained."""
    found = [one for step in report["passes"] for one in _trainings(str(step["name"].value), step["report"])]
    if not found:
        return ()
    notes: list[Sentence] = []
    charts: list[Chart] = []
    tables: list[Table] = []
    for name, at in found:
        notes.append(_note(name, at))
        charts.append(line_chart(f"{name}: loss", _points(at["losses"]), x="step", y="loss"))
        scores = at.get("scores")
        names = list(next(iter(scores.value.values()))) if scores else []
        rows = tuple((_step(step), *(figures.score(one[figure]) for figure in names)) for step, one in scores.items())
        if names:
            points = [(row[0], row[1]) for row in rows]
            best = at.get("best_step").value
            marked = next((index for index, (step, _) in enumerate(points) if step.value == best), None)
            charts.append(line_chart(f"{name}: {names[0]}", points, x="step", y=names[0], marked=marked))
            tables.append(Table(f"{name}: scores on data.validation", ("step", *names), rows, folded=True))
    return (Section("How it learned", tuple(notes), tuple(charts), tuple(tables)),)


def _trainings(name: str, at: At) -> Iterator[tuple[str, At]]:
    """Every training in the report of a pass: the pass itself, its phases, what comes after it."""
    if at.get("losses"):
        yield name, at
    for key, inner in at.items():
        if isinstance(inner.value, dict) and key not in ("losses", "scores"):
            yield from _trainings(f"{name}, {key}", inner)
        elif isinstance(inner.value, list):
            for number, one in enumerate(inner, 1):
                if isinstance(one.value, dict):
                    yield from _trainings(f"{name}, {key} {number}", one)


def _note(name: str, at: At) -> Sentence:
    said: list[str | Cell] = [f"{name}: ", figures.count(at["steps"]), " steps"]
    if at.get("rows"):
        said += [" on ", figures.count(at["rows"]), " rows"]
    if at.get("best_step"):
        said += [", of which the weights of step ", figures.count(at["best_step"]), " were kept"]
    if at.get("stopped_early").value:
        said += [", ended early by patience"]
    return (*said, ".")


def _points(losses: At) -> list[tuple[Cell, Cell]]:
    return [(_step(step), figures.digits(at)) for step, at in losses.items()]


def _step(step: str) -> Cell:
    """The name of a member, which is a number."""
    return Cell(step, int(step))

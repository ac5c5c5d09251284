"""Puts the sections of the builds into the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from edgec.errors import UserError

from . import inside, learning, origin, outcome
from .comparison import comparison_section
from .figures import At
from .view import Build

_HERE = Path(__file__).parent


def render(reports: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    """The page. Raises UserError where a report lacks what its schema has."""
    names = _names([folder for folder, _ in reports])
    places = At([data for _, data in reports])
    builds = []
    for index, (folder, _) in enumerate(reports):
        try:
            builds.append(_build(names[index], folder, places[index]))
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            cause = f"a value is of another kind than it should be ({error})"
            if isinstance(error, KeyError):
                cause = f"{str(error.args[0]).removeprefix(f'/{index}')} is missing"
            raise UserError(
                f"the report of {folder} is damaged: {cause}", "run the command of the build again"
            ) from error
    compared = None
    if len(builds) > 1:
        compared = comparison_section(dict(zip(names, places, strict=True)))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = "edgec report: " + ", ".join(names)
    return environment.get_template("page.html").render(title=title, builds=builds, compared=compared)


def _build(name: str, folder: Path, report: At) -> Build:
    return Build(
        name=name,
        place=str(folder),
        summary=str(report["recipe"].get("summary").value or ""),
        headline=outcome.headline(report),
        met=outcome.met(report),
        asked=tuple(origin.asked(report)),
        sections=(
            outcome.budget_section(report),
            outcome.size_section(report),
            outcome.speed_section(report),
            outcome.quality_section(report),
            *inside.sections(report),
            *learning.sections(report),
            origin.making_section(report),
            origin.machine_section(report),
        ),
        recipe=origin.recipe_text(report),
        command=str(report["command"].value),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their whole paths where two have the same name."""
    short = [folder.absolute().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]

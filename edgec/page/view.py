"""What the page is made of. The template (page.html) draws it; it knows nothing of reports."""

from __future__ import annotations

from dataclasses import dataclass

from .charts import Chart
from .figures import NOTHING, Cell, Sentence


@dataclass(frozen=True)
class Table:
    """folded: shown when the reader unfolds its title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False

    def of_figures(self, column: int) -> bool:
        """Whether the column has figures alone; they are aligned to the right."""
        cells = [row[column] for row in self.rows]
        return any(cell.is_figure for cell in cells) and all(cell.is_figure or cell.text == NOTHING for cell in cells)


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it. absent: why there is nothing to show."""

    title: str
    notes: tuple[Sentence, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    absent: str = ""


@dataclass(frozen=True)
class Build:
    """met: whether its budget was; None where there was none, or where it could not be judged.

    asked: what the recipe says, by heading. recipe: all of it, as JSON.
    """

    name: str
    place: str
    summary: str
    headline: Sentence
    met: bool | None
    asked: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    recipe: str
    command: str

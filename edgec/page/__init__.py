"""One self-contained HTML page about one or several builds, made from their report.json alone.

The page needs no network and no script: charts are SVG inside it, tables are tables. matplotlib and jinja2 are
imported when a page is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgec.errors import UserError
from edgec.files import write_whole

from .reading import read_report, require_schema

__all__ = ["read_report", "write_page"]


def write_page(reports: Sequence[tuple[Path, Mapping[str, Any]]], out: Path) -> None:
    """Write the page about `reports`, (folder of the build, content of its report.json), to the file `out`.

    The page appears whole or not at all. Raises UserError for a report that the page cannot be made from, and
    SystemFailure where `out` cannot be written.
    """
    from .html import render

    builds = [(folder, _as_written(data)) for folder, data in reports]
    for folder, data in builds:
        require_schema(data, folder)
    write_whole(out, render(builds))


def _as_written(data: Mapping[str, Any]) -> Any:
    """What the file holds: tuples are lists there. Half a surrogate pair, which no page can hold, becomes "?"."""
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the report is no JSON: {error}", "run the command of the build again") from None
    return json.loads(text.encode("utf-8", "replace"))

"""report.json of a build, as far as the page relies on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from edgec.errors import UserError

REPORT_FILE: Final = "report.json"
SCHEMAS: Final = (1, 2)
"""What the page reads. Schema 1 lacks what schema 2 adds; the page says so section by section."""


def read_report(folder: Path) -> Mapping[str, Any]:
    """The report of the build in `folder`. Raises UserError where there is none, or none that this edgec reads."""
    path = folder / REPORT_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {REPORT_FILE}", "give a folder that `edgec compress` wrote")
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}", "run the command of the build again") from None
    require_schema(data, path)
    report: Mapping[str, Any] = data
    return report


def require_schema(data: Any, place: Path) -> None:
    """Raises UserError for what is no report of a schema that the page reads."""
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if type(schema) is not int:
        raise UserError(f"{place} is no report of edgec: it has no schema", "give a folder that `edgec compress` wrote")
    if schema > max(SCHEMAS):
        raise UserError(f"{place} has schema {schema}; this edgec reads up to {max(SCHEMAS)}", "update edgec")
    if schema not in SCHEMAS:
        raise UserError(f"{place} has schema {schema}, which no edgec wrote", "run the command of the build again")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")

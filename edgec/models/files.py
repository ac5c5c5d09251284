"""Reading the JSON files and the card of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from edgec.errors import ModelError


def read_json(path: Path) -> Any:
    """The parsed file. Raises ModelError, naming it, where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "the file was changed or cut short: get it again") from None


def read_object(path: Path) -> dict[str, Any]:
    """The same, where the file holds one JSON object."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise ModelError(f"{path} should hold a JSON object", "the file was changed or cut short: get it again")
    return data


def card_license(folder: Path) -> str | None:
    """The `license:` of the front matter of README.md, None where the card does not say."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None  # a card is prose; a broken one is no reason not to load the model
    value = front.get("license") if isinstance(front, dict) else None
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return None if value is None else str(value)


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

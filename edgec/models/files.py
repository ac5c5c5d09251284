"""Reading the JSON files and the card of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

from edgec.errors import ModelError

_MOST_LICENSE_BYTES: Final = 256_000


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


def license_files(folder: Path) -> str | None:
    """LICENSE* and NOTICE* of a model folder, each below its name, in the order of their names; None without any.

    Beyond 256 kB the rest is left out, and the text says so.
    """
    paths = [
        path for path in folder.iterdir() if path.name.upper().startswith(("LICENSE", "NOTICE")) and path.is_file()
    ]
    texts = []
    room = _MOST_LICENSE_BYTES
    for path in sorted(paths):
        with path.open("rb") as stream:
            content = stream.read(room + 1)
        text = content[:room].decode("utf-8", "replace").strip()
        cut = "\n(the rest is left out here: see the file beside the model)" if len(content) > room else ""
        texts.append(f"{path.name}:\n\n{text}{cut}\n")
        room = max(0, room - len(content))
    return "\n".join(texts) or None


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

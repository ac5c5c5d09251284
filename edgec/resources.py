"""Finds the shipped recipes and targets: beside the package in a checkout, inside it in the wheel."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from edgec.errors import SystemFailure, UserError

Kind = Literal["recipe", "target"]

_PACKAGE = Path(__file__).resolve().parent


def recipes_dir() -> Path:
    """The folder of the shipped recipes; their texts are in its subfolder `data`."""
    return _folder("recipes")


def names(kind: Kind) -> tuple[str, ...]:
    """The names of all shipped files of a kind, sorted."""
    return tuple(sorted(path.stem for path in _folder(f"{kind}s").glob("*.yaml")))


def is_path(name_or_path: str) -> bool:
    """Whether a recipe or target is given by path ("my/recipe.yaml") and not by the name of a shipped one."""
    return "/" in name_or_path or "\\" in name_or_path or name_or_path.endswith((".yaml", ".yml"))


def find(kind: Kind, name_or_path: str) -> Path:
    """The file of a recipe or target, given by path or by shipped name.

    Raises UserError where there is none; the hint has the nearest names.
    """
    if is_path(name_or_path):
        path = Path(name_or_path)
        if path.is_file():
            return path
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UserError(f"the {kind} file {name_or_path} {what}", f"`edgec {kind}s list` shows those that ship")
    if name_or_path in names(kind):
        return _folder(f"{kind}s") / f"{name_or_path}.yaml"
    if Path(name_or_path).is_file():
        raise UserError(
            f"there is no {kind} named {name_or_path!r}", f"for the file of that name write ./{name_or_path}"
        )
    hint = suggestion(name_or_path, names(kind))
    if not hint.startswith("did"):
        hint += f"; a {kind} file of your own is given with its ending .yaml"
    raise UserError(f"there is no {kind} named {name_or_path!r}", hint)


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to offer for a misspelt word: the nearest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "none is known"


def _folder(name: str) -> Path:
    # The wheel's copy comes first: beside an installed package, `recipes` could be anybody's folder.
    installed = _PACKAGE / "_resources" / name
    if installed.is_dir():
        return installed
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise SystemFailure(f"the shipped {name} are missing from {_PACKAGE}", "install edgec again")

"""Writes what the docs take from the code: `python docs/generate.py`, after a command or a pass option has changed.

docs/cli.md is the help of every command. Between two marks, docs/passes/NAME.md has a table of the pass's options and
docs/architecture.md the layers that import-linter checks. tests/docs checks that all are current.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from edgec.cli.main import app
from edgec.passes import PASSES

DOCS: Final = Path(__file__).parent
WIDTH: Final = 100
BEGIN: Final = "<!-- written by docs/generate.py -->"
END: Final = "<!-- end -->"

_PAGES: Final = {
    "edgec compress": ("recipes.md", "report.md"),
    "edgec export": ("models.md", "targets.md", "bundle.md"),
    "edgec verify": ("bundle.md", "emulation.md"),
    "edgec audit": ("audit.md",),
    "edgec bench": ("bench.md",),
    "edgec report": ("report.md",),
    "edgec run": ("embedding.md",),
    "edgec evaluate": ("evaluate.md",),
    "edgec index": ("ask.md", "store.md"),
    "edgec ask": ("ask.md",),
    "edgec sensitivity": ("sensitivity.md",),
    "edgec doctor": ("doctor.md",),
    "edgec targets": ("targets.md",),
    "edgec recipes": ("recipes.md",),
}
_HEAD: Final = """# The command line

This page is written by `python docs/generate.py` from the commands' own help.

- stdout carries data, stderr everything else. `--json FILE` writes every figure that a command yields; `-` is stdout.
- A DEVICE is `local` (the default), `ssh://user@host[:port]` or `qemu://CPU`; see [bench](bench.md) and
  [emulation](emulation.md).
- Exit codes: 0 done; 1 a check or a budget failed, or a bundle was refused; 2 the input is wrong; 3 a device or a file
  system failed; 130 interrupted.
- An error is `error: ` with the cause and `hint: ` with the remedy. `EDGEC_TRACEBACK=1` shows where it came from.
- `compress`, `export`, `verify`, `audit`, `bench`, `run`, `evaluate`, `sensitivity`, `index` and `ask` are functions
  of `edgec`, too.
"""


def generated() -> dict[Path, str]:
    """What the generated files should hold."""
    tables = {DOCS / "passes" / f"{name}.md": options_table(cls) for name, cls in PASSES.items()}
    tables[DOCS / "architecture.md"] = layers_table()
    return {DOCS / "cli.md": cli_page(), **{page: _between_marks(page, table) for page, table in tables.items()}}


def cli_page() -> str:
    """docs/cli.md."""
    parts = [_HEAD]
    for name, help_text in _commands(typer.main.get_command(app), "edgec"):
        links = ", ".join(f"[{page.removesuffix('.md')}]({page})" for page in _PAGES.get(name, ()))
        parts.append(f"## {name}\n\n" + (f"More: {links}.\n\n" if links else "") + f"```text\n{help_text}\n```\n")
    return "\n".join(parts)


def options_table(cls: type) -> str:
    """A row for each field of a pass: its type, its default, and its meaning from the docstring of the class.

    Below an option that has options of its own there is a row for each of these.
    """
    rows = ["| option | type | default | meaning |", "|---|---|---|---|", *_option_rows(cls, "")]
    return "\n".join(rows) + "\n"


def _option_rows(cls: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    meanings = _meanings(cls, [field.name for field in fields])
    for f in fields:
        yield f"| `{prefix}{f.name}` | {_type(hints[f.name])} | {_default(f)} | {meanings[f.name]} |"
        for inner in filter(dataclasses.is_dataclass, typing.get_args(hints[f.name])):
            yield from _option_rows(inner, f"{prefix}{f.name}.")


def layers_table() -> str:
    """The modules in the layers of pyproject.toml's import contract, the highest first."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = ["| layer | module | what it is |", "|---|---|---|"]
    for number, layer in enumerate(layers, start=1):
        for module in layer.split(" | "):
            rows.append(f"| {number} | `{module}` | {_summary(module)} |")
    return "\n".join(rows) + "\n"


def _summary(module: str) -> str:
    """The first sentence of a module's docstring, read without importing it."""
    place = DOCS.parent / module.replace(".", "/")
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0].replace("|", "\\|")


def _between_marks(page: Path, content: str) -> str:
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n{END}{rest.split(END)[1]}"


def _commands(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """(full name, help) of a command and of those below it."""
    context = command.make_context(name, [], resilient_parsing=True, terminal_width=WIDTH)
    help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield name, help_text
    for child, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{name} {child}")


def _meanings(cls: type, names: list[str]) -> dict[str, str]:
    """The sentences of the docstring that follow "NAME: ", up to the next one."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    pieces = re.split(rf"(?:^|(?<=\. ))({'|'.join(names)}): ", text)
    found = dict(zip(pieces[1::2], map(_sentence, pieces[2::2]), strict=True))
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"the docstring of {cls.__name__} does not explain {', '.join(missing)}")
    return found


def _sentence(text: str) -> str:
    """With a capital letter, and quoted words as code."""
    text = re.sub(r'"([\w-]+)"', r"`\1`", text.strip().replace("|", "\\|"))
    return text[:1].upper() + text[1:]


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        union = typing.get_origin(arguments[0]) in (types.UnionType, typing.Union)
        kinds = typing.get_args(arguments[0]) if union else arguments[:1]
        return "list of " + " or ".join("nulls" if kind is type(None) else f"{_type(kind)}s" for kind in kinds)
    if origin is dict:
        return "mapping"
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if argument is type(None) else _type(argument) for argument in arguments)
    if dataclasses.is_dataclass(hint):
        return "mapping"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    return "required" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`".replace('"', "")


def main() -> None:
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

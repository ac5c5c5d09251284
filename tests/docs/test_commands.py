"""Every `edgec` command that the documentation shows is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import PAGES, command_lines, inline_commands, name

from edgec.cli.main import app

WRITTEN = [page for page in PAGES if page.name != "cli.md"]  # that one is generated, and checked as a whole


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `words` name, and its arguments."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def unknown_options(line: str) -> set[str]:
    command, _ = resolve(line.split()[1:])
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)) - known - {"--help"}


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_options_exist(page: Path) -> None:
    for line in [*command_lines(page, "edgec"), *inline_commands(page, "edgec")]:
        assert "--" in line or resolve(line.split()[1:])[0].name != "edgec", f"{name(page)}: no such command: {line}"
        assert unknown_options(line) == set(), f"{name(page)}: {line}"


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_whole_commands_parse(page: Path) -> None:
    for line in command_lines(page, "edgec"):
        synopsis = "[--" in line or "..." in line
        if not synopsis:
            command, arguments = resolve(shlex.split(line)[1:])
            command.make_context(command.name, arguments)


@pytest.mark.parametrize("line", ["edgec bench BUNDLE --onn local", "edgec verify BUNDLE --under arm64"])
def test_a_stale_option_would_be_found(line: str) -> None:
    assert unknown_options(line) != set()

"""The project's Markdown pages, taken apart."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "runtime/README.md",
        ROOT / "benchmarks/README.md",
    ]
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n|^\n)+", re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return [body for kind, body in _FENCE.findall(text(page)) if kind == language]


def prose(page: Path) -> str:
    """The page without code blocks."""
    return _INDENTED.sub("\n", _FENCE.sub("", text(page)))


def command_lines(page: Path, program: str) -> list[str]:
    """Lines of code blocks, fenced or indented, that start `program`; without comments."""
    blocks = [body for _, body in _FENCE.findall(text(page))] + _INDENTED.findall(_FENCE.sub("", text(page)))
    lines = (line.strip() for block in blocks for line in block.splitlines())
    return [_without_comment(line) for line in lines if line.startswith(f"{program} ")]


def inline_commands(page: Path, program: str) -> list[str]:
    """`program ...` in running text and tables."""
    return [" ".join(command.split()) for command in re.findall(rf"`({program} [^`]+)`", text(page))]


def _without_comment(line: str) -> str:
    return re.split(r"\s#\s", line)[0].strip()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

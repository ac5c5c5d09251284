"""What the user sees: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from edgec_runtime.cpu import MOST_THREADS

from edgec.errors import SystemFailure
from edgec.files import write_whole

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.text import Text

_PLAIN_WIDTH: Final = 200
SECONDS_BETWEEN_LINES: Final = 60.0
"""How often a long step tells a log file how far it is."""
_NAME_A_FILE: Final = "name a file that can be written, or - for stdout"
_live: Progress | None = None
_lock = threading.Lock()
_counted: tuple[str, int, Callable[[int], None]] | None = None
"""The step that `say` last gave a bar: its label, its total, and what moves the bar."""


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table on stdout; columns of figures are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stop_progress()
    # Little padding: on 80 columns every character that a table saves is one that no word is broken for.
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, name in enumerate(columns):
        figures = bool(rows) and all(_is_figure(str(row[index])) for row in rows)
        drawn.add_column(Text(name), justify="right" if figures else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    # A pipe has no width: a table cut to 80 columns would lose data.
    screen = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    if title:
        # Not the table's own title, which is folded to the width of the columns.
        screen.print(Text(title), soft_wrap=True)
    screen.print(drawn)


def info(message: str) -> None:
    """A line on stderr, above the progress bars."""
    with _lock:
        if _live is not None:
            _live.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)  # noqa: T201 - the one place that may print


def say(message: str) -> None:
    """A step that begins, or ("label 3/20") how far it is: then a bar where stderr is a terminal.

    Steps follow each other: the bar of the one before is filled when the next begins.
    """
    global _counted
    counted = re.fullmatch(r"(.*?)\s*(\d+)/(\d+)", message)
    label = counted[1] if counted is not None and sys.stderr.isatty() else None
    if _counted is not None and _counted[0] != label:
        _, total, move = _counted
        move(total)
        _counted = None
    if counted is None or label is None:
        info(message)
        return
    if _counted is None:
        _counted = label, int(counted[3]), progress(label, int(counted[3]))
    _counted[2](int(counted[2]))


def progress(label: str, total: int) -> Callable[[int], None]:
    """A bar on stderr (edgec.state.Progress). Where stderr is no terminal: a line when the step begins, and one every
    SECONDS_BETWEEN_LINES that it takes.

    The bar ends when `total` is reported.
    """
    global _live
    if not sys.stderr.isatty():
        info(label)
        return _by_lines(label, total)
    with _lock:
        if _live is None:
            _live = _bars()
            _live.start()
        bars = _live
    task = bars.add_task(label, total=total or None)

    def move(done: int) -> None:
        bars.update(task, completed=done)
        if bars.finished:
            stop_progress()  # the full bar stays where it is, and what follows is told below it

    return move


def _by_lines(label: str, total: int) -> Callable[[int], None]:
    told = time.monotonic()

    def move(done: int) -> None:
        nonlocal told
        if done < total and time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            info(f"{label}: {done} of {total}")

    return move


def stop_progress() -> None:
    """Leave the terminal as it was; called before data or an error is printed, and at the end."""
    global _live, _counted
    with _lock:
        if _live is not None:
            _live.stop()
            _live = None
            _counted = None


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
    )


def write_json(path: Path, data: Any) -> None:
    """Write JSON to a file, or to stdout where the path is "-"."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    if str(path) == "-":
        stop_progress()
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    write_whole(path, text)


def json_option(help: str) -> Any:
    """The option --json of a command, checked before its work, which would be lost with it."""
    return typer.Option("--json", metavar="FILE", callback=writable, help=help)


def threads_option(help: str) -> Any:
    """The option --threads of a command."""
    return typer.Option("--threads", min=1, max=MOST_THREADS, help=help)


def writable(path: Path | None) -> Path | None:
    """The path of an option, unless nothing can be written there: SystemFailure."""
    if path is None or str(path) == "-":
        return path
    if path.is_dir():
        raise SystemFailure(f"{path} is a folder", _NAME_A_FILE)
    place = path.absolute() if path.exists() else path.absolute().parent
    while not place.exists():
        place = place.parent
    if not path.exists() and not place.is_dir():
        raise SystemFailure(f"{path} cannot be written: {place} is not a folder", _NAME_A_FILE)
    if not os.access(place, os.W_OK):
        raise SystemFailure(f"{path} cannot be written: {place} is read-only", _NAME_A_FILE)
    return path


def _is_figure(cell: str) -> bool:
    return not cell or cell in "-–" or cell[0].isdigit() or (cell[0] in "+-−" and len(cell) > 1)

"""The charts of the page, drawn by matplotlib. Each is as wide as a phone, so that its text is never made smaller."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import Cell
from .svg import COLOURS, gid, inline

WIDTH: Final = 360
"""Of every chart, in px; heights too are in px."""

_LONGEST_LABEL: Final = 40
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgec",
    # Names come from models and recipes: a $ in them is a $.
    "text.parse_math": False,
    "path.simplify": False,
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["grid"],
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Chart:
    """legend: role and meaning of each colour, where there are several."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart. spread: the ends of its error bar. heading: stands above it, where a group begins."""

    label: str
    figure: Cell
    role: str
    spread: tuple[float, float] | None = None
    heading: str = ""


def bar_chart(
    title: str, bars: Sequence[Bar], *, limit: Cell | None = None, legend: tuple[tuple[str, str], ...] = ()
) -> Chart:
    """Horizontal bars from 0, each below its label and its figure. limit: marked on every bar."""
    row, heading, foot = 34, 24, 18 if limit else 0
    height = sum(row + heading * bool(bar.heading) for bar in bars) + foot
    largest = max(abs(value) for bar in bars for value in (_number(bar.figure), *(bar.spread or ())))
    largest = max(largest, 0.0 if limit is None else _number(limit)) or 1.0
    with _figure(height) as figure:
        axes = figure.add_axes((0.005, 0, 0.99, 1), xlim=(0, largest * 1.01), ylim=(height, 0))
        axes.axis("off")
        top = 0.0
        for bar in bars:
            if bar.heading:
                axes.text(0, top + heading - 6, _printable(bar.heading), weight="bold")
                top += heading
            _draw_bar(axes, bar, top, limit)
            top += row
        if limit is not None:
            place = _number(limit)
            side = "right" if place > largest / 2 else "left"
            axes.text(place, height - 5, f"limit {limit.text}", color=COLOURS["bad"], ha=side)
        return Chart(title, inline(figure, f"{title}. {_said(bars)}"), legend)


def _draw_bar(axes: Axes, bar: Bar, top: float, limit: Cell | None) -> None:
    across = axes.get_yaxis_transform()
    axes.text(0, top + 12, _short(bar.label), transform=across)
    axes.text(1, top + 12, bar.figure.text, transform=across, ha="right")
    middle = top + 23
    shape: dict[str, Any] = {"height": 9, "color": COLOURS[bar.role], "linewidth": 0}
    axes.barh(middle, max(_number(bar.figure), 0), **shape)[0].set_gid(gid(bar.figure))
    if bar.spread:
        axes.plot(bar.spread, [middle] * 2, color=COLOURS["ink"], linewidth=1.2, solid_capstyle="butt")
        for end in bar.spread:
            axes.plot([end] * 2, [middle - 3, middle + 3], color=COLOURS["ink"], linewidth=1.2)
    if limit is not None:
        axes.plot([_number(limit)] * 2, [middle - 7, middle + 7], color=COLOURS["bad"], linewidth=2)


def stacked_columns(
    title: str, layers: Sequence[str], stacks: Sequence[tuple[str, str, Sequence[Cell]]], *, unit: str, scale: float
) -> Chart:
    """A column a layer. stacks: role, meaning and a figure a layer, from the bottom up; they are drawn over `scale`."""
    with _figure(190) as figure:
        axes = figure.add_axes((0.12, 0.2, 0.87, 0.68), xlim=(-0.6, len(layers) - 0.4))
        floor = [0.0] * len(layers)
        for role, _, cells in stacks:
            shown = [(index, cell) for index, cell in enumerate(cells) if cell.value]
            heights = [_number(cell) / scale for _, cell in shown]
            places, floors = [index for index, _ in shown], [floor[index] for index, _ in shown]
            columns = axes.bar(places, heights, 0.86, floors, color=COLOURS[role], linewidth=0)
            for (index, cell), height, column in zip(shown, heights, columns, strict=True):
                column.set_gid(gid(cell))
                floor[index] += height
        _depth_axis(axes, layers)
        axes.set_title(unit, loc="left", fontsize=12, color=COLOURS["muted"])
        legend = tuple((role, meaning) for role, meaning, cells in stacks if any(cell.value for cell in cells))
        totals = "; ".join(
            f"{meaning}: {sum(cell.value or 0 for cell in cells) / scale:.1f}" for _, meaning, cells in stacks
        )
        return Chart(title, inline(figure, f"{title}, {unit}, {len(layers)} layers. {totals}"), legend)


def depth_line(title: str, layers: Sequence[str], cells: Sequence[Cell], *, unit: str) -> Chart:
    """A figure a layer along the depth, the least marked; a missing figure leaves a gap."""
    values = [float("nan") if cell.value is None else float(cell.value) for cell in cells]
    with _figure(190) as figure:
        axes = figure.add_axes((0.12, 0.2, 0.87, 0.68), xlim=(-0.6, len(layers) - 0.4))
        axes.plot(range(len(layers)), values, color=COLOURS["int8"], linewidth=1.6, gid="line")
        measured = [index for index, cell in enumerate(cells) if cell.value is not None]
        if measured:
            worst = min(measured, key=lambda index: values[index])
            axes.plot(worst, values[worst], "o", color=COLOURS["bad"], markersize=6)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _depth_axis(axes, layers)
        axes.set_title(unit, loc="left", fontsize=12, color=COLOURS["muted"])
        return Chart(title, inline(figure, f"{title}, {unit}, along {len(layers)} modules"))


def line_chart(title: str, points: Sequence[tuple[Cell, Cell]], *, x: str, y: str, marked: int | None = None) -> Chart:
    """points: where on the x axis, and how high. marked: the index of one that stands out."""
    with _figure(190) as figure:
        axes = figure.add_axes((0.15, 0.24, 0.83, 0.65))
        places, heights = ([_number(cell) for cell in cells] for cells in zip(*points, strict=True))
        axes.plot(places, heights, color=COLOURS["int8"], linewidth=1.6, gid="line")
        axes.plot(places, heights, "o", color=COLOURS["int8"], markersize=3.5, gid="points")
        if marked is not None:
            axes.plot(places[marked], heights[marked], "o", color=COLOURS["ink"], markersize=7)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _grid(axes)
        axes.set_xlabel(x)
        axes.set_title(y, loc="left", fontsize=12, color=COLOURS["muted"])
        said = "; ".join(f"{place.text}: {height.text}" for place, height in points)
        return Chart(title, inline(figure, f"{title}: {y} by {x}. {said}"))


def step_chart(title: str, steps: Sequence[tuple[Cell, Cell]], *, x: str, y: str, limit: Cell | None = None) -> Chart:
    """steps: where on the x axis, and how high from there on."""
    with _figure(190) as figure:
        axes = figure.add_axes((0.15, 0.24, 0.83, 0.65))
        places, heights = ([_number(cell) for cell in cells] for cells in zip(*steps, strict=True))
        axes.step(places, heights, where="post", color=COLOURS["int8"], linewidth=1.6)
        axes.plot(places, heights, "o", color=COLOURS["int8"], markersize=5, gid="points")
        highest = max([*heights, 0.0 if limit is None else _number(limit)]) or 1.0
        axes.set_ylim(min(0.0, *heights), highest * 1.15)
        if limit is not None:
            axes.axhline(_number(limit), color=COLOURS["bad"], linestyle=(0, (4, 3)), linewidth=1.2)
            axes.text(1, _number(limit) + highest * 0.02, f"limit {limit.text}", color=COLOURS["bad"], ha="right",
                      transform=axes.get_yaxis_transform())  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _grid(axes)
        axes.set_xlabel(x)
        axes.set_title(y, loc="left", fontsize=12, color=COLOURS["muted"])
        said = "; ".join(f"{place.text}: {height.text}" for place, height in steps)
        return Chart(title, inline(figure, f"{title}: {y} by {x}. {said}"))


def blocks(layers: Sequence[str]) -> list[tuple[int, str]]:
    """Where each numbered block begins among module paths ("encoder.layer.3.output" is in block 3), and its number."""
    found: list[tuple[int, str]] = []
    for index, layer in enumerate(layers):
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer)
        if number and (not found or found[-1][1] != number[1]):
            found.append((index, number[1]))
    return found


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH / 72, height / 72))


def _depth_axis(axes: Axes, layers: Sequence[str]) -> None:
    """The numbers of the blocks below, as many as have room."""
    ticks = blocks(layers)
    ticks = ticks[:: 1 + len(ticks) // 13]
    axes.set_xticks([index for index, _ in ticks], [number for _, number in ticks])
    axes.set_xlabel("block, from the input to the output" if ticks else "from the input to the output")
    _grid(axes)


def _grid(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _short(label: str) -> str:
    """The end of a path tells more than its beginning."""
    label = _printable(label)
    if len(label) <= _LONGEST_LABEL:
        return label
    end = label[1 - _LONGEST_LABEL :]
    return f"…{end.partition('.')[2] or end}"


def _printable(label: str) -> str:
    """XML takes no control characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in label)


def _number(cell: Cell) -> float:
    assert cell.value is not None, f"{cell.key} has no value to draw"
    return float(cell.value)


def _said(bars: Sequence[Bar]) -> str:
    return "; ".join(f"{bar.heading} {bar.label}: {bar.figure.text}".strip() for bar in bars)

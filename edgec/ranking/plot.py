"""The chart of a ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgec.errors import UserError

from .result import Ranking, spans

FORMATS: Final = (".svg", ".png", ".pdf")
_INT8, _WEIGHT_ONLY, _POINT = "#2a6fbb", "#d98c1f", "#6b9e3f"


def require_format(path: Path) -> None:
    """Raises UserError where the ending of `path` is none of FORMATS; called before the work."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: the name does not tell the format of the plot", f"end it in {', '.join(FORMATS)}")


def draw(ranking: Ranking, path: Path) -> None:
    """Write `ranking` as horizontal bars, the worst layer on top, in the format that the ending of `path` names.

    The same ranking gives the same file. Raises UserError for another ending than those of FORMATS.
    """
    require_format(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drops = [layer.drop for layer in ranking.layers]
    start, end, logarithmic = spans(drops)
    with rc_context({"svg.hashsalt": "edgec", "font.size": 8, "pdf.compression": 9}):
        figure = Figure(figsize=(9, 1.2 + 0.19 * len(drops)), layout="constrained")
        axes = figure.add_subplot()
        kinds = {layer.scheme for layer in ranking.layers}
        for kind in sorted(kinds):
            places = [place for place, layer in enumerate(ranking.layers) if layer.scheme == kind]
            # On a logarithmic scale a bar needs a length above its start, and rounding errors may be below zero.
            lengths = [max(drops[place], start) for place in places]
            axes.barh(places, lengths, left=0, height=0.75, color=_colour(kind), label=kind)
        axes.set_yticks(range(len(drops)), [layer.path for layer in ranking.layers], family="monospace", fontsize=7)
        axes.set_ylim(len(drops) - 0.4, -0.6)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xlim(start, end * (1.5 if logarithmic else 1.05))
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        scale = "logarithmic" if logarithmic else "linear"
        axes.set_xlabel(f"drop: 1 - mean cosine against float, {ranking.texts} texts ({scale} scale)")
        axes.set_title(f"{ranking.name}: what each layer costs, quantized alone", loc="left", fontsize=10)
        if len(kinds) > 1:
            axes.legend(loc="lower right", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        figure.savefig(path, dpi=150, metadata=metadata)


def _colour(scheme: str) -> str:
    if scheme in ("attention", "layer-norm"):
        return _POINT
    return _WEIGHT_ONLY if scheme == "weight-only" else _INT8

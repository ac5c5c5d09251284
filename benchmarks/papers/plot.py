"""One picture a suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, BESIDE, THIRD = "#c2410c", "#1d4ed8", "#64748b"
BESIDES: Final = ("plain", "large", "linear", "LoRA", "int8, plain", "teacher", "fp32")
"""How the rows begin that the method is compared with."""

CURVES: Final = {"after": (THIRD, "after fine-tuning, as it is"), "recovered": (OURS, "after, and recovered"),
                 "before": (BESIDE, "before fine-tuning")}  # fmt: skip


def draw(suite: str, result: Mapping[str, Any], out: Path) -> None:
    """Write the picture of a suite's result as SVG, the same bytes for the same result."""
    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "edgec"})
    figure = _pruning(result) if suite == "pruning" else _points(result)
    figure.savefig(out, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def _pruning(result: Mapping[str, Any]) -> Any:
    """F1 over sparsity: a panel for the mean, and one for each language."""
    columns = ["mean", *result["settings"]["languages"]]
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), sharex=True)
    for axis, column in zip(axes.flat, columns, strict=True):
        for kind, (colour, label) in CURVES.items():
            points = sorted(
                (_sparsity(name), row[column]) for name, row in result["means"].items() if _kind(name) == kind
            )
            axis.errorbar(
                [100 * sparsity for sparsity, _ in points],
                [row["mean"] for _, row in points],
                [row["std"] for _, row in points],
                color=colour,
                marker="o",
                markersize=3,
                label=label,
            )
        control = result["means"].get("dense, recovery steps more")
        if control:
            axis.axhline(control[column]["mean"], color="#111827", linewidth=0.8, linestyle=":", label="dense control")
        axis.set_title("mean of the languages" if column == "mean" else column, fontsize=9)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("sparsity of the encoder, %")
    for axis in axes[:, 0]:
        axis.set_ylabel("span F1, %")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def _kind(name: str) -> str | None:
    if name.startswith("after,"):
        return "recovered" if name.endswith("recovered") else "after"
    return "before" if name.startswith("before,") else None


def _sparsity(name: str) -> float:
    return float(name.split(",")[1].strip().rstrip("%")) / 100


def _points(result: Mapping[str, Any]) -> Any:
    """A panel for each column of the means (a task, or the mean of the languages), a point for each row."""
    means = result["means"]
    columns = result.get("columns") or ["mean"]
    figure, axes = plt.subplots(
        1, len(columns), figsize=(3 + 2.6 * len(columns), 1.2 + 0.3 * len(means)), sharey=True, squeeze=False
    )
    names = list(means)
    for axis, column in zip(axes[0], columns, strict=True):
        for place, name in enumerate(names):
            row = means[name].get(column)
            if row is None:
                continue
            # A point, not a bar: the axis does not begin at 0.
            colour = THIRD if name.startswith(BESIDES) and "W-" not in name else OURS
            axis.errorbar(row["mean"], place, xerr=row["std"] or None, color=colour, marker="o", markersize=4)
            axis.annotate(
                f"{row['mean']:.1f}",
                (row["mean"], place),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
        values = [row[column]["mean"] for row in means.values() if column in row]
        if values:
            spread = max(values) - min(values)
            axis.set_xlim(max(0.0, min(values) - 0.25 * spread - 1), max(values) + 0.25 * spread + 1)
        axis.set_title(column, fontsize=9)
        axis.grid(alpha=0.3)
        axis.set_ylim(len(names) - 0.4, -0.8)
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=7)
    figure.tight_layout()
    return figure

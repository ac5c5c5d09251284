"""plot.py RESULT.json OUT: a row for each contender, a column of bars for each figure.

It runs in the environment `plot`.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, THEIRS, FLOAT = "#c2410c", "#64748b", "#a8b3c1"
FLOATS = ("st-torch", "torch", "fp32-plain")
plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "font.family": "sans-serif"})


def main(result, out):
    found = json.loads(Path(result).read_text(encoding="utf-8"))
    names = order(found)
    columns = [
        *((f"{one['batch']} x {one['tokens']} tokens", speeds(one), "{:.2f}", 1.0) for one in found["shapes"]),
        ("1 - mean cosine", losses(found), "{:.4f}", None),
        (
            "cold start, ms",
            fresh(found, lambda one: one["ms"]["p50"]),
            "{:.0f}",
            found["fresh"]["imports"]["ms"]["p50"],
        ),
        ("peak memory, MiB", fresh(found, lambda one: one["peak_memory_mb"]), "{:.0f}", None),
        (
            "model, MB",
            {name: one["size_mb"] for name, one in found["peers"].items() if "size_mb" in one},
            "{:.0f}",
            None,
        ),
    ]
    figure, axes = plt.subplots(
        1, len(columns), sharey=True, figsize=(2.5 + 1.75 * len(columns), 1.6 + 0.34 * len(names))
    )
    for axis, (title, values, form, line) in zip(axes, columns, strict=True):
        draw(axis, names, values, form, line)
        axis.set_title(title, fontsize=9)
    axes[0].set_yticks(range(len(names)), [found["peers"][name]["title"] for name in names])
    axes[0].invert_yaxis()
    for label, name in zip(axes[0].get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name == "edgec" else "normal")
    head = f"{found['machine']['cpu']}, one thread, {found['rounds']} rounds"
    figure.suptitle(
        f"all-MiniLM-L6-v2 on {head}. The columns with tokens: times as fast as the fastest ORT fp32 form (line: 1); "
        "whiskers: p10 to p90. Cold start's line: the bare imports.",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(out, dpi=150)


def order(found):
    """edgec first, then the fastest at 64 tokens; of the float forms of onnxruntime the default alone."""
    shape = next(one for one in found["shapes"] if (one["batch"], one["tokens"]) == (1, 64))
    speed = {name: one["speedup"]["median"] for name, one in shape["peers"].items()}
    shown = [name for name in found["peers"] if not name.startswith("fp32-") or name == "fp32-plain"]
    return sorted(shown, key=lambda name: (name != "edgec", -speed.get(name, 0)))


def speeds(shape):
    return {name: one["speedup"] for name, one in shape["peers"].items()}


def losses(found):
    return {name: max(0.0, 1 - one["cosine"]["mean"]) for name, one in found["peers"].items() if "cosine" in one}


def fresh(found, figure):
    return {name: figure(one) for name, one in found["fresh"].items() if name != "imports" and "error" not in one}


def draw(axis, names, values, form, line):
    middles = {name: value["median"] if isinstance(value, dict) else value for name, value in values.items()}
    # One slow contender would flatten all the others: its bar is cut, and its figure tells.
    known = sorted(middles[name] for name in names if name in middles)
    limit = min(known[-1], 3 * known[len(known) // 2]) * 1.45
    for row, name in enumerate(names):
        if name not in middles:
            axis.text(0, row, " failed", va="center", fontsize=8, color="#b91c1c")
            continue
        width = min(middles[name], limit * 0.72)
        axis.barh(row, width, color=OURS if name == "edgec" else FLOAT if name in FLOATS else THEIRS, height=0.72)
        end = width
        if isinstance(values[name], dict) and width == middles[name]:
            low, high = values[name]["p10"], values[name]["p90"]
            end = max(width, min(high, limit * 0.72))
            axis.plot([low, end], [row, row], color="black", linewidth=1)
        axis.text(end + limit * 0.02, row, form.format(middles[name]), va="center", fontsize=8)
    if line is not None:
        axis.axvline(line, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, limit)
    axis.set_xticks([])
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)


if __name__ == "__main__":
    main(*sys.argv[1:])

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
CAPTION = (
    "all-MiniLM-L6-v2 on {cpu}, {rounds} rounds, one thread (200 texts: two). With tokens and BERT-base's shape: times "
    "as fast as the fastest fp32 form of onnxruntime (line: 1); black: p10 to p90.\n"
    "Light bars: float. Cold start: a fresh process to its first embedding (line: the bare imports). Pale end: cut. "
    "-: not measured or failed."
)
plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "font.family": "sans-serif"})


def main(result, out):
    found = json.loads(Path(result).read_text(encoding="utf-8"))
    names = order(found)
    imports = found["fresh"]["imports"]["ms"]["p50"]
    columns = [
        *((f"{one['batch']} x {one['tokens']} tokens", speeds(one), "{:.2f}", 1.0) for one in found["shapes"]),
        *((f"BERT-base, {one['tokens']}", speeds(one), "{:.2f}", 1.0) for one in found["bert_base"]["shapes"]),
        ("1 - mean cosine", losses(found), "{:.4f}", None),
        ("200 texts, ms", end_to_end(found), "{:.0f}", None),
        ("cold start, ms", fresh(found, lambda one: one["ms"]["p50"]), "{:.0f}", imports),
        ("peak memory, MiB", fresh(found, lambda one: one["peak_memory_mb"]), "{:.0f}", None),
        ("model, MB", sizes(found), "{:.0f}", None),
    ]
    size = (2.5 + 1.3 * len(columns), 1.6 + 0.34 * len(names))
    figure, axes = plt.subplots(1, len(columns), sharey=True, figsize=size)
    for axis, (title, values, form, line) in zip(axes, columns, strict=True):
        draw(axis, names, values, form, line)
        axis.set_title(title, fontsize=9)
    axes[0].set_yticks(range(len(names)), [found["peers"][name]["title"] for name in names])
    axes[0].invert_yaxis()
    for label, name in zip(axes[0].get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name == "edgec" else "normal")
    figure.suptitle(CAPTION.format(cpu=found["machine"]["cpu"], rounds=found["rounds"]), fontsize=9, x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(out, dpi=110)


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


def end_to_end(found):
    return {name: one["ms"]["p50"] for name, one in found["end_to_end"]["peers"].items()}


def sizes(found):
    return {name: one["size_mb"] for name, one in found["peers"].items() if "size_mb" in one}


def fresh(found, figure):
    return {name: figure(one) for name, one in found["fresh"].items() if name != "imports" and "error" not in one}


def draw(axis, names, values, form, line):
    middles = {name: value["median"] if isinstance(value, dict) else value for name, value in values.items()}
    # One slow contender would flatten all the others: its bar is cut, and its figure tells.
    known = sorted(middles[name] for name in names if name in middles)
    longest = min(known[-1], 3 * known[len(known) // 2])
    for row, name in enumerate(names):
        if name not in middles:
            axis.text(0, row, " -", va="center", fontsize=8, color="#64748b")
            continue
        end = min(middles[name], longest)
        axis.barh(row, end, color=OURS if name == "edgec" else FLOAT if name in FLOATS else THEIRS, height=0.72)
        if middles[name] > longest:
            for part in range(6):
                axis.barh(row, longest * 0.04, left=longest * (0.76 + 0.04 * part), color="white", alpha=part / 6)
        elif isinstance(values[name], dict):
            low, high = values[name]["p10"], values[name]["p90"]
            axis.plot([low, high], [row, row], color="black", linewidth=1)
            end = max(end, high)
        # Close to the figure the line from p10 to p90 would read as a minus.
        axis.text(end + longest * 0.08, row, form.format(middles[name]), va="center", fontsize=8)
    if line is not None:
        axis.axvline(line, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, longest * 1.5)
    axis.set_xticks([])
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)


if __name__ == "__main__":
    main(*sys.argv[1:])

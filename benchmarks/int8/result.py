"""The result as JSON values, and as lines for the terminal."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

from edgec_runtime import machine
from edgec_runtime.integrity import read_manifest


class Clock:
    """Seconds that each stage took."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 1)
        self._last = now


def start(bundle: Path, rounds: int) -> dict[str, Any]:
    manifest = read_manifest(bundle)
    return {
        "suite": "int8",
        "command": shlex.join(["python", "-m", "benchmarks.int8", *sys.argv[1:]]),
        "machine": machine.facts(),
        "busy_before": machine.busy(),
        "rounds": rounds,
        "bundle": {"name": manifest.name, "target": manifest.target.name, "build_id": manifest.build_id},
    }


def summary(found: dict[str, Any]) -> str:
    lines = [f"failed: {name}: {error}" for name, error in found["failures"].items()]
    if "peers" in found:
        lines += table(found["peers"], found["shapes"])
        lines += end_to_end_lines(found["end_to_end"])
        lines += fresh_lines(found["fresh"])
        lines += ["BERT-base shape:", *table(found["bert_base"]["loaded"], found["bert_base"]["shapes"])]
    lines.append(f"seconds: {', '.join(f'{name} {taken:.0f}' for name, taken in found['seconds'].items())}")
    if (found["busy_before"] or 0) > 0.05:
        lines.append(f"the machine was busy before the run: other work took {found['busy_before']:.0%} of the CPU time")
    return "\n".join(lines)


def table(peers: dict[str, Any], shapes: list[dict[str, Any]]) -> list[str]:
    heads = [f"{shape['batch']}x{shape['tokens']}" for shape in shapes]
    lines = [f"{'speed-up over the fastest ORT fp32':<36}" + "".join(f"{head:>9}" for head in heads)]
    lines[0] += "     MB  cosine mean / min    padded"
    for name, one in peers.items():
        cells = [shape["peers"].get(name) for shape in shapes]
        told = "".join(
            f"{cell['speedup']['median']:>8.2f}{'?' if cell['unstable'] else ' '}" if cell else f"{'-':>9}"
            for cell in cells
        )
        if "cosine" in one:
            told += f" {one['size_mb']:6.1f}  {one['cosine']['mean']:.4f} / {one['cosine']['min']:.4f}"
            told += f"   {one['padded']['min_cosine']:.5f}"
        lines.append(f"{one.get('title', name):<36}{told}{'  ' + one['error'] if 'error' in one else ''}")
    lines.append(f"{'baseline':<36}" + "".join(f"{shape['baseline'].removeprefix('fp32-'):>9}" for shape in shapes))
    lines.append(
        f"{'its ms':<36}" + "".join(f"{shape['peers'][shape['baseline']]['ms']['p50']:>9.2f}" for shape in shapes)
    )
    lines += [f"failed: {name}: {error}" for shape in shapes for name, error in shape["failures"].items()]
    return lines


def end_to_end_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['texts']} texts end to end, {found['threads']} threads:"]
    for name, one in found["peers"].items():
        ratio = one["edgec_faster"]["speedup"]
        lines.append(
            f"{name:<36} {one['ms']['p50']:8.0f} ms, edgec {ratio['median']:.2f} times as fast "
            f"(p10 {ratio['p10']:.2f}, p90 {ratio['p90']:.2f}), cosine {one['cosine']['mean']:.4f}"
        )
    return lines + [f"failed: {name}: {error}" for name, error in found["failures"].items()]


def fresh_lines(found: dict[str, Any]) -> list[str]:
    lines = ["fresh process to its first embedding:"]
    for name, one in found.items():
        if "error" in one:
            lines.append(f"{name:<36} {one['error']}")
            continue
        told = f"{name:<36} {one['ms']['p50']:8.0f} ms"
        if "over_imports" in one:
            told += f", {one['over_imports']['p50']:5.2f} times the bare imports, peak {one['peak_memory_mb']:.0f} MiB"
        lines.append(told)
    return lines

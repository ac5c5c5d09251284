"""Counts instructions: qemu-user with the plugin count.c runs guest.py in edgec's emulated arm64 system."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgec.devices import open_device, sysroot

HERE = Path(__file__).parent
PLUGIN = HERE / "count.c"
GUEST = HERE / "guest.py"
TIMEOUT = 600
# onnxruntime 1.31 reads the clock three times before the first node of a run, and a few times after the last.
CLOCKS_BEFORE, MOST_CLOCKS_AFTER = 3, 8


@dataclass(frozen=True)
class Graph:
    """model: an ONNX file. optimize: "stored" or "default", as in guest.py."""

    model: Path
    optimize: str


@dataclass(frozen=True)
class Guest:
    """How to start Python on one emulated CPU. command: of qemu, up to the interpreter."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def run(self, plugin: Path, graph: Graph, tokens: int, *, profile: Path | None = None) -> list[tuple[str, int]]:
        """(kind, instructions so far) of every line that the plugin wrote, from the first mark to the last."""
        with tempfile.TemporaryDirectory() as folder:
            counts = Path(folder) / "counts"
            qemu, *rest = self.command
            clocks = ",clocks=1" if profile else ""
            command = [qemu, "-plugin", f"{plugin},out={counts}{clocks}", *rest, "-P", str(GUEST)]
            command += [str(graph.model.resolve()), graph.optimize, str(tokens), *([str(profile)] if profile else [])]
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT)
            if done.returncode:
                raise SystemExit(f"{graph.model}: the emulated process failed\n{done.stderr[-2000:]}")
            return between_marks(counts.read_text())


def between_marks(text: str) -> list[tuple[str, int]]:
    """The plugin's lines from the first mark to the second, which is the last. Raises SystemExit where other threads
    worked in between: only the thread that makes the marks is to compute."""
    lines = [line.split() for line in text.splitlines()]
    marks = [number for number, line in enumerate(lines) if line[0] == "mark"]
    if len(marks) != 2:
        raise SystemExit(f"two marks were expected, the guest made {len(marks)}")
    lines = lines[marks[0] : marks[1] + 1]
    own, everyone = (int(lines[-1][column]) - int(lines[0][column]) for column in (1, 2))
    if own != everyone:
        raise SystemExit(f"other threads executed {everyone - own} instructions between the marks")
    return [(line[0], int(line[1])) for line in lines]


@contextmanager
def guest(cpu: str) -> Iterator[Guest]:
    """Raises DeviceError where the emulator is not installed."""
    with open_device(f"qemu://{cpu}"), tempfile.TemporaryDirectory(prefix="edgec-count-") as home:
        # Entering the device has made the CPU's tree; docs/emulation.md says where it stands.
        root = sysroot.installed_root()
        tree = root.parent / "cpus" / cpu
        python = tree / sysroot.guest_python(root).relative_to(root)
        environment = {
            "HOME": home,
            "PATH": "/usr/bin:/bin",
            "ORT_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(sysroot.guest_packages(root)),
            "PYTHONDONTWRITEBYTECODE": "1",
            # What differs from process to process shows in the count: the order of sets, and where malloc finds its
            # memory, which a second thread of numpy's at its own pace would change.
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
        }
        yield Guest((sysroot.find_qemu(), "-cpu", cpu, "-L", str(tree), str(python)), environment)


def build_plugin(cache: Path) -> Path:
    """The compiled plugin, kept by the hash of its source."""
    source = PLUGIN.read_bytes()
    made = cache / f"count-{hashlib.sha256(source).hexdigest()[:12]}.so"
    if not made.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = made.with_suffix(".partial")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", str(PLUGIN), "-o", str(partial)], check=True)
        partial.rename(made)
    return made


def count(one: Guest, plugin: Path, graph: Graph, tokens: int, agree: int) -> list[int]:
    """Instructions of one inference, in as many fresh processes as it takes until `agree` of them gave the same number;
    that one is the first.

    On a quiet machine the first processes agree. Where others work too, onnxruntime's checks of the clock come out
    otherwise now and then, which is worth some hundred instructions. Raises SystemExit after three times `agree`.
    """
    found: list[int] = []
    while len(found) < 3 * agree:
        found.append(total(one.run(plugin, graph, tokens)))
        if found.count(found[-1]) == agree:
            return sorted(found, key=lambda number: number != found[-1])
    raise SystemExit(f"{graph.model}: no {agree} of these runs agree: {found}")


def total(lines: list[tuple[str, int]]) -> int:
    return lines[-1][1] - lines[0][1]


def by_operator(one: Guest, plugin: Path, graph: Graph, tokens: int, instructions: int) -> dict[str, dict[str, int]]:
    """Nodes and instructions of every kind of operator, most instructions first; they add up to `instructions` but
    for what happens before the first and after the last node.

    onnxruntime's profiler reads the clock before and after every node, a system call that the plugin sees. What the
    profiler itself executes, the same for every node, is taken off again.
    """
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        lines = one.run(plugin, graph, tokens, profile=profile)
        (written,) = Path(folder).glob("profile*")
        events = json.loads(written.read_text())
    return share_out(lines, last_run(events), instructions)


def last_run(events: list[dict[str, Any]]) -> list[str]:
    """The operators that the profiled session ran last, in order."""
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    runs = sum(event["name"] == "model_run" for event in events)
    count = len(nodes) // runs
    return [str(event["args"]["op_name"]) for event in nodes[-count:]]


def share_out(lines: list[tuple[str, int]], operators: list[str], instructions: int) -> dict[str, dict[str, int]]:
    """A node's instructions: from the clock read at its start to that at the start of the next node, less the
    profiler's part: (profiled - instructions) / nodes."""
    clocks = [executed for kind, executed in lines if kind == "clock"]
    if not 0 < len(clocks) - CLOCKS_BEFORE - 2 * len(operators) <= MOST_CLOCKS_AFTER:
        raise SystemExit(f"{len(clocks)} clock reads do not fit {len(operators)} nodes: another onnxruntime?")
    profiler = (total(lines) - instructions) / len(operators)
    starts = clocks[CLOCKS_BEFORE : CLOCKS_BEFORE + 2 * len(operators) + 1 : 2]
    nodes = Counter(operators)
    executed: defaultdict[str, float] = defaultdict(float)
    for operator, (start, end) in zip(operators, pairwise(starts), strict=True):
        executed[operator] += end - start - profiler
    most_first = sorted(executed, key=lambda name: -executed[name])
    return {name: {"nodes": nodes[name], "instructions": round(executed[name])} for name in most_first}

"""The arithmetic of the instruction counts, on lines as the plugin writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.arm64 import counting

MARKED = """mark 100 500
clock 110 510
clock 150 550
mark 190 590
"""


def test_only_what_lies_between_the_marks_counts() -> None:
    lines = counting.between_marks("clock 7 7\n" + MARKED + "clock 300 800\n")
    assert lines == [("mark", 100), ("clock", 110), ("clock", 150), ("mark", 190)]
    assert counting.total(lines) == 90


def test_work_of_another_thread_is_refused() -> None:
    with pytest.raises(SystemExit, match="executed 5 instructions"):
        counting.between_marks(MARKED.replace("590", "595"))


def test_a_missing_mark_is_refused() -> None:
    with pytest.raises(SystemExit, match="two marks"):
        counting.between_marks("mark 1 1\n")


def test_nodes_share_the_count_without_the_profiler() -> None:
    # Two nodes: MatMul from its start at 40 to the next start at 140, Add from 140 to 170, the first clock after it.
    # Without the profiler the inference takes 200 of the 240 instructions: 20 less a node.
    clocks = [10, 20, 30, 40, 120, 140, 150, 170, 200]
    lines = [("mark", 0), *(("clock", at) for at in [*clocks[:3], *clocks[3:]]), ("mark", 240)]
    found = counting.share_out(lines, ["MatMul", "Add"], 200)
    assert found == {"MatMul": {"nodes": 1, "instructions": 80}, "Add": {"nodes": 1, "instructions": 10}}


def test_nodes_of_one_kind_are_added_and_the_largest_comes_first() -> None:
    clocks = [1, 2, 3, 10, 19, 20, 25, 50, 58, 60, 61]
    lines = [("mark", 0), *(("clock", at) for at in clocks), ("mark", 70)]
    found = counting.share_out(lines, ["Add", "MatMul", "Add"], 70)
    assert list(found.items()) == [
        ("MatMul", {"nodes": 1, "instructions": 30}),
        ("Add", {"nodes": 2, "instructions": 20}),
    ]


def test_clocks_that_do_not_fit_the_nodes_are_refused() -> None:
    lines = [("mark", 0), *(("clock", at) for at in range(1, 8)), ("mark", 20)]
    with pytest.raises(SystemExit, match="do not fit"):
        counting.share_out(lines, ["Add", "Add"], 20)


def test_the_last_run_of_the_profile_is_taken() -> None:
    def node(operator: str) -> dict[str, object]:
        return {"cat": "Node", "name": "x_kernel_time", "args": {"op_name": operator}}

    run = {"cat": "Session", "name": "model_run"}
    events = [node("Gather"), node("Add"), run, node("Gather"), node("MatMul"), run]
    assert counting.last_run(events) == ["Gather", "MatMul"]


class Runs(counting.Guest):
    """Stands in for the emulated processes: each gives the next of these counts."""

    def __init__(self, *counts: int) -> None:
        super().__init__((), {})
        object.__setattr__(self, "rest", iter(counts))

    def run(self, plugin: object, graph: object, tokens: int, *, profile: object = None) -> list[tuple[str, int]]:
        return [("mark", 1000), ("mark", 1000 + next(self.rest))]  # type: ignore[attr-defined]


GRAPH = counting.Graph(Path("x.onnx"), "stored")


def test_the_count_is_the_one_that_three_processes_agree_on() -> None:
    found = counting.count(Runs(50, 57, 50, 57, 50, 99), Path(), GRAPH, 64, 3)
    assert found[0] == 50
    assert sorted(found) == [50, 50, 50, 57, 57]


def test_counts_that_never_agree_are_refused() -> None:
    with pytest.raises(SystemExit, match="no 3 of these runs agree"):
        counting.count(Runs(*range(9)), Path(), GRAPH, 64, 3)

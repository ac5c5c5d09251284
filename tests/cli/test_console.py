"""What the console tells where nobody looks on."""

from __future__ import annotations

import pytest

from edgec.cli import console


def test_a_long_step_tells_a_log_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.progress("evaluate", 4)(1)
    assert capsys.readouterr().err.splitlines() == ["evaluate"]
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    move = console.progress("train", 4)
    for done in (1, 2, 4):
        move(done)
    assert capsys.readouterr().err.splitlines() == ["train", "train: 1 of 4", "train: 2 of 4"]

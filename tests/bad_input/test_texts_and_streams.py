"""Texts that no sane user would send, and readers of stdout that go away."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from edgec_command import COMMAND, Done, assert_refused, edgec, environment


def run(bundles: Path, folder: Path, *texts: str | bytes, stdin: bytes = b"") -> Done:
    return edgec("run", bundles / "embedding", *texts, cwd=folder, stdin=stdin)


def test_empty_text_and_control_characters(bundles: Path, tmp_path: Path) -> None:
    texts = ["", "\a\b\x1b[31m\x7f", "a\u202eb\ufeff", "a\nb\r\tc", "\U0001f600"]
    done = run(bundles, tmp_path, *texts)
    assert (done.code, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    assert all(len(answer["embedding"]) == 32 for answer in answers)


def test_nul_through_stdin(bundles: Path, tmp_path: Path) -> None:
    done = run(bundles, tmp_path, "-", stdin=b"a\0b\n\n")
    assert (done.code, done.stderr) == (0, "")
    assert [json.loads(line)["text"] for line in done.stdout.split("\n")[:-1]] == ["a\0b", ""]


def test_long_text_is_cut_with_a_warning(bundles: Path, tmp_path: Path) -> None:
    text = "river " * 16_667
    assert len(text) > 100_000
    done = run(bundles, tmp_path, text)
    assert done.code == 0 and len(done.stdout.splitlines()) == 1
    # 32 tokens a row, 2 of them special.
    assert done.stderr == f"warning: 1 of 1 inputs were cut to 32 tokens; {16_667 - 30} tokens were left out\n"


def test_lone_surrogates(bundles: Path, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 reach Python as lone surrogates; JSON can spell one."""
    assert_refused(run(bundles, tmp_path, b"Z\xfcrich"), 2, "input 0", "lone surrogate (U+DCFC) at character 1")
    assert_refused(run(bundles, tmp_path, "-", stdin=b"Z\xfcrich\n"), 2, "lone surrogate (U+DCFC)")
    (tmp_path / "data.jsonl").write_text('{"text": "\\ud83d", "label": "neutral"}\n')
    done = edgec("evaluate", bundles / "classification", "--data", "data.jsonl", cwd=tmp_path)
    assert_refused(done, 2, "data.jsonl:1: the text is not valid UTF-8")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    done = edgec("run", b"b\xfcndel", "text", cwd=tmp_path)
    assert done.code == 2 and "Traceback" not in done.stderr and "error: " in done.stderr


def test_options_of_another_task(bundles: Path, tmp_path: Path) -> None:
    assert_refused(run(bundles, tmp_path, "a", "--top-k", "3"), 2, "--top-k belongs to fill-mask")
    assert_refused(run(bundles, tmp_path, "a", "--prompt", "query"), 2, "query")


@pytest.mark.parametrize("kind", ["reader gone", "closed"])
def test_stdout_that_nobody_reads(kind: str, bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("hello\n" * 2000)
    (tmp_path / "data.csv").write_text("text,label\nAda,neutral\n")
    commands = [
        ["run", bundles / "embedding", "-"],
        ["evaluate", bundles / "classification", "--data", "data.csv"],
        ["verify", bundles / "embedding"],
        ["targets", "list"],
        ["targets", "list", "--json", "-"],
        ["recipes", "show", "minilm-int8"],
        ["--help"],
    ]
    words = " ".join(COMMAND)
    for command in commands:
        # The reader ends before edgec writes; a closed stdout is none at all.
        end = ">&-" if kind == "closed" else "| true"
        line = f"{words} {' '.join(map(str, command))} < many.txt {end}"
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment())
        assert "Traceback" not in done.stderr and "Error" not in done.stderr, (line, done.stderr)


def test_full_stdout(bundles: Path, tmp_path: Path) -> None:
    for command in (["run", bundles / "embedding", "text"], ["targets", "list"], ["targets", "show", "arm64"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*COMMAND, *command], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, env=environment()
            )
        assert_refused(Done(done.returncode, "", done.stderr), 3, "No space left on device")

"""`python -m edgec_runtime`: data on stdout, errors with hints and exit codes, never a traceback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import edgec_runtime
import pytest
from edgec_runtime.__main__ import main
from edgec_runtime.errors import TextInvalid
from tiny_bundles import seal


def run(*arguments: str | Path, code: int = 0, stdin: bytes = b"") -> tuple[str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "edgec_runtime", *map(str, arguments)], input=stdin, capture_output=True, check=False
    )
    assert result.returncode == code, result.stderr.decode()
    assert b"Traceback" not in result.stderr
    return result.stdout.decode(), result.stderr.decode()


def lines(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, object]]:
    assert main([str(a) for a in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_run_every_task(bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    embedded = lines(capsys, "run", bundles["feature-extraction"], "the fox", "")
    assert [line["text"] for line in embedded] == ["the fox", ""]
    expected = edgec_runtime.load(bundles["feature-extraction"]).embed(["the fox", ""])
    assert [line["embedding"] for line in embedded] == expected.tolist()
    classifier = bundles["text-classification"]
    assert lines(capsys, "run", classifier, "a")[0].keys() == {"text", "label", "score"}
    assert lines(capsys, "run", classifier, "a", "--pair", "b")[0]["pair"] == "b"
    spans = lines(capsys, "run", bundles["token-classification"], "the fox")[0]["spans"]
    assert [s["text"] for s in spans] == ["the", "fox"]  # type: ignore[attr-defined]
    answer = lines(capsys, "run", bundles["question-answering"], "who", "--context", "the fox")[0]["answer"]
    assert answer.keys() == {"text", "start", "end", "score", "null_score"}  # type: ignore[attr-defined]
    fills = lines(capsys, "run", bundles["fill-mask"], "the [MASK]", "--top-k", "2")[0]["fills"]
    assert len(fills) == 2  # type: ignore[arg-type]


def test_stdin(bundles: dict[str, Path]) -> None:
    stdin = "the fox\r\n\nünï\n".encode()
    out, err = run("run", bundles["feature-extraction"], "-", "last", stdin=stdin)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["the fox", "", "ünï", "last"]
    assert err == ""


def test_bytes_that_are_no_text(bundles: dict[str, Path]) -> None:
    _, err = run("run", bundles["feature-extraction"], "-", stdin=b"caf\xe9\n", code=2)
    assert err.startswith("error: input 0: the text has a lone surrogate") and "\nhint: " in err


def test_truncation_is_a_warning_on_stderr(bundles: dict[str, Path]) -> None:
    out, err = run("run", bundles["feature-extraction"], "fox " * 100)
    assert len(out.splitlines()) == 1
    assert err.startswith("warning: 1 of 1 inputs were cut to 32 tokens") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "/nowhere", "x"], 2, "/nowhere does not exist"),
        (["run", "FE", "x", "--pair", "y"], 2, "--pair belongs to text-classification"),
        (["run", "FE", "x", "--prompt", "query"], 2, "unknown prompt"),
        (["run", "QA", "x"], 2, "answers questions about a text"),
        (["run", "FE"], 2, "INPUT"),
        (["run", "FE", "x", "--threads", "0"], 2, "not a number above zero"),
        (["check"], 2, "BUNDLE"),
        (["nothing"], 2, "nothing"),
        ([], 2, "COMMAND"),
    ],
)
def test_mistakes(bundles: dict[str, Path], arguments: list[str], code: int, message: str) -> None:
    names = {"FE": bundles["feature-extraction"], "QA": bundles["question-answering"]}
    out, err = run(*(names.get(a, a) for a in arguments), code=code)
    assert out == "" and err.startswith("error: ") and message in err and "\nhint: " in err
    assert len(err.splitlines()) == 2


def test_check(bundles: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = bundles["fill-mask"]
    assert main(["check", str(path)]) == 0
    assert "2 golden vectors" in capsys.readouterr().out
    assert main(["check", str(path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["check", str(path), "--json", str(tmp_path / "c.json")]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["ok"] is True
    capsys.readouterr()
    assert main(["check", str(path), "--json", str(tmp_path / "no" / "c.json")]) == 3
    assert "c.json: No such file" in capsys.readouterr().err


def test_a_check_that_fails(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgec_runtime import golden

    vectors = golden.read(bundle / "golden.npz")
    vectors.outputs[1]["sentence_embedding"][0] += 1
    golden.write(bundle / "golden.npz", vectors.requests, vectors.ids, vectors.outputs)
    seal(bundle)
    assert main(["check", str(bundle), "--json", "-"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["worst_request"] == 1
    assert "error: " in err and "output 'sentence_embedding' of request 1 is off by 1" in err


def test_a_refused_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "model.onnx").write_bytes(b"?")
    assert main(["check", str(bundle)]) == 1
    assert "model.onnx has 1 bytes" in capsys.readouterr().err


def test_a_traceback_for_those_who_ask(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_TRACEBACK", "1")
    with pytest.raises(TextInvalid):
        main(["run", str(bundles["fill-mask"]), "no mask"])


def test_interrupted(bundles: dict[str, Path]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "edgec_runtime", "run", bundles["feature-extraction"], "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"fox\n" * 256)
        process.stdin.flush()
        process.stdout.readline()  # it is at work
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)  # its input stays open: it has no other reason to end
        assert process.returncode == 130 and process.stderr.read() == b"error: interrupted\n"


def test_a_reader_that_leaves(bundles: dict[str, Path]) -> None:
    script = f"{sys.executable} -m edgec_runtime run {bundles['feature-extraction']} - | head -c 10"
    result = subprocess.run(script, shell=True, input=b"fox\n" * 5000, capture_output=True, check=True)
    assert len(result.stdout) == 10 and result.stderr == b""


def test_other_commands_are_not_imported() -> None:
    code = (
        "import sys; from edgec_runtime.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'onnxruntime', 'edgec_runtime.bench'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n" and all(name in result.stdout for name in ("run", "check", "bench", "facts"))

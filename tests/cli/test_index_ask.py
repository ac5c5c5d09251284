"""`edgec index` and `edgec ask`: what they print, write and refuse."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from decoupled_bundle import write_decoupled
from edgec_runtime import PassageAnswer
from edgec_runtime.store import Store, StoreWriter

import edgec
from edgec.cli.ask import sentence
from edgec.cli.main import invoke

Run = Any
NOTES = {
    "ada.txt": "The old house was cold. Ada works in Bern. The train was new.",
    "sub/cara.md": "Cara lives near the river in Denmark.",
    "letter.txt": "a small green letter",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoupled(tmp_path_factory.mktemp("decoupled") / "bundle")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `notes` in it."""
    for name, text in NOTES.items():
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(bundle: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*args: str) -> tuple[int, str, str]:
        code = invoke([str(bundle) if arg == "BUNDLE" else arg for arg in args])
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


@pytest.fixture
def store(run: Run, here: Path) -> Path:
    assert run("index", "BUNDLE", "notes", "--out", "store")[0] == 0
    return here / "store"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def test_a_folder_is_indexed_and_asked(run: Run, bundle: Path, here: Path) -> None:
    (here / "notes/picture.png").write_bytes(b"")
    code, out, err = run("index", "BUNDLE", "notes", "--out", "store", "--json", "figures.json")
    figures = json.loads((here / "figures.json").read_text())
    assert code == 0 and (figures["documents"], figures["passages"], figures["store"]) == (3, 3, "store")
    assert "documents" in out and "left out, as no text file: notes/picture.png" in err

    code, out, err = run("ask", "BUNDLE", "store", "who works in Bern ?")
    assert (code, err) == (0, "")
    assert "Bern" in out and "Ada works in Bern." in out and "cara" in out and "The train" not in out
    code, out, _ = run("ask", "BUNDLE", "store", "who works in Bern ?", "--json", "-", "--k", "1", "--search", "bm25")
    answers = json.loads(out)
    assert answers == edgec.ask(bundle, "store", question="who works in Bern ?", k=1, search="bm25")
    (best,) = answers["answers"]
    assert (best["text"], best["document"], best["title"]) == ("Bern", "ada.txt", "ada")
    assert NOTES["ada.txt"][best["document_start"] : best["document_end"]] == "Bern"


def test_questions_come_from_stdin(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"who works ?\n\n  zebra  \nletter\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    code, out, err = run("ask", "BUNDLE", "store", "--search", "bm25", "--json", "all.json")
    assert (code, err) == (0, "")
    assert "no match: no passage has to do with 'zebra'" in out
    assert "no answer in 1 passage (null score" in out
    told = json.loads(Path("all.json").read_text())
    assert [one["question"] for one in told] == ["who works ?", "zebra", "letter"]


def test_append_resume_delete_and_verify(run: Run, store: Path, here: Path) -> None:
    (here / "more.jsonl").write_text('{"key": 5, "body": "the warm garden"}\n')
    columns = ("--text", "body", "--id", "key")
    assert run("index", "BUNDLE", "more.jsonl", *columns, "--out", "store", "--append")[0] == 0
    code, out, _ = run("index", "BUNDLE", "notes", "--out", "store", "--resume", "--json", "-")
    assert code == 0 and (json.loads(out)["skipped"], json.loads(out)["passages"]) == (3, 0)
    code, out, _ = run("index", "--out", "store", "--delete", "ada.txt", "--delete", "5", "--json", "-")
    assert code == 0 and json.loads(out)["deleted"] == ["ada.txt#0", "5#0"]
    code, out, _ = run("index", "--verify", "store", "--json", "-")
    assert code == 0 and json.loads(out)["passages"] == 2


def test_float16_takes_more_room(run: Run, here: Path) -> None:
    for states in ("int8", "float16"):
        assert run("index", "BUNDLE", "notes", "--out", states, "--states", states, "--overlap", "2")[0] == 0
        with Store.open(here / states) as store:
            assert (store.header.states, store.header.overlap) == (states, 2)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("BUNDLE", "notes", "--out", "store"), 2, ["store holds a store", "append, resume"]),
        (("BUNDLE", "notes", "--out", "store", "--append"), 2, ["'ada.txt' is in the store already"]),
        (("BUNDLE", "notes", "--out", "store", "--append", "--resume"), 2, ["exclude each other"]),
        (("BUNDLE", "notes", "--out", "new", "--passage-tokens", "5", "--no-split"), 2, ["at most 5"]),
        (("BUNDLE", "nothing.txt", "--out", "new"), 2, ["there is no such file"]),
        (("BUNDLE", "notes/.", "--out", "new", "--overlap", "99"), 2, ["cannot share 99"]),
        (("nothing", "notes", "--out", "new"), 2, ["nothing"]),
        (("BUNDLE", "notes"), 2, ["--out STORE"]),
        (("--delete", "ada.txt"), 2, ["--delete ID goes with --out STORE"]),
        (("BUNDLE", "--verify", "store"), 2, ["stands alone"]),
        (("--delete", "nobody", "--out", "store"), 2, ["neither a document nor a passage 'nobody'"]),
        (("--verify", "nothing"), 2, ["not a folder"]),
        (("BUNDLE", "notes", "--out", "new", "--states", "int4"), 2, ["int4"]),
    ],
)
def test_refused_indexing(
    args: tuple[str, ...], code: int, words: list[str], run: Run, store: Path, here: Path
) -> None:
    before = files(store)
    found, out, err = run("index", *args)
    assert (found, out) == (code, "") and "error: " in err and "hint: " in err
    assert all(word in err for word in words), err
    assert files(store) == before and not (here / "new").exists()


def test_refused_asking(run: Run, store: Path, here: Path) -> None:
    write_decoupled(here / "other", seed=8)
    refused = {
        ("other", "store", "who ?"): (1, "build build-3 where build-8 is expected"),
        ("BUNDLE", "nothing", "who ?"): (2, "nothing is not a folder"),
        ("BUNDLE", "store", " "): (2, "the question has no token"),
        ("BUNDLE", "store", "who ?", "--search", "words"): (2, "words"),
    }
    for args, (code, words) in refused.items():
        found, out, err = run("ask", *args)
        assert (found, out) == (code, "") and words in err and "hint: " in err
    records = store / "records-0.bin"
    content = bytearray(records.read_bytes())
    content[30] ^= 1
    records.write_bytes(content)
    assert run("ask", "BUNDLE", "store", "who ?")[0] == 1
    code, _, err = run("index", "--verify", "store")
    assert code == 1 and "records-0.bin: passage of row 0" in err
    records.write_bytes(bytes(content[:-1]))
    code, _, err = run("ask", "BUNDLE", "store", "who ?")
    assert code == 1 and "is cut short" in err


def test_two_writers(run: Run, store: Path, here: Path) -> None:
    (here / "more.txt").write_text("the garden")
    with StoreWriter.open(store):
        code, _, err = run("index", "BUNDLE", "more.txt", "--out", "store", "--append")
    assert code == 3 and "is being written by another writer" in err


def test_no_torch_is_loaded(bundle: Path, store: Path) -> None:
    script = (
        "import sys; from edgec.cli.main import invoke; "
        f"assert invoke(['ask', {str(bundle)!r}, {str(store)!r}, 'who ?']) == 0; "
        f"assert invoke(['index', {str(bundle)!r}, 'notes', '--out', {str(store)!r}, '--resume']) == 0; "
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("context", "text", "expected"),
    [
        ("One. Ada works in Bern. Two.", "Bern", "Ada works in Bern."),
        ("Ada works in Bern", "Ada works", "Ada works in Bern"),
        ("One.\nA line\nTwo", "line", "A line"),
        ("One. Two ends. Three.", "One. Two", "One. Two ends."),
        ("Is it 3.5 m? Yes, it is 3.5 m.", "it is 3.5 m", "Yes, it is 3.5 m."),
        ("x" * 300 + " Bern " + "y" * 300, "Bern", "…" + "x" * 119 + " Bern " + "y" * 119 + "…"),
    ],
)
def test_the_sentence_around_an_answer(context: str, text: str, expected: str) -> None:
    start = context.index(text)
    answer = PassageAnswer(text, 0.0, 0.0, start, start + len(text), 0, 0, "p", "d", "t", context, 0.0)
    shown = sentence(answer)
    assert shown.plain == expected
    assert [shown.plain[span.start : span.end] for span in shown.spans] == [text]

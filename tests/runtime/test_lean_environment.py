"""An environment with the runtime alone checks and runs an int8 bundle. Installs from the package index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from decoupled_bundle import write_decoupled

from edgec.exporter import Exporter
from edgec.target import Target

REPOSITORY = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "edgec", "scipy", "sklearn")


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that holds `./runtime[text]`."""
    folder = tmp_path_factory.mktemp("lean") / "venv"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    # Built here and then installed there: the other environment needs no build tools.
    wheels = folder / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    _run([*build, str(REPOSITORY / "runtime")])
    (wheel,) = wheels.glob("edgec_runtime-*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--only-binary", ":all:"]
    _run([*install, "-c", str(REPOSITORY / "constraints.txt"), f"{wheel}[text]"])
    return python


@pytest.fixture(scope="module")
def bundle(exporter: Exporter, here: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lean-bundle") / "bundle"
    exporter.write(folder, here)
    return folder


def _run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return done  # type: ignore[no-any-return]


def test_nothing_of_the_training_side_is_there(lean: Path, tmp_path: Path) -> None:
    script = f"import importlib.util as u; print([n for n in {ABSENT!r} if u.find_spec(n)])"
    assert _run([str(lean), "-c", script], cwd=tmp_path).stdout.strip() == "[]"


def test_the_golden_vectors_are_reproduced(lean: Path, bundle: Path, tmp_path: Path) -> None:
    done = _run([str(lean), "-m", "edgec_runtime", "check", str(bundle), "--json", "-"], cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["ok"] is True and len(found["requests"]) == 8


def test_texts_are_answered(lean: Path, bundle: Path, tmp_path: Path) -> None:
    import edgec_runtime

    texts = ["Ada walked to the old house.", "Coffee!"]
    done = _run([str(lean), "-m", "edgec_runtime", "run", str(bundle), *texts], cwd=tmp_path)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    with edgec_runtime.load(bundle) as model:
        np.testing.assert_allclose([answer["embedding"] for answer in answers], model.embed(texts), atol=1e-5)
    assert done.stderr == ""


def test_facts_and_bench_need_no_more(lean: Path, bundle: Path, tmp_path: Path) -> None:
    facts = json.loads(_run([str(lean), "-m", "edgec_runtime", "facts", "--json", "-"], cwd=tmp_path).stdout)
    assert facts["usable"] >= 1
    command = [str(lean), "-m", "edgec_runtime", "bench", str(bundle), "--rounds", "1", "--tokens", "8", "--json", "-"]
    assert json.loads(_run(command, cwd=tmp_path).stdout)["bundles"][0]["precision"] == "int8"


def test_documents_are_indexed_and_questions_answered(lean: Path, tmp_path: Path) -> None:
    """Without usearch, too: it is an extra of its own."""
    bundle = write_decoupled(tmp_path / "bundle")
    script = (
        "import importlib.util as u, sys; from edgec_runtime import Document, index; "
        "documents = [Document('a', 'Ada works in Bern .'), Document('b', 'the old house')]; "
        "print(index(sys.argv[1], documents, sys.argv[2]).passages, u.find_spec('usearch'))"
    )
    done = _run([str(lean), "-c", script, str(bundle), "store"], cwd=tmp_path)
    assert done.stdout.split() == ["2", "None"]
    for search in ("dense", "bm25"):
        command = ["-m", "edgec_runtime", "ask", str(bundle), "store", "who works ?", "--search", search]
        answers = json.loads(_run([str(lean), *command], cwd=tmp_path).stdout)
        assert [answer["text"] for answer in answers["answers"]] == ["Bern"]

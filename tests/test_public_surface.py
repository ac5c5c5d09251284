"""What edgec and its runtime offer by name, and what using the names costs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import edgec_runtime
import pytest

import edgec

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "optimum", "sklearn", "numpy")

EDGEC = {
    "ask": ["bundle", "store", "question", "k", "search", "threads"],
    "audit": ["bundle", "tokens", "question_tokens", "threads", "progress"],
    "bench": ["bundles", "on", "tokens", "batch", "threads", "rounds", "cold_start", "say"],
    "compress": ["recipe", "out", "on", "overrides", "data", "forms", "resume", "force", "progress", "say"],
    "evaluate": [
        *("model", "data", "revision", "format", "text", "text_pair", "label", "label_separator", "group_by", "rows"),
        *("first_row", "null_answers", "on_error", "threads", "progress"),
    ],
    "export": [
        *("model", "target", "out", "task", "revision", "opset", "max_length", "null_answers", "max_answer_tokens"),
        *("forms", "on", "speedup", "on_miss", "force", "trust_remote_code", "say"),
    ],
    "index": [
        *("bundle", "passages", "out", "format", "text", "id", "title", "states", "overlap", "question_tokens"),
        *("passage_tokens", "split", "append", "resume", "on_error", "threads", "engine", "workers", "address"),
        *("progress", "say"),
    ],
    "run": ["bundle", "inputs"],
    "sensitivity": [
        *("model", "data", "scheme", "options", "format", "text", "text_pair", "rows", "target", "task", "revision"),
        *("resume", "progress"),
    ],
    "verify": ["bundle", "on", "kinds", "say"],
}
RUNTIME = [
    *("Answer", "Answers", "BundleError", "BundleWarning", "Classifier", "Document", "EmbeddingModel", "Indexed"),
    *("Label", "MaskFill", "MaskFiller", "PassageAnswer", "PassageReader", "Reader", "Span", "Tagger"),
    *("TruncationWarning", "index", "load", "unpack"),
]
METHODS = {
    "EmbeddingModel": ["embed"],
    "Classifier": ["classify", "probabilities"],
    "Tagger": ["tag", "label_words"],
    "Reader": ["answer"],
    "MaskFiller": ["fill_mask"],
    "PassageReader": ["open", "ask"],
}
COMMANDS = [
    *("compress", "export", "verify", "audit", "bench", "run", "evaluate", "sensitivity", "doctor", "targets"),
    *("recipes", "index", "ask"),
]


def test_the_names_of_edgec() -> None:
    assert edgec.__all__ == sorted(EDGEC)
    found = {name: list(inspect.signature(getattr(edgec, name)).parameters) for name in edgec.__all__}
    assert found == EDGEC
    assert all(inspect.getdoc(getattr(edgec, name)) for name in edgec.__all__)
    with pytest.raises(AttributeError, match="module 'edgec' has no attribute 'compres'"):
        edgec.compres  # noqa: B018


def test_options_go_by_name() -> None:
    for name in edgec.__all__:
        kinds = [p.kind for p in inspect.signature(getattr(edgec, name)).parameters.values()]
        positional = [kind for kind in kinds if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert len(positional) <= 2


def test_the_names_of_the_runtime() -> None:
    assert edgec_runtime.__all__ == RUNTIME
    for name in RUNTIME:
        assert getattr(edgec_runtime, name).__name__ == name
    for kind, methods in METHODS.items():
        assert all(inspect.getdoc(getattr(getattr(edgec_runtime, kind), method)) for method in methods)
    assert list(inspect.signature(edgec_runtime.load).parameters) == ["path", "threads", "schedule", "verify"]
    with pytest.raises(AttributeError, match="has no attribute 'Model'"):
        edgec_runtime.Model  # noqa: B018


def test_one_version_for_both() -> None:
    assert edgec.__version__ == edgec_runtime.__version__


def _loaded(script: str) -> list[str]:
    """The heavy modules that a fresh interpreter holds after `script`."""
    tell = f"import json, sys; sys.stderr.write(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{script}\n{tell}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return found


def test_imports_are_light() -> None:
    assert _loaded("import edgec, edgec_runtime, edgec_runtime.manifest") == []


def test_help_of_every_command_is_light() -> None:
    calls = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    script = f"from edgec.cli.main import invoke\nfor args in {calls!r}: assert invoke(args) == 0, args"
    assert _loaded(script) == []


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).parent / "edgec"
    if not command.exists():
        pytest.skip("edgec runs from its source here, without an installed command")
    done = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    version = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert version.stdout == f"edgec {edgec.__version__}\n"


def test_edgec_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "edgec", "--version"], capture_output=True, text=True)
    assert done.stdout == f"edgec {edgec.__version__}\n"

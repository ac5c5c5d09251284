"""Loading and running a bundle creates no file outside of it and opens no socket."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STRACE = shutil.which("strace")
RUN = "import sys, edgec_runtime; edgec_runtime.load(sys.argv[1]).embed(['a fox', 'another'])"
# What edgec_runtime keeps onnxruntime from doing, with the variable taken away again.
LOUD = """
import os, sys, time
import edgec_runtime
del os.environ["ORT_DISABLE_TELEMETRY"]
edgec_runtime.load(sys.argv[1]).embed(["a fox", "another"])
time.sleep(1)  # its thread takes a moment
"""
# A call that creates or changes a file, or any use of the network; a call that failed changed nothing.
_CHANGES = re.compile(r"\b(?:open|openat|openat2|creat)\(.*O_(?:CREAT|WRONLY|RDWR|TRUNC)")
_OTHERS = re.compile(r"\b(?:mkdir|mkdirat|rename\w*|link|linkat|symlink\w*|unlink\w*|truncate|mknod\w*|utime\w*)\(")
_NETWORK = re.compile(r"\b(?:socket|connect|bind|sendto|sendmsg)\(")


def traces(code: str, bundle: Path, home: Path) -> list[str]:
    """The suspicious system calls of a fresh Python process that runs `code` on a bundle."""
    assert STRACE is not None
    log = home.parent / "strace.log"
    home.mkdir()
    environment = {
        **{key: os.environ[key] for key in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if key in os.environ},
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # CI and ORT_DISABLE_TELEMETRY are unset: the runtime itself has to see to it
    command = [STRACE, "-f", "-qq", "-e", "trace=%file,%network", "-o", str(log)]
    result = subprocess.run(
        [*command, sys.executable, "-c", code, str(bundle)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in result.stderr and "not permitted" in result.stderr:
        pytest.skip("strace may not trace processes here")
    assert result.returncode == 0, result.stderr
    found = []
    for line in log.read_text().splitlines():
        failed = re.search(r"\) = -1 E\w+", line)
        if _NETWORK.search(line) or (not failed and (_CHANGES.search(line) or _OTHERS.search(line))):
            found.append(line)
    return [line for line in found if '"/dev/null"' not in line]


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_nothing_is_written_or_sent(bundles: dict[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert traces(RUN, bundles["feature-extraction"], home) == []
    assert list(home.iterdir()) == []


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_the_detector_sees_what_the_variable_prevents(bundles: dict[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = traces(LOUD, bundles["feature-extraction"], home)
    assert any(str(home) in line for line in found), found
    assert list(home.rglob(".onnxruntime"))


def test_a_late_import_is_warned_of() -> None:
    code = "import onnxruntime, edgec_runtime, os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    late = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "import edgec_runtime first" in late.stderr
    environment["ORT_DISABLE_TELEMETRY"] = "1"
    fine = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert fine.stderr == ""


def test_the_public_surface() -> None:
    """Listed here so that a change of it is a decision."""
    code = "import edgec_runtime, sys; assert 'numpy' not in sys.modules; print(*edgec_runtime.__all__); " + (
        "[getattr(edgec_runtime, name) for name in edgec_runtime.__all__]"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [
        *["Answer", "Answers", "BundleError", "BundleWarning", "Classifier", "Document", "EmbeddingModel"],
        *["Indexed", "Label", "MaskFill", "MaskFiller", "PassageAnswer", "PassageReader", "Reader", "Span"],
        *["Tagger", "TruncationWarning", "index", "load", "unpack"],
    ]


def test_what_running_imports(bundles: dict[str, Path]) -> None:
    code = (
        f"{RUN}; print(sorted({{'torch', 'transformers', 'onnx', 'edgec', 'concurrent.futures', 'unicodedata'}}"
        " & set(sys.modules)))"
    ).replace("embed(['a fox', 'another'])", "embed(['a fox'])")
    command = [sys.executable, "-c", code, str(bundles["feature-extraction"])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"

"""The export of the fixture `quantized`, done again by another process in another folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgec.models import save_build
from edgec.state import ModelState
from edgec.target import Target

_SCRIPT = """
import sys
from pathlib import Path
import edgec_runtime
import onnx_ir as ir
from edgec.exporter import Exporter
from edgec.models import load_build
from edgec.target import load_target

build, target, out = sys.argv[1:]
exporter = Exporter(load_build(Path(build)), name="tiny")
exporter.write(Path(out, "bundle"), load_target(target))
Path(out, "traced.onnx").write_bytes(ir.to_proto(exporter.traced).SerializeToString(deterministic=True))
"""


@dataclass(frozen=True)
class SecondExport:
    """traced: the traced graph, serialized. bundle: the folder. said: what the process wrote to both its streams."""

    traced: bytes
    bundle: Path
    said: str


def export_again(state: ModelState, target: Target, folder: Path) -> SecondExport:
    save_build(state, folder / "a build with another name")
    out = folder / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder / "a build with another name"), target.name, str(out)],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": "7", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return SecondExport((out / "traced.onnx").read_bytes(), out / "bundle", done.stdout + done.stderr)


def serialized(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data

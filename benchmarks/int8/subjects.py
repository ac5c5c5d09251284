"""The models that are measured, and for each contender the folder with its own form of them.

CACHE/models/SUBJECT/NAME    what a contender prepared, with a stamp of what it was made from
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

import edgec
from benchmarks.traced import trace_embedding
from edgec.graph.trace import trace
from edgec.models import load_model

from .contenders import PEERS, Contender
from .environments import PeerFailed
from .workers import prepare

RECIPES = Path(edgec.__file__).parent.parent / "recipes"
UNFUSED = {"without": ["SkipLayerNormFusion"]}
WEIGHTS = (".onnx", ".data", ".bin", ".xml", ".safetensors")


@dataclass(frozen=True)
class Subject:
    """source: a sentence-transformers folder. build: what `edgec compress` wrote from it. texts: for calibration.
    folder: of its contenders."""

    name: str
    source: Path
    build: Path
    target: str
    texts: Path
    folder: Path

    @property
    def bundle(self) -> Path:
        return self.build / "bundles" / self.target

    def of(self, contender: Contender) -> Path:
        return self.bundle if contender.name == "edgec" else self.folder / contender.name


def recipe(build: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((build / "report.json").read_text(encoding="utf-8"))["recipe"]
    return found


def calibration_texts(build: Path) -> Path:
    return RECIPES / str(recipe(build)["data"]["calibrate"]["text"])


def export_floats(subject: Subject) -> None:
    """The graphs of the float forms, and the session settings that tell them apart."""
    stamp = subject.folder / "float-forms"
    baseline = subject.build / "baseline"
    made_from = digest(subject.source / "model.safetensors", baseline / "manifest.json", Path(__file__))
    if stamp.is_file() and stamp.read_text() == made_from:
        return
    print(f"exporting the float forms of {subject.name}", file=sys.stderr)
    subject.folder.mkdir(parents=True, exist_ok=True)
    state = load_model(subject.source)
    (part,) = state.parts.values()
    plain, eager, traced = (subject.folder / f"{name}.onnx" for name in ("plain", "eager", "traced"))
    ir.save(trace(part, opset=23, max_length=state.spec.max_length), plain)
    part.model.set_attn_implementation("eager")
    part.boolean_mask = False  # eager attention adds the mask to the scores
    ir.save(trace(part, opset=23, max_length=state.spec.max_length), eager)
    trace_embedding(part.model, traced)
    (kept,) = json.loads((baseline / "manifest.json").read_text())["parts"]
    settings = {
        "fp32-plain": {"file": str(plain)},
        "fp32-unfused": {"file": str(plain), **UNFUSED},
        "fp32-eager": {"file": str(eager), **UNFUSED},
        "fp32-traced": {"file": str(traced), **UNFUSED},
        "fp32-bundle": {
            "file": str((baseline / kept["file"]).resolve()),
            "optimize": kept.get("optimize_at_load", False),
        },
    }
    for name, chosen in settings.items():
        folder = subject.folder / name
        folder.mkdir(exist_ok=True)
        shutil.copy(subject.source / "tokenizer.json", folder)
        (folder / "session.json").write_text(json.dumps(chosen))
    stamp.write_text(made_from)


def prepare_peer(subject: Subject, contender: Contender, interpreter: Path) -> None:
    """Run the peer's own conversion, unless it stands already. Raises PeerFailed."""
    folder = subject.of(contender)
    stamp = folder / "prepared"
    requirements = PEERS / f"{contender.environment}.txt"
    made_from = digest(contender.path, requirements, subject.texts, subject.source / "model.safetensors")
    if stamp.is_file() and stamp.read_text() == made_from:
        return
    print(f"preparing {contender.title} for {subject.name}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(subject.source / "tokenizer.json", folder)
    prepare(contender, interpreter, [subject.source, folder, subject.texts, subject.folder / "traced.onnx"])
    stamp.write_text(made_from)


def require_unpadded_ids(subject: Subject) -> None:
    """Every tokenizer file pads with id 0, as the workers do. Raises PeerFailed."""
    vocabulary = json.loads((subject.source / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    if vocabulary.get("[PAD]") != 0:
        raise PeerFailed(f"{subject.source}: padding has another id than 0")


def size_mb(subject: Subject, contender: Contender) -> float:
    """Megabytes of the files that the contender loads its weights from."""
    folder = subject.of(contender)
    settings = folder / "session.json"
    if settings.is_file():
        graph = Path(json.loads(settings.read_text())["file"])
        files = [graph, *graph.parent.glob(f"{graph.name}.data")]
    else:
        files = [file for root in (folder, folder / "model") for file in root.rglob("*") if file.suffix in WEIGHTS]
    return sum(file.stat().st_size for file in {file.resolve() for file in files}) / 1e6


def digest(*files: Path) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()

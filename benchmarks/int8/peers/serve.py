"""What all peers have in common. It runs in a peer's environment: numpy and the standard library, nothing else.

    PEER.py prepare MODEL OUT TEXTS GRAPH   once: convert and quantize
    PEER.py serve                           commands as JSON lines on stdin, an answer a line on stdout
    PEER.py cold FOLDER THREADS TEXT        a fresh process up to its first embedding

MODEL: a sentence-transformers folder. OUT, FOLDER: where the peer keeps its own form of the model, with
tokenizer.json. TEXTS: calibration texts, one a line. GRAPH: the float model as a traced ONNX file.

A peer gives `prepare(model, out, texts, graph)` and a class `Model(folder, threads)` with
`embed(ids, mask) -> (batch, hidden)`, arrays int64 (batch, tokens) in and unit vectors out, and, where it has a
tokenizer of its own, `embed_texts(texts)`. Commands and answers:

    {"do": "load", "folder", "threads"}             {"load_ms"}
    {"do": "time", "batch", "tokens", "calls"}      {"ms": one time a call}
    {"do": "embed", "rows", "batch"}                {"embeddings"}; rows: lists of ids, padded `batch` at a time
    {"do": "texts", "texts"}                        {"ms", "embeddings"}
    {"do": "quit"}                                  the process ends
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

SEED = 0
MAX_LENGTH = 256


def main(prepare, Model):
    command, *rest = sys.argv[1:]
    if command == "prepare":
        prepare(*(Path(one) for one in rest))
    elif command == "cold":
        cold(Model, *rest)
    else:
        serve(Model)


def serve(Model):
    # The protocol keeps the real stdout for itself: what libraries print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model = None
    for line in sys.stdin:
        asked = json.loads(line)
        do = asked.pop("do")
        if do == "quit":
            break
        try:
            if do == "load":
                start = time.perf_counter()
                model = Model(Path(asked["folder"]), asked["threads"])
                found = {"load_ms": (time.perf_counter() - start) * 1e3}
            else:
                found = COMMANDS[do](model, **asked)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()
    os._exit(0)  # some libraries take long to end their threads, or fail at it


def time_calls(model, batch, tokens, calls):
    ids = np.random.default_rng(SEED).integers(1000, 20000, (batch, tokens))
    mask = np.ones_like(ids)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        model.embed(ids, mask)
        times.append((time.perf_counter() - start) * 1e3)
    return {"ms": times}


def embed_rows(model, rows, batch):
    return {"embeddings": np.concatenate([model.embed(*padded(part)) for part in batches(rows, batch)]).tolist()}


def time_texts(model, texts):
    start = time.perf_counter()
    embeddings = model.embed_texts(texts)
    return {"ms": (time.perf_counter() - start) * 1e3, "embeddings": np.asarray(embeddings).tolist()}


COMMANDS = {"time": time_calls, "embed": embed_rows, "texts": time_texts}


def cold(Model, folder, threads, text):
    model = Model(Path(folder), int(threads))
    if hasattr(model, "embed_texts"):
        model.embed_texts([text])
    else:
        model.embed(*padded([tokenize(Path(folder), [text])[0]]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    sys.stdout.write(json.dumps({"peak_memory_mb": peak / 1024}) + "\n")
    sys.stdout.flush()
    os._exit(0)


def tokenize(folder, texts):
    """The ids of each text, cut to MAX_LENGTH."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def calibration(out, texts):
    """(ids, mask) of each calibration text alone. OUT must have its tokenizer.json already."""
    return [padded([ids]) for ids in tokenize(out, texts.read_text(encoding="utf-8").splitlines())]


def batches(rows, size):
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def padded(rows):
    """ids and mask, int64 (rows, longest); padding has id 0."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return ids, mask


def mean_of_tokens(hidden, mask):
    """(batch, tokens, hidden) to the unit vectors (batch, hidden) that mean pooling gives."""
    weights = mask.astype(np.float32) / mask.sum(axis=1, keepdims=True)
    pooled = np.matmul(weights[:, None, :], hidden)[:, 0]
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

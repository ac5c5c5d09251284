"""Runs inside the emulated arm64 system: one inference between two marks that the plugin count.c writes down.

    guest.py MODEL OPTIMIZE TOKENS [PROFILE]

OPTIMIZE: "stored": the graph as it is, like edgec's runtime loads it; "default": what onnxruntime makes of it.
PROFILE: where onnxruntime's profiler writes; it reads the clock before and after every node.
"""

import ctypes
import gc
import os
import sys

import numpy as np
import onnxruntime as ort

MARK = 4000001  # the same number as in count.c
WARM_UP = 3
SEED = 0


def main(model: str, optimize: str, tokens: str, profile: str = "") -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimize == "stored":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = inputs(session, int(tokens))
    mark = ctypes.CDLL(None).syscall
    for _ in range(WARM_UP):
        session.run(None, feeds)
    gc.disable()
    mark(MARK)
    session.run(None, feeds)
    mark(MARK)
    if profile:
        session.end_profiling()
    os._exit(0)  # ending onnxruntime in order takes a second under emulation, and nothing is left to be counted


def inputs(session: ort.InferenceSession, tokens: int) -> dict[str, np.ndarray]:
    """One row of random ids without padding, in the types that the graph takes."""
    ids = np.random.default_rng(SEED).integers(1000, 20000, (1, tokens))
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    kinds = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}
    return {one.name: values[one.name].astype(kinds[one.type]) for one in session.get_inputs()}


if __name__ == "__main__":
    main(*sys.argv[1:])

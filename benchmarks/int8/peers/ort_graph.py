"""An ONNX file on stock onnxruntime, one for fp32 and for the tools that write ONNX.

FOLDER holds model.onnx and, where something else than onnxruntime's defaults is asked for, session.json: {"optimize":
false} loads the graph as it is stored, {"without": [names]} leaves optimizers out, {"file": path} is another graph.
"""

import json
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
import serve

_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class Model:
    def __init__(self, folder, threads):
        settings = folder / "session.json"
        chosen = json.loads(settings.read_text()) if settings.is_file() else {}
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not chosen.get("optimize", True):
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(
            chosen.get("file") or str(folder / "model.onnx"),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=chosen.get("without", []),
        )
        self.inputs = [(one.name, _TYPES[one.type]) for one in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name

    def embed(self, ids, mask):
        values = {"input_ids": ids, "attention_mask": mask}
        feeds = {
            name: values[name].astype(kind, copy=False) if name in values else np.zeros(ids.shape, kind)
            for name, kind in self.inputs
        }
        found = self.session.run([self.output], feeds)[0]
        return serve.mean_of_tokens(found, mask) if found.ndim == 3 else found


if __name__ == "__main__":
    serve.main(None, Model)

"""edgec's bundle, through its runtime: hashes verified, and no padding unless a batch is asked for."""

import os
import sys

sys.path.insert(0, os.environ["EDGEC_RUNTIME"])

import edgec_runtime  # before onnxruntime: it switches the telemetry off
import numpy as np
import serve


class Model:
    def __init__(self, folder, threads):
        self.model = edgec_runtime.load(folder, threads=threads)
        self.part = self.model.manifest.parts[0]

    def embed(self, ids, mask):
        values = {"input_ids": ids, "attention_mask": mask}
        feeds = {one.name: values[one.name].astype(np.dtype(one.dtype), copy=False) for one in self.part.inputs}
        return self.model.runner.engine.run(feeds)["sentence_embedding"]

    def embed_texts(self, texts):
        return self.model.embed(texts)


if __name__ == "__main__":
    serve.main(None, Model)

"""onnxruntime's quantize_static as it comes: every operator that it can quantize."""

import serve
from ort_graph import Model
from ort_static import quantize


def prepare(model, out, texts, graph):
    quantize(out, texts, graph)


if __name__ == "__main__":
    serve.main(prepare, Model)

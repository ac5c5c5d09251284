"""onnxruntime's quantize_dynamic: s8 weights with a scale a channel, one activation scale a tensor."""

import serve
from ort_graph import Model


def prepare(model, out, texts, graph):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(graph, out / "model.onnx", weight_type=QuantType.QInt8, per_channel=True)


if __name__ == "__main__":
    serve.main(prepare, Model)

"""onnxruntime's quantize_static, in its better form: matrix products alone, and their outputs left in float."""

import serve
from ort_graph import Model

_OPTIONS = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"], "MatMulConstBOnly": True}
_OPERATORS = ["MatMul", "Gemm"]


def prepare(model, out, texts, graph):
    quantize(out, texts, graph, op_types_to_quantize=_OPERATORS, extra_options=_OPTIONS)


def quantize(out, texts, graph, **options):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(serve.calibration(out, texts))

        def get_next(self):
            following = next(self.rest, None)
            return following and {"input_ids": following[0], "attention_mask": following[1]}

    quantize_static(
        graph,
        out / "model.onnx",
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        **options,
    )


if __name__ == "__main__":
    serve.main(prepare, Model)

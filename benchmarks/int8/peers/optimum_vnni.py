"""optimum-onnx: its own export, and its avx512_vnni configuration for dynamic int8."""

import serve
from ort_graph import Model


def prepare(model, out, texts, graph):
    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    exported = out / "exported"
    ORTModelForFeatureExtraction.from_pretrained(model, export=True).save_pretrained(exported)
    quantizer = ORTQuantizer.from_pretrained(exported, file_name="model.onnx")
    chosen = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer.quantize(save_dir=exported, quantization_config=chosen)
    (exported / "model_quantized.onnx").rename(out / "model.onnx")


if __name__ == "__main__":
    serve.main(prepare, Model)

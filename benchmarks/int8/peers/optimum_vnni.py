"""optimum-onnx: its own export, and its avx512_vnni configuration for dynamic int8."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import serve
from ort_graph import Model


def prepare(model, out, texts, graph):
    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    chosen = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    with TemporaryDirectory() as folder:
        ORTModelForFeatureExtraction.from_pretrained(model, export=True).save_pretrained(folder)
        quantizer = ORTQuantizer.from_pretrained(folder, file_name="model.onnx")
        quantizer.quantize(save_dir=folder, quantization_config=chosen)
        shutil.move(Path(folder) / "model_quantized.onnx", out / "model.onnx")


if __name__ == "__main__":
    serve.main(prepare, Model)

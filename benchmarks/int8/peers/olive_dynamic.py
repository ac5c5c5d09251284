"""Olive: its ONNX conversion, transformer optimizations and dynamic int8 quantization in one workflow."""

import serve
from ort_graph import Model


def prepare(model, out, texts, graph):
    import olive

    workflow = {
        "input_model": {"type": "OnnxModel", "model_path": str(graph)},
        "passes": {
            "optimize": {"type": "OrtTransformersOptimization", "model_type": "bert"},
            "quantize": {"type": "OnnxDynamicQuantization", "precision": "int8", "per_channel": True},
        },
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "target": "here",
        "host": "here",
        "output_dir": str(out / "workflow"),
        "cache_dir": str(out / "cache"),
    }
    found = olive.run(workflow).get_best_candidate()
    if found is None:
        raise RuntimeError("Olive's workflow gave no model")
    from pathlib import Path

    Path(found.model_path).rename(out / "model.onnx")


if __name__ == "__main__":
    serve.main(prepare, Model)

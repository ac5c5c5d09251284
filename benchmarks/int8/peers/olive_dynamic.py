"""Olive: its transformer optimizations for BERT and its dynamic int8 quantization, in one workflow."""

import shutil
from tempfile import TemporaryDirectory

import serve
from ort_graph import Model


def prepare(model, out, texts, graph):
    import olive

    with TemporaryDirectory() as folder:
        workflow = {
            "input_model": {"type": "OnnxModel", "model_path": str(graph)},
            "passes": {
                "optimize": {"type": "OrtTransformersOptimization", "model_type": "bert"},
                "quantize": {"type": "OnnxDynamicQuantization", "precision": "int8", "per_channel": True},
            },
            "systems": {"here": {"type": "LocalSystem", "accelerators": [ACCELERATOR]}},
            "target": "here",
            "host": "here",
            "output_dir": f"{folder}/workflow",
            "cache_dir": f"{folder}/cache",
        }
        made = olive.run(workflow).get_best_candidate()
        if made is None:
            raise RuntimeError("the workflow gave no model")
        shutil.move(made.model_path, out / "model.onnx")


ACCELERATOR = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}

if __name__ == "__main__":
    serve.main(prepare, Model)

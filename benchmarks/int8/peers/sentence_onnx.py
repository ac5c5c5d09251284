"""sentence-transformers with its ONNX backend, quantized by its own helper."""

import onnxruntime as ort
import sentence_torch
import serve
from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model


class Model(sentence_torch.Model):
    def __init__(self, folder, threads):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        chosen = {"file_name": "model_qint8_avx512_vnni.onnx", "session_options": options}
        self.model = SentenceTransformer(str(folder / "model"), device="cpu", backend="onnx", model_kwargs=chosen)


def prepare(model, out, texts, graph):
    exported = SentenceTransformer(str(model), backend="onnx", device="cpu", model_kwargs={"export": True})
    exported.save_pretrained(str(out / "model"))
    export_dynamic_quantized_onnx_model(exported, "avx512_vnni", str(out / "model"))
    (out / "model" / "onnx" / "model.onnx").unlink()


if __name__ == "__main__":
    serve.main(prepare, Model)

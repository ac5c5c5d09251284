"""sentence-transformers with its ONNX backend, quantized by its own helper."""

import serve
from sentence_transformers import SentenceTransformer


def prepare(model, out, texts, graph):
    from sentence_transformers import export_dynamic_quantized_onnx_model

    exported = SentenceTransformer(str(model), backend="onnx", device="cpu", model_kwargs={"export": True})
    exported.save_pretrained(str(out / "model"))
    export_dynamic_quantized_onnx_model(exported, "avx512_vnni", str(out / "model"))
    (out / "model" / "onnx" / "model.onnx").unlink()


class Model:
    def __init__(self, folder, threads):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        chosen = {"file_name": "model_qint8_avx512_vnni.onnx", "session_options": options}
        self.model = SentenceTransformer(str(folder / "model"), device="cpu", backend="onnx", model_kwargs=chosen)

    def embed(self, ids, mask):
        import torch

        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        with torch.inference_mode():
            return self.model(features)["sentence_embedding"].numpy()

    def embed_texts(self, texts):
        return self.model.encode(texts, show_progress_bar=False)


if __name__ == "__main__":
    serve.main(prepare, Model)

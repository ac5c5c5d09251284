"""sentence-transformers on torch in float, as it is loaded by default."""

import serve
import torch
from sentence_transformers import SentenceTransformer


class Model:
    def __init__(self, folder, threads):
        torch.set_num_threads(threads)
        self.model = SentenceTransformer(str(folder / "model"), device="cpu")

    def embed(self, ids, mask):
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        with torch.inference_mode():
            return self.model(features)["sentence_embedding"].numpy()

    def embed_texts(self, texts):
        return self.model.encode(texts, show_progress_bar=False)


def prepare(model, out, texts, graph):
    (out / "model").symlink_to(model)


if __name__ == "__main__":
    serve.main(prepare, Model)

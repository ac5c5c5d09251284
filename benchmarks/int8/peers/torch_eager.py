"""transformers on torch in float: the reference of every cosine."""

import serve
import torch
from transformers import AutoModel


class Model:
    def __init__(self, folder, threads):
        torch.set_num_threads(threads)
        self.model = self.load(folder)

    def load(self, folder):
        return AutoModel.from_pretrained(folder / "model").eval()

    def embed(self, ids, mask):
        with torch.inference_mode():
            mask = torch.from_numpy(mask)
            hidden = self.model(input_ids=torch.from_numpy(ids), attention_mask=mask)[0]
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1).numpy()


def prepare(model, out, texts, graph):
    (out / "model").symlink_to(model)


if __name__ == "__main__":
    serve.main(prepare, Model)

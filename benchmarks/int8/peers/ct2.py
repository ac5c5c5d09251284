"""CTranslate2 in int8; it gives the last hidden states, numpy pools them."""

import ctranslate2
import numpy as np
import serve

_MODEL = "model"


class Model:
    def __init__(self, folder, threads):
        self.encoder = ctranslate2.Encoder(
            str(folder / _MODEL), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )

    def embed(self, ids, mask):
        lengths = mask.sum(axis=1)
        rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        return serve.mean_of_tokens(np.array(self.encoder.forward_batch(rows).last_hidden_state), mask)


def prepare(model, out, texts, graph):
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(model)).convert(str(out / _MODEL), quantization="int8", force=True)


if __name__ == "__main__":
    serve.main(prepare, Model)

"""OpenVINO with NNCF's post-training int8: exported from eager attention, its strongest form, pooling in the graph."""

import openvino as ov
import serve

_FILE = "model.xml"


class Model:
    def __init__(self, folder, threads):
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        compiled = ov.Core().compile_model(folder / _FILE, "CPU", settings)
        self.request = compiled.create_infer_request()

    def embed(self, ids, mask):
        self.request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)
        return self.request.get_output_tensor(0).data.copy()


def prepare(model, out, texts, graph):
    import nncf
    import torch
    from transformers import AutoModel

    class Sentence(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids, attention_mask):
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)

    encoder = AutoModel.from_pretrained(model, attn_implementation="eager").eval()
    ids = torch.full((2, 16), 5)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    converted = ov.convert_model(Sentence(encoder), example_input=example)
    rows = serve.calibration(out, texts)
    data = nncf.Dataset([{"input_ids": ids, "attention_mask": mask} for ids, mask in rows])
    quantized = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    ov.save_model(quantized, out / _FILE)


if __name__ == "__main__":
    serve.main(prepare, Model)

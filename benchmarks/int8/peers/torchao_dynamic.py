"""torchao: dynamic int8 activations and int8 weights, compiled by inductor, which is how torchao gets its speed."""

import serve
import torch
import torch_eager


class Model(torch_eager.Model):
    def load(self, folder):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        model = super().load(folder)
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        return torch.compile(model, dynamic=True)


if __name__ == "__main__":
    serve.main(torch_eager.prepare, Model)

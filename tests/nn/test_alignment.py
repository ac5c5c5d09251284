"""The alignment adapter against a loop over windows, and its size against the models of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from edgec.nn.alignment import AlignmentAdapter, parameter_count


def _adapter(window: int, inputs: int = 6, outputs: int = 7, units: int = 9) -> AlignmentAdapter:
    torch.manual_seed(window)
    return AlignmentAdapter(inputs, outputs, window=window, units=units).eval()


@pytest.mark.parametrize("window", [1, 3, 5])
def test_it_reads_a_zero_padded_window(window: int) -> None:
    adapter = _adapter(window)
    states = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    weights = {name: tensor.detach().numpy() for name, tensor in adapter.named_parameters()}
    expected = []
    for place in range(4):
        read: list[float] = []
        for offset in range(-(window // 2), window // 2 + 1):
            inside = 0 <= place + offset < 4
            read += list(states[place + offset]) if inside else [0.0] * 6
        hidden = weights["hidden.weight"] @ np.array(read) + weights["hidden.bias"]
        active = np.array([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in hidden])
        expected.append(weights["output.weight"] @ active + weights["output.bias"])
    with torch.no_grad():
        found = adapter(torch.from_numpy(states)[None], torch.ones(1, 4, dtype=torch.int32))
    np.testing.assert_allclose(found[0].numpy(), np.array(expected), atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_text_is_the_same_alone_and_in_a_padded_batch(window: int) -> None:
    adapter, states = _adapter(window), torch.randn(3, 8, 6)
    lengths = (8, 3, 1)
    mask = torch.tensor([[1] * n + [0] * (8 - n) for n in lengths], dtype=torch.int32)
    with torch.no_grad():
        together = adapter(states, mask)
        for row, n in enumerate(lengths):
            alone = adapter(states[row : row + 1, :n], mask[row : row + 1, :n])
            torch.testing.assert_close(together[row, :n], alone[0], rtol=0, atol=1e-6)


def test_an_even_window_has_no_middle() -> None:
    with pytest.raises(ValueError, match="odd number of tokens, not 4"):
        AlignmentAdapter(4, 4, window=4)


@pytest.mark.parametrize(
    ("model", "window", "per_cent"),
    [("minilm", 1, 4), ("minilm", 3, 9), ("minilm", 5, 13), ("bert-base", 5, 5)],
)
def test_its_share_of_the_large_model(model: str, window: int, per_cent: int) -> None:
    """The figures of the documentation: width 384 beside all-MiniLM-L6-v2, and 768 beside BERT-base, below 6 %."""
    shapes = {
        "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
        "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
    }
    config = BertConfig(num_attention_heads=12, vocab_size=30522, **shapes[model])
    with torch.device("meta"):
        large = BertModel(config, add_pooling_layer=False)
        adapter = AlignmentAdapter(config.hidden_size, config.hidden_size, window=window)
    size = sum(parameter.numel() for parameter in adapter.parameters())
    assert size == parameter_count(config.hidden_size, config.hidden_size, window=window)
    share = 100 * size / sum(parameter.numel() for parameter in large.parameters())
    assert round(share) == per_cent and (model != "bert-base" or share < 6)

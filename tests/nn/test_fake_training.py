"""Fake-quantized layers in training: gradients pass the rounding, and the integers follow the weights."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgec.nn.fake_quantize import quantized_layer
from edgec.nn.rounding import round_through, steps_of_range
from edgec.state import LayerQuantization

INPUTS, CHANNELS = 40, 24
RANGE = (-2.5, 3.0)
STATIC = LayerQuantization("linear", "static", input_range=RANGE)
FACTORS = tuple(float(f) for f in np.random.default_rng(5).uniform(0.5, 3, INPUTS).astype(np.float32))


def _layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(INPUTS, CHANNELS).eval()


def _rows() -> torch.Tensor:
    return torch.randn(2, 7, INPUTS, generator=torch.Generator().manual_seed(0)) * 1.5


def test_gradients_pass_through_rounding() -> None:
    x = torch.tensor([0.5, 1.5, 2.4, -0.6], requires_grad=True)
    rounded = round_through(x)
    assert rounded.tolist() == [0, 2, 2, -1]
    (rounded * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "decision",
    [
        dataclasses.replace(STATIC, input_range=(-12.0, 12.0), clip=False),
        dataclasses.replace(STATIC, input_range=(-12.0, 12.0), clip=False, smoothing=FACTORS),
        LayerQuantization("linear", "dynamic-tensor", clip=False),
        LayerQuantization("linear", "dynamic-token", clip=False),
        LayerQuantization("linear", "llm-int8", clip=False, outliers=(1, 5)),
        LayerQuantization("linear", "weight-only", block_size=16),
    ],
    ids=lambda decision: decision.scheme + ("-smoothed" if decision.smoothing else ""),
)
def test_a_layer_can_be_trained(decision: LayerQuantization) -> None:
    """As if y = x' @ W' + b with the rounded x' and W': what a training step would follow."""
    layer = _layer()
    module = quantized_layer(layer, decision).train()
    x = _rows().requires_grad_()
    towards = torch.randn(2, 7, CHANNELS, generator=torch.Generator().manual_seed(0))
    y = module(x)
    torch.testing.assert_close(y, module.eval()(x.detach()), rtol=1e-6, atol=1e-6)
    (y * towards).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    # Rounded by hundredths at most, so near the gradients of the float layer.
    exact = x.detach().requires_grad_()
    other = copy.deepcopy(layer)
    (other(exact) * towards).sum().backward()
    for got, expected in (
        (x.grad, exact.grad),
        (layer.weight.grad, other.weight.grad),
        (layer.bias.grad, other.bias.grad),
    ):
        assert float((got - expected).norm() / expected.norm()) < 0.05
        assert float(got.abs().min()) > 0


def test_what_is_clipped_has_no_gradient() -> None:
    for bits in (8, 6):
        x = torch.tensor([-9.0, -2.4, 0.0, 2.9, 9.0], requires_grad=True)
        steps, step = steps_of_range(x, *RANGE, bits)
        (steps * step).sum().backward()
        assert x.grad is not None and x.grad.tolist() == pytest.approx([0, 1, 1, 1, 0])


def test_training_moves_the_integers() -> None:
    layer = _layer()
    module = quantized_layer(layer, dataclasses.replace(STATIC, bits=4, input_range=(-6.0, 6.0)))
    x, target = _rows(), torch.randn(2, 7, CHANNELS, generator=torch.Generator().manual_seed(1))

    def loss() -> torch.Tensor:
        return nn.functional.mse_loss(module(x), target)

    before, integers = loss().item(), module.integers.clone()
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    module.rescale()
    trained = loss().item()
    module.eval()
    assert loss().item() == pytest.approx(trained, rel=1e-5) and trained < 0.8 * before
    assert (module.integers != integers).any() and module.integers.abs().max() <= 7
    np.testing.assert_array_equal(
        module.integers.numpy(), np.clip(np.rint(layer.weight.detach().numpy().T / module.scale.numpy()), -7, 7)
    )


def test_a_table_can_be_trained() -> None:
    layer = nn.Embedding(10, 24)
    module = quantized_layer(layer, LayerQuantization("embedding", "weight-only", bits=4, block_size=16))
    module(torch.tensor([[1, 3], [3, 5]])).sum().backward()
    grad = layer.weight.grad
    assert grad is not None and grad[3].max() == 2 and grad[[0, 2, 4, 6]].abs().max() == 0

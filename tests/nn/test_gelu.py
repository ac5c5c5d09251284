"""GELU by tanh, against the equation."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers.activations import ACT2FN

from edgec.nn.gelu import TanhGelu


def test_every_gelu_is_that_of_the_equation() -> None:
    x = torch.linspace(-6, 6, 4001)
    cubed = x.numpy().astype(np.float64)
    # Hendrycks and Gimpel, arXiv:1606.08415, section 2.
    expected = 0.5 * cubed * (1 + np.tanh(np.sqrt(2 / np.pi) * (cubed + 0.044715 * cubed**3)))
    modules = (ACT2FN["gelu"], nn.GELU(), nn.GELU("tanh"))
    with TanhGelu():
        found = [module(x).numpy() for module in modules]
        relu = torch.relu(x)
    for one in found:
        np.testing.assert_allclose(one, expected, atol=1e-6)
    assert torch.equal(relu, torch.relu(x))
    # Forms says how far apart the two are.
    away = np.abs(expected - nn.GELU()(x).numpy()).max()
    assert 4.7e-4 < away < 4.8e-4

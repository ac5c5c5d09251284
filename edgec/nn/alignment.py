"""The Alignment Adapter (Rai, Dhaka, Awekar: "Alignment Adapter to Improve the Performance of Compressed Deep Learning
Models", section 2): token states of a compressed model in, states like those of a larger model out."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

WINDOWS: Final = (1, 3, 5)
UNITS: Final = 1280
"""Units of the hidden layer in the paper (section 2.1)."""


class AlignmentAdapter(nn.Module):
    """A feed-forward network with one hidden layer over a window of tokens.

    inputs: the compressed model's width, D_C. outputs: the large model's, D_L. window: how many neighbouring tokens it
    reads, an odd number; units: of the hidden layer. Beyond the first and the last token of a text stand zeros, whether
    the row ends there or padding begins, so a text's states are the same alone and in a padded batch.

    The window is a concatenation, which one matrix then reads: `hidden` is (window * D_C -> units), the token furthest
    to the left first, `output` (units -> D_L). The convolution that is the same function is no faster in float,
    a little in int8 (benchmarks/align_forms.py), and linear layers have the int8 forms of every scheme.
    """

    def __init__(self, inputs: int, outputs: int, *, window: int = 5, units: int = UNITS) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(f"a window is an odd number of tokens, not {window}")
        self.window = window
        self.hidden = nn.Linear(window * inputs, units)
        self.output = nn.Linear(units, outputs)

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """states: (batch, tokens, D_C). attention_mask: (batch, tokens), 1 where there is a token. Returns
        (batch, tokens, D_L); what stands at padded places means nothing."""
        return self.output(nn.functional.gelu(self.hidden(self._windows(states, attention_mask))))

    @property
    def inputs(self) -> int:
        """D_C."""
        return self.hidden.in_features // self.window

    @property
    def outputs(self) -> int:
        """D_L."""
        return self.output.out_features

    @property
    def units(self) -> int:
        return self.hidden.out_features

    def _windows(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, window * D_C)."""
        if self.window == 1:
            return states
        masked = states * attention_mask.unsqueeze(-1).to(states.dtype)
        beside = self.window // 2
        padded = nn.functional.pad(masked, (0, 0, beside, beside))
        # Ends that are counted from the end need no number of tokens in the exported graph.
        shifted = [padded[:, first : first + 1 - self.window or None] for first in range(self.window)]
        return torch.cat(shifted, dim=-1)


def parameter_count(inputs: int, outputs: int, *, window: int, units: int = UNITS) -> int:
    """Parameters of an adapter: two matrices and their biases."""
    return (window * inputs + 1) * units + (units + 1) * outputs

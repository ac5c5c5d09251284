"""The passes: one file each, and one literal table of them."""

from edgec.passes.base import Pass, run_pass
from edgec.passes.finetune import Finetune
from edgec.passes.quantize import Quantize

PASSES: dict[str, type] = {
    "finetune": Finetune,
    "quantize": Quantize,
}

__all__ = ["PASSES", "Finetune", "Pass", "Quantize", "run_pass"]

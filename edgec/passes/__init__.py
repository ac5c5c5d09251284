"""The passes: one file each, and one literal table of them."""

from edgec.passes.align import Align
from edgec.passes.base import Pass, run_pass
from edgec.passes.decouple import Decouple
from edgec.passes.distill import Distill
from edgec.passes.finetune import Finetune
from edgec.passes.fuse_adapters import FuseAdapters
from edgec.passes.lora import Lora
from edgec.passes.prune import Prune
from edgec.passes.quantize import Quantize
from edgec.passes.trim_vocab import TrimVocab

PASSES: dict[str, type] = {
    "align": Align,
    "decouple": Decouple,
    "distill": Distill,
    "finetune": Finetune,
    "fuse-adapters": FuseAdapters,
    "lora": Lora,
    "prune": Prune,
    "quantize": Quantize,
    "trim-vocab": TrimVocab,
}

__all__ = [
    "PASSES",
    "Align",
    "Decouple",
    "Distill",
    "Finetune",
    "FuseAdapters",
    "Lora",
    "Pass",
    "Prune",
    "Quantize",
    "TrimVocab",
    "run_pass",
]

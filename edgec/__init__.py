"""edgec: compress a transformer, export it to int8 ONNX, verify it and measure it on the device.

The commands are functions of the same names: `edgec.compress("minilm-int8", out="build/minilm")`. They are imported
on first use, so that `import edgec` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["ask", "audit", "bench", "compress", "evaluate", "export", "index", "run", "sensitivity", "verify"]

if TYPE_CHECKING:
    from edgec.auditing import audit
    from edgec.evaluation import evaluate
    from edgec.operations import bench, export, run, verify
    from edgec.passages import ask, index
    from edgec.pipeline import compress
    from edgec.ranking import sensitivity

_WHERE = {
    "ask": "edgec.passages",
    "audit": "edgec.auditing",
    "bench": "edgec.operations",
    "compress": "edgec.pipeline",
    "evaluate": "edgec.evaluation",
    "export": "edgec.operations",
    "index": "edgec.passages",
    "run": "edgec.operations",
    "sensitivity": "edgec.ranking",
    "verify": "edgec.operations",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'edgec' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)

"""Runs edgec bundles with numpy and onnxruntime.

model = edgec_runtime.load("bundles/x86_64-vnni")
vectors = model.embed(["a text", "another"])
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final

# The Linux wheels of onnxruntime write a device id and a database below ~/.cache and start a thread unless
# this stands in the environment before the library loads; disable_telemetry_events() does not stop the files.
if "onnxruntime" in sys.modules and "ORT_DISABLE_TELEMETRY" not in os.environ:
    warnings.warn(
        "onnxruntime was imported before edgec_runtime, with its telemetry on: import edgec_runtime first, "
        "or set ORT_DISABLE_TELEMETRY=1",
        RuntimeWarning,
        stacklevel=2,
    )
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .archive import unpack
    from .errors import BundleError
    from .loading import load
    from .notices import BundleWarning, TruncationWarning
    from .retrieval.documents import Document
    from .retrieval.indexing import Indexed, index
    from .retrieval.reader import Answers, PassageAnswer, PassageReader
    from .tasks.answer import Answer, Reader
    from .tasks.classify import Classifier, Label
    from .tasks.embed import EmbeddingModel
    from .tasks.mask import MaskFill, MaskFiller
    from .tasks.tag import Span, Tagger

__all__ = [
    "Answer",
    "Answers",
    "BundleError",
    "BundleWarning",
    "Classifier",
    "Document",
    "EmbeddingModel",
    "Indexed",
    "Label",
    "MaskFill",
    "MaskFiller",
    "PassageAnswer",
    "PassageReader",
    "Reader",
    "Span",
    "Tagger",
    "TruncationWarning",
    "index",
    "load",
    "unpack",
]

# Imported at first use: edgec reads the manifest format from here and wants neither numpy nor onnxruntime for
# it.
_HOMES: Final = {
    "Answer": "tasks.answer",
    "Answers": "retrieval.reader",
    "BundleError": "errors",
    "BundleWarning": "notices",
    "Classifier": "tasks.classify",
    "Document": "retrieval.documents",
    "EmbeddingModel": "tasks.embed",
    "Indexed": "retrieval.indexing",
    "Label": "tasks.classify",
    "MaskFill": "tasks.mask",
    "MaskFiller": "tasks.mask",
    "PassageAnswer": "retrieval.reader",
    "PassageReader": "retrieval.reader",
    "Reader": "tasks.answer",
    "Span": "tasks.tag",
    "Tagger": "tasks.tag",
    "TruncationWarning": "notices",
    "index": "retrieval.indexing",
    "load": "loading",
    "unpack": "archive",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value

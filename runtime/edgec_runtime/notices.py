"""Warnings of the runtime: things a caller should know about that do not stop the work."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)


class BundleWarning(UserWarning):
    """The bundle runs, but its answers may differ from those that were verified."""


class TruncationWarning(BundleWarning):
    """A text was longer than the model reads, and its end was left out."""


def warn(message: str, category: type[BundleWarning]) -> None:
    """Warn in the name of the line outside this package that led here."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)

"""What a bundle answers on other kinds of CPU, told without such a machine."""

from __future__ import annotations

from .graph import EmulatedEngine, Pairs, emulate
from .kinds import KINDS, Kind, kind_of, kind_of_target
from .native import adapt, foreign_kind, load_as_target
from .spread import Spread, spread, verification

__all__ = [
    "KINDS",
    "EmulatedEngine",
    "Kind",
    "Pairs",
    "Spread",
    "adapt",
    "emulate",
    "foreign_kind",
    "kind_of",
    "kind_of_target",
    "load_as_target",
    "spread",
    "verification",
]

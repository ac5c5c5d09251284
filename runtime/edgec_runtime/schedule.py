"""Which schedule a bundle runs on, and on how many threads. `runner` carries it out."""

from __future__ import annotations

from typing import Final

from .errors import ManifestInvalid
from .manifest import Execution, Part

SCHEDULES: Final = ("streams", "batches")


def choose(part: Part, execution: Execution, override: str | None) -> str:
    """The schedule to use. Padding needs a mask and an answer that does not depend on batch-mates; without
    either the rows run alone, whatever was asked for.

    Raises ValueError for an unknown name given by the caller, ManifestInvalid for one in the manifest.
    """
    known = ", ".join(SCHEDULES)
    if override is not None and override not in SCHEDULES:
        raise ValueError(f"unknown schedule {override!r}; known are {known}")
    if execution.schedule not in SCHEDULES or execution.batch_size < 1:
        raise ManifestInvalid(
            f"execution: schedule {execution.schedule!r} (known are {known}), batch_size {execution.batch_size}",
            "export the bundle again",
        )
    masked = any(tensor.name == "attention_mask" for tensor in part.inputs)
    return (override or execution.schedule) if execution.batch_invariant and masked else "streams"

"""Replays a bundle's golden vectors on a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgec.errors import DeviceError, EdgecError, GateFailed

from .device import Device, last_words, refusal


def replay(device: Device, bundle: Path, *, on_warning: Callable[[str], None]) -> dict[str, Any]:
    """The JSON that `python -m edgec_runtime check` writes on the device; its `ok` tells the outcome.

    Raises EdgecError with the runtime's exit code where it refuses the bundle there, a BundleError for what is no
    bundle, and DeviceError where the device fails.
    """
    placed = device.place(bundle)
    done = device.runtime(
        ["check", placed, "--json", "-"],
        on_line=lambda line: on_warning(line) if line.startswith("warning: ") else None,
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    refused = refusal(done)
    if refused is None:
        raise DeviceError(f"{device.name}: the check did not finish: {last_words(done)}")
    cause, hint = refused
    error = EdgecError(f"{device.name}: {cause}", hint)
    error.exit_code = done.code
    raise error


def reproduced(device: Device, bundle: Path, target: str, *, on_warning: Callable[[str], None]) -> dict[str, Any]:
    """How far the device is from the golden vectors of the bundle for `target`: device, max_abs, min_cosine.

    Raises GateFailed, naming the worst output, where that is too far, and what `replay` raises.
    """
    found = replay(device, bundle, on_warning=on_warning)
    if not found["ok"]:
        raise GateFailed(
            f"{target} on {device.name}: {found['failure']}; the worst output is {found['worst_output']!r}",
            "the device does not reproduce the answers: choose a target that fits it",
        )
    return {"device": device.name, "max_abs": found["max_abs"], "min_cosine": found["min_cosine"]}

"""Whether this machine answers as a target's CPUs do, and a bundle that does so wherever it is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from edgec_runtime import cpu, load
from edgec_runtime.manifest import TargetInfo
from edgec_runtime.notices import BundleWarning

from .kinds import Kind
from .model import emulated
from .operators import rewrite

if TYPE_CHECKING:
    from edgec_runtime.loading import Model


def foreign_kind(target: TargetInfo) -> Kind | None:
    """What has to be emulated for the 8-bit products of `target` to be right here; None where they are by themselves.

    target: features are those that its answers hang on. A machine that does not list its features is trusted.
    """
    has = cpu.features()
    if has is None:
        return None
    needed = {cpu.feature(name) for name in target.features}
    arm = cpu.architecture(target.arch) == "aarch64"
    if arm and cpu.architecture() == "x86_64":
        # Arm adds in 32 bits whatever the weights; x86 does so with VNNI alone.
        needed = {"vnni"}
    if needed <= {cpu.feature(name) for name in has}:
        return None
    return "arm64" if arm else "vnni" if "vnni" in needed else "avx2"


def adapt(target: TargetInfo, model: ir.Model) -> None:
    """Change the 8-bit products of a graph for `target`, in place, where this machine's would not be right for it."""
    kind = foreign_kind(target)
    if kind is not None:
        rewrite(model, kind)


@contextmanager
def load_as_target(bundle: Path) -> Iterator[Model]:
    """The bundle, answering as its target's CPUs do, which may be slower than it is. Raises a BundleError."""
    with warnings.catch_warnings():
        # That this machine is not the target's is no news here.
        warnings.simplefilter("ignore", BundleWarning)
        model = load(bundle)
    with model:
        kind = foreign_kind(model.manifest.target)
        if kind is not None and any(part.precision == "int8" for part in model.manifest.parts):
            model.runner.engine = emulated(model, bundle, kind)
        yield model

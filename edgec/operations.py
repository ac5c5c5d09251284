"""What the commands export, verify, bench and run do. `compress` stands in edgec.pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgec_runtime import load
from edgec_runtime.manifest import Manifest
from edgec_runtime.tasks.embed import OUTPUT as EMBEDDING
from edgec_runtime.tasks.embed import EmbeddingModel

from edgec.budget import judged_shape
from edgec.devices import compare, open_device
from edgec.devices.replay import replay
from edgec.errors import BudgetMissed, UserError
from edgec.files import require_free
from edgec.target import FORMS_WORDS, Target, check_forms, load_target, misfits
from edgec.task_rules import MAX_ANSWER_TOKENS

if TYPE_CHECKING:
    from edgec.devices import Device
    from edgec.exporter import Exporter

Say = Callable[[str], None]


def export(
    model: str | Path,
    *,
    target: str,
    out: str | Path | None = None,
    task: str | None = None,
    revision: str | None = None,
    opset: int = 23,
    max_length: int | None = None,
    null_answers: bool = False,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
    forms: str = "kept",
    on: str | None = None,
    speedup: float | None = None,
    on_miss: Literal["fail", "fallback"] = "fail",
    force: bool = False,
    trust_remote_code: bool = False,
    say: Say = lambda message: None,
) -> Manifest:
    """Export a model source (fp32), or a build that `compress` wrote (as it was quantized), for one target.

    out: default NAME-TARGET. revision: of a hub id. null_answers, max_answer_tokens: of question-answering, see
    docs/recipes.md. on: a device of the target; the bundle is measured there against fp32 and the plain export.
    speedup: how many times as fast as fp32 it has to be; where it is not, nothing is written and BudgetMissed raised,
    or with on_miss="fallback" the fp32 bundle is written. forms: see edgec.costs.find. Raises EdgecError or
    BundleError.
    """
    chosen = load_target(target)
    source = _build_folder(model)
    if speedup is not None and on is None:
        raise UserError("a speed-up needs a device to measure it on", "give --on local, or --on ssh://user@host")
    if out is not None:
        require_free(Path(out), force=force)
    check_forms(forms)
    with ExitStack() as stack:
        device = None if on is None else stack.enter_context(open_device(on))
        if device is not None and (reasons := misfits(chosen, device.facts())):
            raise UserError(
                f"{device.name} is not of the target {chosen.name}: {'; '.join(reasons)}",
                "measure on such a device, or leave out --on",
            )
        say(f"load {source}")
        from edgec.costs import Choices, replayed
        from edgec.exporter import Exporter
        from edgec.models import load_model

        state = load_model(
            source, task=task, revision=revision, max_length=max_length, trust_remote_code=trust_remote_code
        )
        folder = Path(out) if out is not None else Path(f"{state.spec.name}-{chosen.name}")
        require_free(folder, force=force)
        say("trace the float graph and compare it with torch")
        exporter = Exporter(
            state, name=state.spec.name, opset=opset, null_answers=null_answers, max_answer_tokens=max_answer_tokens
        )
        if device is None:
            say(f"export for {chosen.name}")
            found = replayed(forms) if forms not in FORMS_WORDS else Choices(chosen.forms)
            return exporter.write(folder, chosen, forms=found.forms, force=force)
        return _export_measured(
            exporter, folder, chosen, device, forms=forms, speedup=speedup, on_miss=on_miss, force=force, say=say
        )


def _export_measured(
    exporter: Exporter,
    folder: Path,
    target: Target,
    device: Device,
    *,
    forms: str,
    speedup: float | None,
    on_miss: str,
    force: bool,
    say: Say,
) -> Manifest:
    from edgec.bundle import annotate
    from edgec.costs import find

    choices = find(forms, exporter, target, device, device.facts(), say=say)
    with tempfile.TemporaryDirectory(prefix="edgec-export-", ignore_cleanup_errors=True) as temporary:
        bundles = [Path(temporary) / name for name in ("fp32", "candidate", "plain")]
        exporter.write(bundles[0], target, precision="fp32")
        say(f"export for {target.name}")
        exporter.write(bundles[1], target, forms=choices.forms)
        exporter.write_plain(bundles[2], target)
        say(f"measure {target.name} against fp32 on {device.name}")
        report = compare.bench(device, bundles, cold_start=False, on_line=say)
    shape = judged_shape(report.bundles[1])
    ratio, plain = (report.bundles[index].shapes[shape].ratio for index in (1, 2))
    told = (
        f"{ratio.median:.2f}x fp32 (p10 {ratio.p10:.2f}, p90 {ratio.p90:.2f}) and {ratio.median / plain.median:.2f}x "
        f"the plain export on {device.name}, batch {shape[0]}, {shape[1]} tokens"
    )
    say(f"{target.name}: {told}")
    precision = None
    if speedup is not None and ratio.median < speedup:
        if on_miss == "fail":
            raise BudgetMissed(
                f"{target.name}: {told}, where {speedup:g}x is asked for",
                "nothing was written; `edgec audit` of a bundle exported without --speedup shows where its time goes",
            )
        say(f"{target.name}: the speed-up is missed, fp32 ships instead")
        precision = "fp32"
    exporter.write(folder, target, precision=precision, forms=choices.forms, force=force)
    return annotate(folder, measured=True)


def verify(
    bundle: str | Path, *, on: str = "local", kinds: Sequence[str] = (), say: Say = lambda message: None
) -> dict[str, Any]:
    """Replay the bundle's golden vectors on a device: the JSON that `python -m edgec_runtime check` writes there.

    kinds: of CPU, or targets that have it; the golden requests are then answered here as those CPUs would, and the
    JSON is that of edgec.emulation.verification. Its `ok` tells the outcome. Raises EdgecError or BundleError;
    DeviceError where the device fails.
    """
    if kinds:
        from edgec.emulation import kind_of, verification

        if on != "local":
            raise UserError("other kinds of CPU are emulated on this machine only", "leave out either --on or --as")
        chosen = [kind_of(name) for name in kinds]
        say(f"answer the golden requests as {', '.join(dict.fromkeys(chosen))}")
        return verification(Path(bundle), chosen)
    with open_device(on) as device:
        say(f"replay the golden vectors on {device.name}")
        return {"device": device.name, **replay(device, Path(bundle), on_warning=say)}


def bench(
    bundles: Sequence[str | Path],
    *,
    on: str = "local",
    tokens: Sequence[int] = (16, 64, 128),
    batch: Sequence[int] = (1,),
    threads: int | None = None,
    rounds: int = 20,
    cold_start: bool = True,
    say: Say = lambda message: None,
) -> compare.BenchReport:
    """Measure bundles side by side on a device; each is compared with the first. See edgec.devices.compare.bench."""
    with open_device(on) as device:
        return compare.bench(
            device,
            [Path(bundle) for bundle in bundles],
            tokens=tokens,
            batch=batch,
            threads=threads,
            rounds=rounds,
            cold_start=cold_start,
            on_line=say,
        )


def run(bundle: str | Path, inputs: Sequence[Any]) -> list[Any]:
    """Answer requests in the form that the bundle's task takes, as JSON values; an embedding is a list of floats.

    A request is a text, a pair [a, b] or {"question": ..., "context": ...}. Raises a BundleError.
    """
    with load(bundle) as model:
        encoded = model.encode_all(inputs)
        outputs = model.outputs(encoded)
        if isinstance(model, EmbeddingModel):
            return [rows[0][EMBEDDING].tolist() for rows in outputs]
        return [model.interpret(*one) for one in zip(inputs, encoded, outputs, strict=True)]


def _build_folder(model: str | Path) -> str:
    """`edgec export build/NAME` means the model in it."""
    inside = Path(model) / "model"
    return str(inside if (inside / "edgec.json").is_file() else model)

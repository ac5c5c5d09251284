"""What the commands do, from top to bottom. `compress` is the program; the others are its parts on their own.

What needs torch is imported where the work begins: a mistake in a recipe, a target or a path is told at once.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgec_runtime import load
from edgec_runtime.manifest import Manifest, Quality
from edgec_runtime.notices import BundleWarning
from edgec_runtime.tasks.embed import OUTPUT as EMBEDDING
from edgec_runtime.tasks.embed import EmbeddingModel

from edgec import budget
from edgec.data.readers import Text, read_texts
from edgec.devices import compare, open_device
from edgec.devices.replay import replay, reproduced
from edgec.errors import BudgetMissed
from edgec.files import atomic_folder, require_free
from edgec.passes import PASSES, run_pass
from edgec.passes.cache import PassCache
from edgec.recipe import EvaluationData, Recipe, TextData, check_passes, load_recipe
from edgec.report import Report, make_report, write_report
from edgec.state import ModelState, PassContext, Progress, no_progress
from edgec.target import detect, load_target, misfits
from edgec.task_rules import MAX_ANSWER_TOKENS, check_recipe

if TYPE_CHECKING:
    from edgec.exporter import Exporter

Say = Callable[[str], None]

SCHEDULE_GAIN: Final = 1.05
"""How much faster than streams padded batches must be before they are chosen: streams are exact and pad nothing."""


def compress(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    on: str = "local",
    overrides: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
    say: Say = lambda message: None,
) -> Report:
    """Run a recipe: load, passes, export for every target, verify, measure, judge.

    Writes `out` (default build/NAME) whole or not at all: `model`, `baseline` (the fp32 bundle), `bundles/TARGET` and
    `report.json`. on: the device that measures. overrides: "passes.0.scheme=dynamic". resume: take up the passes that
    an interrupted run finished. force: replace `out`. Raises EdgecError or BundleError; GateFailed where the device
    does not reproduce the answers of a bundle made for it. A missed budget raises nothing here: `verdicts` of the
    report tell it, and require_budget raises.
    """
    started = time.monotonic()
    asked = load_recipe(recipe, overrides=overrides, passes=PASSES)
    check_recipe(asked, asked.model.task)
    targets = [load_target(name) for name in asked.targets]
    out = Path(out) if out is not None else Path("build") / asked.name
    require_free(out, force=force)
    calibration, evaluation = (_texts(data) for data in (asked.data.calibrate, asked.data.evaluate))
    if not calibration:
        for step in check_passes(asked, PASSES):
            step.requires_texts()
    cache = PassCache(out, resume=resume)

    with open_device(on) as device, atomic_folder(out, force=force) as work, cache:
        facts = device.facts()
        fitting = [target for target in targets if not misfits(target, facts)]
        measured = detect(facts, fitting)[0] if fitting else None
        say(f"load {asked.model.source}")
        from edgec.bundle import annotate
        from edgec.exporter import FP32
        from edgec.models import save_build

        state = _compressed(asked, calibration, cache, work, progress, say)
        say("save the compressed model")
        save_build(state, work / "model")

        say("trace the float graph and compare it with torch")
        exporter = _exporter(state, asked)
        baseline = exporter.write(work / "baseline", measured or targets[0], precision=FP32)
        bundles: dict[str, Manifest] = {}
        for target in targets:
            say(f"export for {target.name}")
            folder = work / "bundles" / target.name
            exporter.write(folder, target)
            found = _quality(work / "baseline", folder, asked.data.evaluate, evaluation, progress)
            bundles[target.name] = annotate(folder, quality=found, schedule=asked.export.schedule)

        verified = {}
        for target in fitting:
            say(f"verify {target.name} on {device.name}")
            verified[target.name] = reproduced(device, work / "bundles" / target.name, target.name, on_warning=say)
        bench = None
        if measured is not None and not device.emulated:
            say(f"measure {measured.name} against fp32 on {device.name}")
            folder = work / "bundles" / measured.name
            bench = compare.bench(device, [work / "baseline", folder], on_line=say)
            schedule = asked.export.schedule or _schedule(bench.bundles[1])
            bundles[measured.name] = annotate(folder, measured=True, schedule=schedule)

        timed = measured.name if bench is not None and measured is not None else None
        verdicts = budget.judge(asked.budget, bundles, bench, timed)
        missed = [verdict for verdict in verdicts if verdict.met is False]
        fell_back = []
        if asked.budget.on_miss == "fallback":
            fell_back = sorted({verdict.target for verdict in missed})
            for name in fell_back:
                say(f"{name}: the budget is missed, fp32 ships instead")
                folder = work / "bundles" / name
                shutil.rmtree(folder)
                exporter.write(folder, load_target(name), precision=FP32)
                bundles[name] = annotate(folder, schedule=asked.export.schedule)
                if name in verified:
                    say(f"verify {name} on {device.name}")
                    verified[name] = reproduced(device, folder, name, on_warning=say)
        report = make_report(
            out,
            recipe=asked.to_dict(),
            command=_command(recipe, overrides, on),
            device=device.name,
            facts=facts,
            history=state.history,
            baseline=baseline,
            bundles=bundles,
            bench=bench,
            measured=timed,
            verified=verified,
            verdicts=verdicts,
            fell_back=fell_back,
            seconds=time.monotonic() - started,
        )
        write_report(work, report)
    return report


def require_budget(report: Report) -> None:
    """Raises BudgetMissed where a limit was missed and nothing fell back."""
    missed = [verdict for verdict in report.verdicts if verdict.met is False]
    if missed and not report.data["fell_back"]:
        raise BudgetMissed(
            "; ".join(map(str, missed)),
            f"everything was written to {report.out}; loosen the budget, change the passes, or set on_miss: fallback",
        )


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
    force: bool = False,
    trust_remote_code: bool = False,
    say: Say = lambda message: None,
) -> Manifest:
    """Export a model source (fp32), or a build that `compress` wrote (as it was quantized), for one target.

    out: default NAME-TARGET. revision: of a hub id. null_answers, max_answer_tokens: of question-answering, see
    docs/recipes.md. Raises EdgecError or BundleError.
    """
    chosen = load_target(target)
    source = _build_folder(model)
    if out is not None:
        require_free(Path(out), force=force)
    say(f"load {source}")
    from edgec.exporter import Exporter
    from edgec.models import load_model

    state = load_model(source, task=task, revision=revision, max_length=max_length, trust_remote_code=trust_remote_code)
    folder = Path(out) if out is not None else Path(f"{state.spec.name}-{chosen.name}")
    require_free(folder, force=force)
    say("trace the float graph and compare it with torch")
    exporter = Exporter(
        state, name=state.spec.name, opset=opset, null_answers=null_answers, max_answer_tokens=max_answer_tokens
    )
    say(f"export for {chosen.name}")
    return exporter.write(folder, chosen, force=force)


def verify(bundle: str | Path, *, on: str = "local", say: Say = lambda message: None) -> dict[str, Any]:
    """Replay the bundle's golden vectors on a device: the JSON that `python -m edgec_runtime check` writes there.

    Its `ok` tells the outcome. Raises EdgecError or BundleError; DeviceError where the device fails.
    """
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


def _compressed(
    asked: Recipe,
    calibration: tuple[Text, ...],
    cache: PassCache,
    work: Path,
    progress: Progress,
    say: Say,
) -> ModelState:
    """The model after all passes of the recipe."""
    from edgec.models import load_model

    state = load_model(
        asked.model.source,
        task=asked.model.task,
        revision=asked.model.revision,
        sha256=asked.model.sha256,
        trust_remote_code=asked.model.trust_remote_code,
        max_length=asked.export.max_length,
    )
    spec = state.spec
    check_recipe(
        asked,
        spec.task,
        max_length=spec.max_length,
        multi_label=spec.multi_label,
        dynamic=state.quantization is not None and not state.quantization.batch_invariant,
    )
    original = state
    done: list[dict[str, Any]] = []
    for config, step in zip(asked.passes, check_passes(asked, PASSES), strict=True):
        done.append({config.name: dataclasses.asdict(step)})
        key = cache.key(original, done, calibration, asked.seed)
        cached = cache.get(key)
        if cached is not None:
            say(f"pass {config.name}: taken from the interrupted run")
            state = cached
            continue
        say(f"pass {config.name}")
        state = run_pass(step, state, PassContext(work, calibration, asked.seed, progress))
        cache.put(key, state)
    return state


def _exporter(state: ModelState, asked: Recipe) -> Exporter:
    from edgec.exporter import Exporter

    settings = asked.export
    return Exporter(
        state,
        name=asked.name,
        opset=settings.opset,
        long_text=settings.long_text,
        stride=settings.stride,
        null_answers=settings.null_answers,
        max_answer_tokens=settings.max_answer_tokens,
        seed=asked.seed,
    )


def _quality(
    baseline: Path,
    folder: Path,
    data: EvaluationData | None,
    texts: tuple[Text, ...],
    progress: Progress,
) -> Quality | None:
    """By the labels of data.evaluate where it has them, by the cosine against fp32 where it has texts alone."""
    if data is None:
        return None
    from edgec.evaluation import evaluate, quality

    with warnings.catch_warnings():
        # The bundle of another machine class answers here all the same; verify tells what it does there.
        warnings.simplefilter("ignore", BundleWarning)
        if data.label_column is None:
            with load(baseline) as reference, load(folder) as candidate:
                mask = candidate.manifest.postprocessing.mask_token or ""
                task = candidate.manifest.task
                return quality(reference, candidate, task, texts, mask_token=mask, progress=progress)
        before, after = (
            evaluate(
                path,
                data.path,
                format=data.format,
                text=data.text_column,
                text_pair=data.text_pair_column,
                label=data.label_column,
                rows=data.rows,
                progress=progress,
            )
            for path in (baseline, folder)
        )
    metric: str = data.metric or next(iter(after.metrics))  # the first is the task's main one
    drop = before.metrics[metric] - after.metrics[metric]
    return Quality(metric, before.metrics[metric], after.metrics[metric], drop, after.n)


def _texts(data: TextData | None) -> tuple[Text, ...]:
    if data is None:
        return ()
    return tuple(
        read_texts(
            data.path,
            format=data.format,
            text=data.text_column,
            text_pair=data.text_pair_column,
            rows=data.rows,
        )
    )


def _schedule(figures: compare.BundleFigures) -> str:
    speeds = {name: found.texts_per_s for name, found in figures.schedules.items()}
    # A bundle whose answers depend on batch-mates never runs in batches, so it has no figures of them.
    return "batches" if speeds.get("batches", 0) > speeds["streams"] * SCHEDULE_GAIN else "streams"


def _build_folder(model: str | Path) -> str:
    """`edgec export build/NAME` means the model in it."""
    inside = Path(model) / "model"
    return str(inside if (inside / "edgec.json").is_file() else model)


def _command(recipe: str | Path, overrides: Sequence[str], on: str) -> str:
    words = ["edgec", "compress", "--recipe", str(recipe)]
    words += [] if on == "local" else ["--on", on]
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)

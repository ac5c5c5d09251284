"""What `compress` does, from top to bottom.

What needs torch is imported where the work begins: a mistake in a recipe, a target or a path is told at once.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgec_runtime.manifest import Manifest

from edgec import budget
from edgec.data.readers import Sample
from edgec.devices import compare, open_device
from edgec.devices.replay import reproduced
from edgec.errors import BudgetMissed, UserError
from edgec.files import atomic_folder, require_free
from edgec.passes import PASSES
from edgec.passes.cache import PassCache
from edgec.processes import is_main
from edgec.recipe import Recipe, load_recipe
from edgec.report import Report, make_report, write_report
from edgec.sequence import Passed, check_asked, read_data, run_passes
from edgec.state import ModelState, Progress, no_progress
from edgec.target import Target, check_forms, detect, load_target, misfits

if TYPE_CHECKING:
    from edgec.costs import Choices
    from edgec.devices import Device
    from edgec.evaluation import Evaluation
    from edgec.evaluation.original import Original
    from edgec.exporter import Exporter
    from edgec.put_back import Outcome
    from edgec.ranking import Ranking

Say = Callable[[str], None]

SCHEDULE_GAIN: Final = 1.05
"""How much faster than streams padded batches must be before they are chosen: streams are exact and pad nothing."""


def compress(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    on: str = "local",
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    forms: str = "kept",
    resume: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
    say: Say = lambda message: None,
) -> Report:
    """Run a recipe: load, passes, export for every target, put back what the budget asks for, verify, measure, judge.

    Writes `out` (default build/NAME) whole or not at all: `model`, `baseline` (the fp32 bundle), `bundles/TARGET`, with
    export.compressed `bundles/TARGET.zip`, `report.json` and `report.html`. on: the device that measures. overrides:
    "passes.0.scheme=dynamic". data: the folder of the data sets that the recipe names as data://. forms: which
    operators compute the graph, see edgec.costs.find. resume: take up the passes that an interrupted run finished.
    force: replace `out`. Raises EdgecError or BundleError; GateFailed where the device does not reproduce the answers
    of a bundle made for it. A missed budget raises nothing here: `verdicts` of the report tell it, and require_budget
    raises. Of several processes that train together the first calls this, the others `take_part`.
    """
    started = time.monotonic()
    if not is_main():
        raise UserError("compress writes, which the first process does alone", "call edgec.pipeline.take_part here")
    asked, out = _asked(recipe, out, overrides, data)
    targets = [load_target(name) for name in asked.targets]
    require_free(out, force=force)
    check_forms(forms)
    rows = read_data(asked, say)
    calibration, evaluation = rows.calibration, rows.evaluation

    with (
        # Around the folder: what the passes have kept goes when the build is in its place, not before.
        PassCache(out, resume=resume, say=say) as cache,
        open_device(on) as device,
        atomic_folder(out, force=force) as work,
    ):
        cache.begin()
        facts = device.facts()
        fitting = [target for target in targets if not misfits(target, facts)]
        measured = detect(facts, fitting)[0] if fitting else None
        timed = None if measured is None or device.emulated else measured
        say(f"load {asked.model.source}")
        from edgec import costs
        from edgec.bundle import annotate
        from edgec.evaluation import scored
        from edgec.exporter import FP32
        from edgec.models import save_build
        from edgec.page import write_page

        passed = run_passes(asked, rows, cache, work, progress, say)
        state = passed.state
        say("trace the float graph and compare it with torch")
        exporter = _exporter(state, asked)
        baseline = exporter.write(work / "baseline", measured or targets[0], precision=FP32)
        choices = costs.find(forms, exporter, timed, device, facts, say=say)
        told = asked.data.evaluate
        scores = None if told is None else scored(work / "baseline", told, progress=progress)
        build = _Build(work, asked, targets, timed, choices, evaluation, scores, progress, say)
        original = build.against_original(passed)
        bundles = build.export(exporter)
        ranking, outcome = _put_back(build, exporter, calibration, bundles, cache)
        if outcome is not None:
            state = outcome.state
            exporter = exporter.of(state)
            bundles = build.export(exporter)
        say("save the compressed model")
        save_build(state, work / "model")
        for name, found in build.spread(bundles).items():
            bundles[name] = annotate(work / "bundles" / name, spread=found)

        verified = {}
        for target in fitting:
            say(f"verify {target.name} on {device.name}")
            verified[target.name] = reproduced(device, work / "bundles" / target.name, target.name, on_warning=say)
        bench = None
        if timed is not None:
            bundles[timed.name], bench = _timed(device, work, exporter, timed, asked, say)

        judged = None if timed is None or _for_size_alone(state) else timed.name
        verdicts = budget.judge(asked.budget, bundles, bench, judged)
        fell_back = []
        if asked.budget.on_miss == "fallback":
            fell_back = sorted({verdict.target for verdict in verdicts if verdict.met is False})
            for name in fell_back:
                say(f"{name}: the budget is missed, fp32 ships instead")
                folder = work / "bundles" / name
                shutil.rmtree(folder)
                exporter.write(folder, load_target(name), precision=FP32)
                bundles[name] = annotate(folder, schedule=asked.export.schedule)
                if name in verified:
                    say(f"verify {name} on {device.name}")
                    verified[name] = reproduced(device, folder, name, on_warning=say)
        archives = build.archives(bundles) if asked.export.compressed else {}
        report = make_report(
            out,
            recipe=asked.to_dict(),
            command=_command(recipe, overrides, on, forms, data),
            device=device.name,
            facts=facts,
            history=state.history,
            original=original,
            baseline=baseline,
            bundles=bundles,
            bench=bench,
            measured=None if timed is None else timed.name,
            verified=verified,
            verdicts=verdicts,
            fell_back=fell_back,
            calibration=calibration,
            data=rows.counts,
            choices=choices,
            ranking=ranking,
            outcome=outcome,
            audits=build.audits(bundles),
            tensors=build.tensors(bundles),
            archives=archives,
            seconds=time.monotonic() - started,
        )
        write_report(work, report)
        say("write the report page")
        write_page([(out, report.data)], work / "report.html")
    return report


def take_part(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    resume: bool = False,
) -> None:
    """What compress does in the processes beside the first: load, and the passes, which train together.

    Takes the same arguments as the first process is given, writes nothing, and is done after the last pass.
    """
    asked, out = _asked(recipe, out, overrides, data)
    rows = read_data(asked, _silent)
    with tempfile.TemporaryDirectory(prefix="edgec-") as work:
        cache = PassCache(out, resume=resume, writes=False)
        run_passes(asked, rows, cache, Path(work), no_progress, _silent)


def _asked(
    recipe: str | Path, out: str | Path | None, overrides: Sequence[str], data: str | Path | None
) -> tuple[Recipe, Path]:
    """The checked recipe, and the folder that its build goes to."""
    asked = load_recipe(recipe, overrides=overrides, passes=PASSES, data=None if data is None else Path(data))
    check_asked(asked)
    if asked.awaited:
        raise UserError(
            f"{asked.source_path}: {asked.awaited[0]} is a file of a data set, and none of those ship with edgec",
            "name the folder that holds the data sets: --data DIR",
        )
    return asked, Path(out) if out is not None else Path("build") / asked.name


def _silent(message: str) -> None:
    """A Say of processes that do not report."""


@dataclasses.dataclass(frozen=True)
class _Build:
    """The bundles of one build, and what is told about them. timed: the target that is measured, or None. scores: of
    the baseline, where there are labels.
    """

    work: Path
    asked: Recipe
    targets: Sequence[Target]
    timed: Target | None
    choices: Choices
    evaluation: Sample
    scores: Evaluation | None
    progress: Progress
    say: Say

    def against_original(self, passed: Passed) -> Original | None:
        """What the passes cost, told in float: rounding is judged apart."""
        from edgec.evaluation.original import against_original

        if passed.original is None:
            return None
        self.say(f"compare with the model before {passed.before}")
        return against_original(
            passed.original,
            passed.before,
            passed.state,
            self.work / "baseline",
            self.asked.data.evaluate,
            self.evaluation,
            scores=self.scores,
            reading=_reading(self.asked),
            progress=self.progress,
        )

    def export(self, exporter: Exporter) -> dict[str, Manifest]:
        """Write and score the bundle of every target, by its name. What lies there is replaced."""
        from edgec.bundle import annotate
        from edgec.evaluation import bundle_quality

        made = {}
        for target in self.targets:
            self.say(f"export for {target.name}")
            folder, found = self.work / "bundles" / target.name, None
            # What was measured holds for the machine that it was measured on; a replayed choice holds for all.
            here = target == self.timed or self.choices.source == "replayed"
            forms = self.choices.forms if here else target.forms
            exporter.write(folder, target, forms=forms, min_cosine=self._min_cosine, force=True)
            data = self.asked.data.evaluate
            if data is not None:
                fp32, texts = self.work / "baseline", self.evaluation
                found = bundle_quality(fp32, folder, data, texts, before=self.scores, progress=self.progress)
            made[target.name] = annotate(folder, quality=found, schedule=self.asked.export.schedule)
        return made

    @property
    def _min_cosine(self) -> float:
        """Where layers can be put back a graph that is far off is where that starts, and not an error."""
        from edgec.graph.parity import INT8_MIN_COSINE

        limits = self.asked.budget
        return -1.0 if limits.accuracy_drop is not None and limits.put_back != "none" else INT8_MIN_COSINE

    def spread(self, bundles: Mapping[str, Manifest]) -> dict[str, dict[str, dict[str, float]]]:
        """How each quantized bundle would answer on the kinds of CPU, by target."""
        from edgec.emulation import spread

        found = {}
        for name, manifest in bundles.items():
            if manifest.parts[0].precision == "int8":
                self.say(f"answer as other CPUs would: {name}")
                kinds = spread(self.work / "bundles" / name)
                found[name] = {str(kind): one.figures() for kind, one in kinds.items()}
        return found

    def audits(self, bundles: Mapping[str, Manifest]) -> dict[str, dict[str, Any]]:
        """What ran in int8, by target."""
        from edgec.auditing import audit

        self.say("audit the bundles")
        return {name: audit(self.work / "bundles" / name).summary() for name in bundles}

    def tensors(self, bundles: Mapping[str, Manifest]) -> dict[str, list[dict[str, Any]]]:
        """The error of each tensor against float, by target; fp32 bundles have none."""
        from edgec.auditing import tensor_errors
        from edgec.emulation import adapt

        def errors(name: str) -> list[dict[str, Any]]:
            found = tensor_errors(self.work / "bundles" / name, self.work / "baseline", adapt=adapt)
            return [dataclasses.asdict(one) for one in found]

        return {name: errors(name) for name, manifest in bundles.items() if manifest.parts[0].precision == "int8"}

    def archives(self, bundles: Mapping[str, Manifest]) -> dict[str, int]:
        """Write each bundle as one compressed file beside its folder; the bytes of each, by target."""
        from edgec_runtime.archive import pack

        self.say("compress the bundles")
        folder = self.work / "bundles"
        return {name: pack(folder / name, folder / f"{name}.zip") for name in bundles}


def _put_back(
    build: _Build, exporter: Exporter, calibration: Sample, bundles: Mapping[str, Manifest], cache: PassCache
) -> tuple[Ranking | None, Outcome | None]:
    """Where a bundle misses accuracy_drop: the layers ranked, and the worst of them put back."""
    from edgec.put_back import meet_budget, needed
    from edgec.ranking.measure import rank
    from edgec.ranking.source import ROWS

    if exporter.state.quantization is None or not needed(build.asked.budget, bundles):
        return None, None
    build.say("rank the layers by what each costs alone")
    ranking = rank(
        exporter.state,
        (calibration if calibration.texts else build.evaluation).spread(ROWS),
        reduce_range=any(target.int8.reduce_range for target in build.targets),
        resume_file=cache.folder / "ranking.jsonl",
        progress=build.progress,
    )
    outcome = meet_budget(
        exporter.state, ranking, lambda state: build.export(exporter.of(state)), build.asked.budget, bundles
    )
    build.say(f"{len(outcome.put_back)} of {len(ranking.layers)} layers are put back")
    return ranking, outcome


def _timed(
    device: Device, work: Path, exporter: Exporter, target: Target, asked: Recipe, say: Say
) -> tuple[Manifest, compare.BenchReport]:
    """Measure the bundle of `target` beside the baseline and the plain export, and note what was found in it."""
    from edgec.bundle import annotate

    say(f"measure {target.name} against fp32 on {device.name}")
    folder, plain = work / "bundles" / target.name, work / "plain"
    exporter.write_plain(plain, target)
    bench = compare.bench(device, [work / "baseline", folder, plain], on_line=say)
    shutil.rmtree(plain)
    schedule = asked.export.schedule or _schedule(bench.bundles[1])
    return annotate(folder, measured=True, schedule=schedule), bench


def _for_size_alone(state: ModelState) -> bool:
    """Weight-only quantization makes a model small, not fast: speed is told and not judged."""
    return state.quantization is not None and state.quantization.scheme == "weight-only"


def require_budget(report: Report) -> None:
    """Raises BudgetMissed where a limit was missed and nothing fell back."""
    missed = [verdict for verdict in report.verdicts if verdict.met is False]
    if missed and not report.data["fell_back"]:
        raise BudgetMissed(
            "; ".join(map(str, missed)),
            f"everything was written to {report.out}; loosen the budget, change the passes, or set on_miss: fallback",
        )


def _exporter(state: ModelState, asked: Recipe) -> Exporter:
    from edgec.exporter import Exporter

    return Exporter(state, name=asked.name, opset=asked.export.opset, seed=asked.seed, **_reading(asked))


def _reading(asked: Recipe) -> dict[str, Any]:
    """How texts are read and answers given."""
    names = ("long_text", "stride", "null_answers", "max_answer_tokens")
    return {name: getattr(asked.export, name) for name in names}


def _schedule(figures: compare.BundleFigures) -> str:
    speeds = {name: found.texts_per_s for name, found in figures.schedules.items()}
    # A bundle whose answers depend on batch-mates never runs in batches, so it has no figures of them.
    return "batches" if speeds.get("batches", 0) > speeds["streams"] * SCHEDULE_GAIN else "streams"


def _command(recipe: str | Path, overrides: Sequence[str], on: str, forms: str, data: str | Path | None) -> str:
    words = ["edgec", "compress", "--recipe", str(recipe)]
    words += [] if data is None else ["--data", str(data)]
    words += [] if on == "local" else ["--on", on]
    words += [] if forms == "kept" else ["--forms", forms]
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)

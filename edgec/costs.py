"""Which forms of a graph are fastest on a machine: measured once, kept for each machine, onnxruntime and model shape.

The forms compute the same (edgec.graph.forms); which is faster depends on the CPU and on onnxruntime's kernels. Each
alternative is exported as a bundle of its own and timed on the device, interleaved with the target's default forms, at
one row of JUDGED_SHAPE tokens on one thread. An alternative is taken where it was faster by more than GAIN, and in nine
rounds of ten. docs/costs.md explains the table and how a choice is repeated on another machine.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgec.budget import JUDGED_SHAPE
from edgec.devices import compare
from edgec.devices.sysroot import cache_folder
from edgec.graph.forms import DEFAULT_FORMS
from edgec.target import FORMS_WORDS, Forms, Target, forms_of

if TYPE_CHECKING:
    from edgec.devices import Device
    from edgec.exporter import Exporter

Say = Callable[[str], None]

GAIN: Final = 1.02
"""How much faster than the default an alternative must be: what is within two per cent moves from run to run."""

ROUNDS: Final = 15


@dataclass(frozen=True)
class Cost:
    """An alternative against the default form. ratio: median of the rounds, above 1 is faster than the default."""

    choice: str
    option: str
    ratio: float
    p10: float
    p90: float

    @property
    def better(self) -> bool:
        return self.ratio >= GAIN and self.p10 > 1


@dataclass(frozen=True)
class Choices:
    """The forms that a bundle is exported in, and where they come from.

    source: "measured" now, "kept" from an earlier run on the same machine, "replayed" from a bundle, or "default"
    where no device was at hand. costs: what the choice rests on; empty where nothing was measured.
    """

    forms: Forms = DEFAULT_FORMS
    source: str = "default"
    costs: tuple[Cost, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        measured = [dataclasses.asdict(cost) for cost in self.costs]
        return {**self.forms.to_dict(), "source": self.source, "measured": measured}


def find(
    asked: str,
    exporter: Exporter,
    target: Target | None,
    device: Device,
    facts: Mapping[str, Any],
    *,
    say: Say = lambda line: None,
) -> Choices:
    """The choices that `asked` names: "kept" (else measured now), "measure", "default", or the folder of a bundle.

    target: the one that the device is of, None where nothing can be measured: the forms are then the default ones. A
    model without a quantize pass has those of the target.
    """
    if asked not in FORMS_WORDS:
        return replayed(asked)
    if target is None:
        return Choices()
    if asked == "default" or exporter.state.quantization is None:
        return Choices(target.forms)
    return choose(exporter, target, device, facts, again=asked == "measure", say=say)


def choose(
    exporter: Exporter,
    target: Target,
    device: Device,
    facts: Mapping[str, Any],
    *,
    again: bool = False,
    say: Say = lambda line: None,
) -> Choices:
    """The fastest forms on `device`, which `target` fits: from the kept table, else measured now and kept.

    facts: of the device. again: measure even where the table has an entry. Raises what compare.bench raises, and
    SystemFailure where the table cannot be written.
    """
    key = _facts(exporter, target, facts)
    place = table_folder() / f"{_digest(key)}.json"
    kept = None if again else _read(place)
    if kept is not None:
        return Choices(best(kept, target.forms), "kept", kept)
    say(f"measure the forms of the graph on {device.name}")
    costs = measure(exporter, target, device, say=say)
    place.parent.mkdir(parents=True, exist_ok=True)
    entry = {**key, "costs": [dataclasses.asdict(cost) for cost in costs]}
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    partial.replace(place)
    return Choices(best(costs, target.forms), "measured", costs)


def measure(exporter: Exporter, target: Target, device: Device, *, say: Say = lambda line: None) -> tuple[Cost, ...]:
    """Time every alternative that changes the graph of this model against the target's default forms."""
    with tempfile.TemporaryDirectory(prefix="edgec-costs-", ignore_cleanup_errors=True) as temporary:
        folders = [Path(temporary) / "default"]
        default = exporter.write(folders[0], target)
        tried = []
        for choice, option in alternatives(target.forms):
            folder = Path(temporary) / option
            forms = dataclasses.replace(target.forms, **{choice: option})  # type: ignore[arg-type]
            found = exporter.write(folder, target, forms=forms)
            # Where the model has no such operators the alternative is the default again.
            if [part.forms for part in found.parts] != [part.forms for part in default.parts]:
                tried.append((choice, option))
                folders.append(folder)
        if not tried:
            return ()
        tokens = min(JUDGED_SHAPE[1], default.preprocessing.max_length)
        report = compare.bench(
            device,
            folders,
            tokens=[tokens],
            rounds=ROUNDS,
            cold_start=False,
            shapes_only=True,
            on_line=lambda line: say(f"forms: {line}"),
        )
    costs = []
    for (choice, option), figures in zip(tried, report.bundles[1:], strict=True):
        ratio = figures.shapes[JUDGED_SHAPE[0], tokens].ratio
        costs.append(Cost(choice, option, round(ratio.median, 4), round(ratio.p10, 4), round(ratio.p90, 4)))
    return tuple(costs)


def alternatives(default: Forms) -> tuple[tuple[str, str], ...]:
    """(choice, option): what is tried against the default forms, each alone."""
    options = ((choice, option) for choice, options in Forms.options().items() for option in options)
    return tuple((choice, option) for choice, option in options if option != getattr(default, choice))


def best(costs: tuple[Cost, ...], default: Forms = DEFAULT_FORMS) -> Forms:
    """Of each choice the fastest option that is clearly better than the default."""
    taken: dict[str, Cost] = {}
    for cost in costs:
        if cost.better and (cost.choice not in taken or cost.ratio > taken[cost.choice].ratio):
            taken[cost.choice] = cost
    return dataclasses.replace(default, **{choice: cost.option for choice, cost in taken.items()})  # type: ignore[arg-type]


def replayed(bundle: str | Path) -> Choices:
    """The forms that a bundle was exported in. Raises what edgec.target.forms_of raises."""
    return Choices(forms_of(bundle), "replayed")


def table_folder() -> Path:
    return cache_folder() / "costs"


def _facts(exporter: Exporter, target: Target, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a measured cost depends on."""
    return {
        "machine": {name: facts.get(name) for name in ("cpu", "arch", "features", "cores", "board", "os")},
        "onnxruntime": facts["versions"]["onnxruntime"],
        "graph": exporter.graph_facts(),
        "default": target.forms.to_dict(),
    }


def _digest(key: Mapping[str, Any]) -> str:
    return sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read(place: Path) -> tuple[Cost, ...] | None:
    try:
        entry = json.loads(place.read_text(encoding="utf-8"))
        return tuple(Cost(**cost) for cost in entry["costs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: it is measured again

"""A target: facts of a class of machines. docs/targets.md has a section for each that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_type_hints

from edgec_runtime.cpu import architecture, feature
from edgec_runtime.integrity import read_manifest

from edgec import resources
from edgec.errors import UserError
from edgec.schema import bounds, build, internal, pattern, to_plain
from edgec.yaml_tree import Problems, lookup, read, require_version

FORMAT: Final = 1

_HINT = "docs/targets.md explains every key; `edgec targets show arm64` prints a whole target"

FORMS_WORDS: Final = ("kept", "measure", "default")
"""What `--forms` takes instead of a bundle's folder, see edgec.costs.find."""

Feature = Literal["neon", "dotprod", "i8mm", "avx2", "vnni"]


@dataclass(frozen=True)
class Emulated:
    """How to stand in for such a machine: the CPU of `--on qemu://CPU`."""

    qemu_cpu: str


@dataclass(frozen=True)
class Forms:
    """Which of several equal operators compute a graph (edgec.graph.forms; docs/costs.md).

    norm: "sum" (Sum and LayerNormalization) or "skip" (com.microsoft.SkipLayerNormalization, which does both).
    attention: "packed" (ONNX Attention that reads the projections as they are, (batch, tokens, hidden)), "mha"
    (com.microsoft.MultiHeadAttention) or "qattention" (com.microsoft.QAttention, which multiplies the int8 projections
    itself; layers that it cannot express stay packed). mask: "always", or "if-padded": packed attention looks at the
    mask only where a row of the batch is padded. gelu: "exact" (by erf), or "tanh": by Hendrycks and Gimpel's
    approximation (arXiv:1606.08415, section 2), at most 4.8e-4 away, in int8 graphs.
    """

    norm: Literal["sum", "skip"] = "sum"
    attention: Literal["packed", "mha", "qattention"] = "packed"
    mask: Literal["always", "if-padded"] = "always"
    gelu: Literal["exact", "tanh"] = "exact"

    def to_dict(self) -> dict[str, str]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def options(cls) -> dict[str, tuple[str, ...]]:
        """What there is of each choice."""
        return {name: get_args(hint) for name, hint in get_type_hints(cls).items()}


@dataclass(frozen=True)
class Int8:
    """How int8 models are stored. reduce_range: weights in 7 bits, for CPUs whose products saturate at 16
    bits.
    """

    activations: Literal["uint8"] = "uint8"
    weights: Literal["int8"] = "int8"
    reduce_range: bool = False


@dataclass(frozen=True)
class Target:
    """A target file.

    os: "linux", "android", "darwin" or "windows"; None: any. board: what the board's model name starts with,
    one of them; empty: any board. features: what the CPU must have. cores, memory_mb: of the smallest such
    machine; None where the class does not tell. forms: of int8 graphs, where none were measured. verified:
    "hardware" where a bundle of this target reproduced its golden vectors on such a machine, "emulated" where it did
    under `emulated.qemu_cpu`, False where nothing has run.
    """

    edgec: int
    name: str = field(metadata=pattern(r"[a-z0-9][a-z0-9_.-]*", "lower-case letters, digits, - and _"))
    arch: Literal["x86_64", "aarch64"]
    summary: str = ""
    os: Literal["linux", "android", "darwin", "windows"] | None = None
    board: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    cores: int | None = field(default=None, metadata=bounds(at_least=1))
    memory_mb: int | None = field(default=None, metadata=bounds(at_least=1))
    emulated: Emulated | None = None
    int8: Int8 = Int8()
    forms: Forms = Forms()
    verified: Literal["hardware", "emulated", False] = False
    source_path: Path = field(default=Path(), metadata=internal())

    def __post_init__(self) -> None:
        if self.verified == "emulated" and self.emulated is None:
            raise ValueError("verified: emulated needs emulated: {qemu_cpu: ...}")
        if self.arch == "x86_64" and not self.int8.reduce_range and "vnni" not in self.features:
            raise ValueError("int8.reduce_range should be true on x86_64 without vnni: products saturate")

    @property
    def answer_features(self) -> tuple[str, ...]:
        """The CPU features without which a bundle of this target answers differently, and not just more
        slowly.

        Without VNNI, x86 adds pairs of u8 x s8 products in 16 bits, which saturate unless weights have 7
        bits. arm64 has no such instruction: every level of it gives the same sums.
        """
        return ("vnni",) if self.arch == "x86_64" and not self.int8.reduce_range else ()

    def to_dict(self) -> dict[str, Any]:
        """The target as JSON values, in the shape of its file."""
        values: dict[str, Any] = to_plain(self)
        return values


def load_target(name_or_path: str | Path) -> Target:
    """The target of a shipped name or a file.

    Raises UserError where there is none, RecipeError with every problem in the file otherwise.
    """
    path = resources.find("target", str(name_or_path))
    root = read(path, _HINT)
    require_version(root, path, FORMAT)
    problems = Problems(str(path))
    target = build(Target, root, problems)
    if isinstance(target, Target) and target.name != path.stem:
        problems.add(
            lookup(root, "name"),
            "name",
            f"should be {path.stem!r}, as the file is called, not {target.name!r}",
        )
    problems.raise_if_any(_HINT)
    assert isinstance(target, Target)
    return replace(target, source_path=path)


def check_forms(asked: str) -> None:
    """Raises what forms_of raises, unless `asked` is a word; before the long work, at whose end it is needed."""
    if asked not in FORMS_WORDS:
        forms_of(asked)


def forms_of(bundle: str | Path) -> Forms:
    """The forms that a bundle was exported in. Raises BundleError where it is damaged, UserError where it is none or
    its forms are not known.
    """
    if not Path(bundle).is_dir():
        raise UserError(f"there are no forms {str(bundle)!r}", f"give {', '.join(FORMS_WORDS)} or a bundle's folder")
    found = read_manifest(Path(bundle)).parts[0].forms
    if not found:
        raise UserError(f"{bundle} does not say in which forms it was exported", "give a bundle of this edgec")
    options = Forms.options()
    for choice, option in found.items():
        if option not in options.get(choice, ()):
            known = f"has {', '.join(options[choice])}" if choice in options else "does not know"
            raise UserError(
                f"{bundle} was exported with {choice}: {option}, which this edgec {known}",
                "give a bundle of this edgec",
            )
    return Forms(**found)  # type: ignore[arg-type]


def list_targets() -> tuple[Target, ...]:
    """Every target that ships, by name."""
    return tuple(load_target(name) for name in resources.names("target"))


def detect(facts: Mapping[str, Any], targets: Sequence[Target] | None = None) -> tuple[Target, list[str]]:
    """The target that fits a machine best, and the reasons; of `targets`, or of all that ship.

    facts: what `edgec_runtime.machine.facts()` tells. The most specific one wins: one for the board before
    one for the operating system, that before one for the CPU alone, and among those the one with the most
    features. Raises UserError, with what each lacks, where none fits.
    """
    candidates = list_targets() if targets is None else targets
    fitting = [target for target in candidates if not misfits(target, facts)]
    if not fitting:
        raise UserError(*_why_none(facts, candidates))
    best = max(fitting, key=lambda t: (bool(t.board), t.os is not None, len(t.features)))
    reasons = [f"its architecture is {best.arch}"]
    if best.features:
        reasons.append(f"its CPU has {', '.join(best.features)}")
    if best.os:
        reasons.append(f"it runs {best.os}")
    if best.board:
        reasons.append(f"its board is {facts['board']}")
    return best, reasons


def misfits(target: Target, facts: Mapping[str, Any]) -> list[str]:
    """Why a machine is not of this target; empty where it is."""
    arch, features, board = _arch(facts), cpu_features(facts), str(facts.get("board") or "")
    reasons = []
    if arch != target.arch:
        reasons.append(f"its architecture is {arch}, not {target.arch}")
    elif missing := [feature for feature in target.features if feature not in features]:
        unknown = facts.get("features") is None
        reasons.append("its CPU features are not known" if unknown else f"its CPU has no {', '.join(missing)}")
    if target.os and _os(facts) != target.os:
        reasons.append(f"it does not run {target.os}")
    if target.board and not board.startswith(target.board):
        reasons.append(f"its board is {board or 'unknown'}, not {' or '.join(target.board)}")
    return reasons


def cpu_features(facts: Mapping[str, Any]) -> frozenset[str]:
    """The CPU features in facts, by the names that target files use."""
    found = {feature(name) for name in facts.get("features") or ()}
    # AArch64 without it exists on paper only; some systems do not list it.
    return frozenset(found | {"neon"} if _arch(facts) == "aarch64" else found)


def _arch(facts: Mapping[str, Any]) -> str:
    return architecture(str(facts.get("arch") or "unknown"))


def _os(facts: Mapping[str, Any]) -> str | None:
    """Android first: its kernel calls itself Linux, with "android" in the release."""
    text = str(facts.get("os") or "").lower()
    return next((name for name in ("android", "darwin", "windows", "linux") if name in text), None)


def _why_none(facts: Mapping[str, Any], candidates: Sequence[Target]) -> tuple[str, str]:
    arch = _arch(facts)
    if arch.startswith(("armv6", "armv7", "armv8")) or arch == "arm":
        return (
            f"no target fits this machine: {arch} is a 32-bit system, and targets are 64-bit",
            "install the 64-bit system on the device, if its CPU can run one",
        )
    known = sorted({target.arch for target in candidates})
    if arch not in known:
        return (
            f"no target fits this machine: its architecture is {arch}",
            f"targets are for {' and '.join(known)}",
        )
    lacks = "; ".join(f"{t.name}: {', '.join(misfits(t, facts))}" for t in candidates if t.arch == arch)
    return f"no target fits this machine ({lacks})", "a recipe without a quantize pass makes an fp32 bundle"

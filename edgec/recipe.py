"""A recipe: what to do to a model, as frozen dataclasses. docs/recipes.md explains every key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from edgec_runtime.manifest import TASKS

from edgec import resources
from edgec.errors import UserError
from edgec.recipe_data import Data as Data
from edgec.recipe_data import EvaluationData as EvaluationData
from edgec.recipe_data import LabelledData as LabelledData
from edgec.recipe_data import TextData as TextData
from edgec.recipe_data import awaited, check_files, located
from edgec.resources import is_path, suggestion
from edgec.schema import INVALID, bounds, build, choices, internal, pattern, reader, to_plain
from edgec.yaml_tree import (
    Problems,
    empty_mapping,
    entries,
    from_override,
    is_null,
    is_text,
    lookup,
    override,
    plain,
    read,
    require_version,
)

FORMAT: Final = 1

_HINT = "docs/recipes.md explains every key; `edgec recipes show minilm-int8` prints a whole recipe"


@dataclass(frozen=True)
class ModelSource:
    """Which model: `source` is a hub id, a local folder or pkg://package/path.

    task: None where the model's own configuration tells it. revision: of a hub id. sha256: of the weight
    file, checked before it is read. trust_remote_code: run Python code that comes with the model; nothing
    else allows it.
    """

    source: str = field(metadata=pattern(r"\S(.*\S)?", "a hub id, a folder or pkg://package/path"))
    task: str | None = field(default=None, metadata=choices(TASKS))
    revision: str | None = None
    sha256: str | None = field(default=None, metadata=pattern("[0-9a-f]{64}", "64 hexadecimal digits"))
    trust_remote_code: bool = False


@dataclass(frozen=True)
class PassConfig:
    """One entry of `passes`: its name and its options as they stand in the file (`node` has their lines)."""

    name: str
    options: dict[str, Any]
    line: int
    node: yaml.Node = field(repr=False, compare=False)


@dataclass(frozen=True)
class ExportConfig:
    """How the graph is made.

    opset: of ONNX. max_length: tokens a text, special ones counted; None: the model's own. long_text: what
    happens to a longer text; None: the task's usual way. stride: tokens that two neighbouring windows share; 0: a
    quarter of a row. schedule: how the runtime shares out many texts; None: as measured where a target fits the
    device, else streams. null_answers: "there is no answer" may win; max_answer_tokens: the longest answer (both of
    question-answering). compressed: each bundle as one compressed file, too.
    """

    opset: int = field(default=23, metadata=bounds(at_least=18, at_most=23))
    max_length: int | None = field(default=None, metadata=bounds(at_least=8))
    long_text: Literal["truncate", "window"] | None = None
    stride: int = field(default=0, metadata=bounds(at_least=0))
    schedule: Literal["streams", "batches"] | None = None
    null_answers: bool = False
    max_answer_tokens: int = field(default=30, metadata=bounds(at_least=1))
    compressed: bool = False

    def __post_init__(self) -> None:
        if self.stride and self.long_text == "truncate":
            raise ValueError("stride is for long_text: window")
        if self.max_length is not None and self.stride >= self.max_length:
            raise ValueError(f"stride ({self.stride}) should be below max_length ({self.max_length})")


@dataclass(frozen=True)
class Budget:
    """What the user will not give up. None: not judged.

    accuracy_drop: absolute, in the metric of data.evaluate, or 1 - mean cosine without labels; of the worst group
    where data.evaluate has a group_column. size_mb: of the bundle's files, in 10**6 bytes. speedup: against fp32 on
    the same device. p50_ms: median milliseconds a text. on_miss: "fail" ends with exit code 1, "fallback" ships the
    fp32 bundle. put_back: what the most sensitive layers become where accuracy_drop is missed, as few as it takes.
    """

    accuracy_drop: float | None = field(default=None, metadata=bounds(at_least=0, at_most=1))
    size_mb: float | None = field(default=None, metadata=bounds(above=0))
    speedup: float | None = field(default=None, metadata=bounds(above=0))
    p50_ms: float | None = field(default=None, metadata=bounds(above=0))
    on_miss: Literal["fail", "fallback"] = "fail"
    put_back: Literal["float", "weight-only", "none"] = "float"


def _passes(node: yaml.Node, problems: Problems, key: str) -> Any:
    """Entries of the form `- quantize: {scheme: static}`, or `- quantize` for its defaults."""
    if is_null(node):
        return ()
    if not isinstance(node, yaml.SequenceNode):
        problems.add(node, key, 'should be a list of passes, each "- name: {options}"')
        return INVALID
    found = [_pass(entry, problems, f"{key}.{i}") for i, entry in enumerate(node.value)]
    return INVALID if INVALID in found else tuple(found)


def _pass(node: yaml.Node, problems: Problems, key: str) -> Any:
    line = node.start_mark.line + 1 if node.start_mark else 0
    if is_text(node):
        return PassConfig(node.value, {}, line, empty_mapping(node))
    members = entries(node, problems, key)
    if not members or len(members) != 1:
        problems.add(node, key, "should be one pass with its options: name: {options}")
        return INVALID
    ((name, (_, options)),) = members.items()
    if entries(options, problems, f"{key}.{name}") is None:
        problems.add(options, f"{key}.{name}", "should be a mapping of options")
        return INVALID
    return PassConfig(name, plain(options) or {}, line, options)


@dataclass(frozen=True)
class Recipe:
    """A recipe file. edgec: format version. summary: one line for lists. seed: of everything random."""

    edgec: int
    model: ModelSource
    targets: tuple[str, ...] = field(metadata=pattern(r"\S(.*\S)?", "a target's name or file"))
    summary: str = ""
    data: Data = field(default_factory=Data)
    passes: tuple[PassConfig, ...] = field(default=(), metadata=reader(_passes))
    export: ExportConfig = ExportConfig()
    budget: Budget = Budget()
    seed: int = field(default=0, metadata=bounds(at_least=0, at_most=2**32 - 1))
    source_path: Path = field(default=Path(), metadata=internal())

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.source_path.stem

    @property
    def awaited(self) -> list[str]:
        """The data sets' files that could not be looked for, because their folder was not named."""
        return awaited(self.data)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, in the shape of the file."""
        values: dict[str, Any] = to_plain(self)
        values["passes"] = [{entry.name: entry.options} for entry in self.passes]
        return values


def load_recipe(
    name_or_path: str | Path,
    *,
    overrides: Sequence[str] = (),
    passes: Mapping[str, type] | None = None,
    data: Path | None = None,
) -> Recipe:
    """The recipe of a shipped name or a file, with `overrides` ("passes.0.scheme=dynamic") put in first.

    data: the folder in which files that are named data://SET/FILE lie; None: they are not looked for (Recipe.awaited).
    Data files are checked to exist, targets to be known and, with `passes` (name -> options dataclass), the
    pass options to fit. Relative paths start at the recipe's folder, those of an override at the current one.
    Raises UserError where there is no such recipe, RecipeError with every problem in it otherwise.
    """
    path = resources.find("recipe", str(name_or_path))
    root = read(path, _HINT)
    override(root, overrides)
    require_version(root, path, FORMAT)
    problems = Problems(str(path))
    recipe = build(Recipe, root, problems)
    check_files(root, path, data, problems)
    targets = _target_names(root, path, problems)
    listed = lookup(root, "passes")
    if passes is not None and listed is not None:
        # Read apart from the rest, so that options are checked in a recipe with other problems too.
        configs = _passes(listed, Problems(str(path)), "passes")
        _build_passes(() if configs is INVALID else configs, passes, problems, path)
    problems.raise_if_any(_HINT)
    assert isinstance(recipe, Recipe)
    source = recipe.model.source
    if source.startswith(("./", "../")):
        source = _beside(source, lookup(root, "model", "source"), path)
    return replace(
        recipe,
        model=replace(recipe.model, source=source),
        data=located(recipe.data, root, path, data),
        targets=targets,
        source_path=path,
    )


def check_passes(recipe: Recipe, passes: Mapping[str, type]) -> tuple[Any, ...]:
    """The passes of a recipe as instances of the dataclasses in `passes` (name -> class), in their order.

    Raises RecipeError with every unknown pass and every option that does not fit.
    """
    problems = Problems(str(recipe.source_path))
    made = _build_passes(recipe.passes, passes, problems, recipe.source_path)
    problems.raise_if_any(_HINT)
    return made


def _build_passes(
    configs: Sequence[PassConfig], passes: Mapping[str, type], problems: Problems, recipe: Path
) -> tuple[Any, ...]:
    made: list[Any] = []
    for i, config in enumerate(configs):
        if config.name in passes:
            one = build(passes[config.name], config.node, problems, f"passes.{i}.{config.name}")
            made.append(one if one is INVALID else _located(one, config.node, recipe))
        else:
            what = f"there is no pass {config.name!r}; {suggestion(config.name, passes)}"
            problems.add(config.node, f"passes.{i}", what)
    return tuple(made)


def _located(one: Any, node: yaml.Node, recipe: Path) -> Any:
    """A pass whose options that name another model's folder by ./ or ../ start at the recipe's folder."""
    values = {option.name: getattr(one, option.name) for option in fields(one)}
    relative = {
        name: _beside(value, lookup(node, name), recipe)
        for name, value in values.items()
        if isinstance(value, str) and value.startswith(("./", "../"))
    }
    return replace(one, **relative)


def _target_names(root: yaml.Node, recipe: Path, problems: Problems) -> tuple[str, ...]:
    """The targets, each of them found; a target file is sought beside the recipe."""
    node = lookup(root, "targets")
    names: list[str] = []
    if isinstance(node, yaml.SequenceNode) and not node.value:
        problems.add(node, "targets", "should name at least one; `edgec targets list` shows them")
    for i, entry in enumerate(node.value if isinstance(node, yaml.SequenceNode) else ()):
        if not is_text(entry):
            continue
        name = _beside(entry.value, entry, recipe) if is_path(entry.value) else entry.value
        if name in names:
            problems.add(entry, f"targets.{i}", f"names {name!r} a second time")
        try:
            resources.find("target", name)
        except UserError as error:
            problems.add(entry, f"targets.{i}", f"{error.message}; {error.hint}")
        names.append(name)
    return tuple(names)


def _beside(text: str, node: yaml.Node | None, recipe: Path) -> str:
    """A relative path taken from the recipe's folder, unless it came from the command line."""
    if Path(text).is_absolute() or (node is not None and from_override(node)):
        return text
    joined = recipe.parent / text
    # "./" tells a folder from a hub id, which may have a slash too.
    return str(joined) if joined.is_absolute() else f"./{joined}"

"""The section `data` of a recipe: which files, which columns, which rows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import yaml

from edgec.formats import FILE_COLUMN, LABELLED, TABLES, told_by_name
from edgec.resources import recipes_dir
from edgec.schema import INVALID, bounds, internal, reader
from edgec.yaml_tree import Problems, child_key, entries, from_override, is_text, lookup, plain

UNLABELLED_METRIC: Final = "cosine"
DATA_SETS: Final = "data://"
"""A path that begins so is one below the folder of data sets, which the command line names by --data."""

Format = Literal["text", "csv", "tsv", "jsonl", "parquet", "parallel", "conll", "conllu", "squad"]
Metric = Literal[
    "cosine",
    "accuracy",
    "macro_f1",
    "micro_f1",
    "span_f1",
    "span_macro_f1",
    "f1",
    "exact_match",
    "f1_answerable",
    "exact_match_answerable",
    "f1_unanswerable",
    "spearman",
    "pearson",
]


def _column(node: yaml.Node, problems: Problems, key: str) -> Any:
    """A column by name, or by number where the file has no header."""
    value = plain(node)
    if type(value) in (str, int) or value is None:
        return value if value is None else str(value)
    problems.add(node, key, "should be a column's name or its number")
    return INVALID


def _files(node: yaml.Node, problems: Problems, key: str) -> Any:
    """One path, or several by name."""
    if is_text(node) and node.value.strip():
        return node.value
    if isinstance(node, yaml.MappingNode):
        members = entries(node, problems, key) or {}
        wrong = [name for name, (_, file) in members.items() if not name or not is_text(file)]
        for name in wrong:
            problems.add(members[name][1], child_key(key, name), "should be a file")
        if members and not wrong:
            return {name: file.value for name, (_, file) in members.items()}
        if wrong:
            return INVALID
    problems.add(node, key, "should be a file, or a mapping of names to files")
    return INVALID


@dataclass(frozen=True)
class TextData:
    """Files of texts. `text` is the path as the recipe gives it, or several by name, such as one a language; `path` and
    `paths` are where they were found.

    rows: how many to use, from the start; None: all. first_row: how many of each file are passed over before that.
    format: None where the file's ending tells it. Columns are for files that have them. group_column: what a row
    belongs to, such as a language; `rows` are then spread evenly over its values, and quality is judged by the worst
    of them. Rows of several files have the column "file" with the file's name; without a group_column `rows` are spread
    over the files. For `format: parallel` the two files are the two sides of each pair.
    """

    text: str | Mapping[str, str] = field(metadata=reader(_files))
    rows: int | None = field(default=None, metadata=bounds(at_least=1))
    format: Format | None = None
    text_column: str | None = field(default=None, metadata=reader(_column))
    text_pair_column: str | None = field(default=None, metadata=reader(_column))
    group_column: str | None = field(default=None, metadata=reader(_column))
    first_row: int = field(default=0, metadata=bounds(at_least=0))
    path: Path = field(default=Path(), metadata=internal())
    paths: Mapping[str, Path] = field(default_factory=dict, metadata=internal())

    def __post_init__(self) -> None:
        """Raises ValueError with everything in which the keys do not fit the format."""
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def known_format(self) -> str | None:
        """The format, given or told by the files' endings; None where neither tells it."""
        if self.format is not None:
            return self.format
        return told_by_name(next(iter(self._named.values())))

    @property
    def shown(self) -> str:
        """The files as an error names them."""
        return ", ".join(self._named.values())

    @property
    def _named(self) -> Mapping[str, str]:
        return {"": self.text} if isinstance(self.text, str) else self.text

    def _problems(self) -> Iterator[str]:
        kind = self.known_format
        told = {told_by_name(path) for path in self._named.values()}
        if self.format is None and len(told) > 1:
            yield "the files are of several formats; name one with format, or give them apart"
        if kind == "parallel" and (isinstance(self.text, str) or len(self.text) != 2):
            yield "format parallel needs two files: text: {NAME: FILE, NAME: FILE}"
        if kind in (*LABELLED, "parallel", "text") and self.text_pair_column is not None:
            yield f"text_pair_column is for tables, and the format is {kind}"
        if kind == "conll":
            yield from _not_a_number("text_column", self.text_column)
        elif kind in ("conllu", "squad", "parallel") and self.text_column is not None:
            yield f"text_column: the format {kind} has no columns to choose from"
        yield from self._group_problems(kind)

    def _group_problems(self, kind: str | None) -> Iterator[str]:
        by = self.group_column
        if by is None or (by == FILE_COLUMN and not isinstance(self.text, str) and kind != "parallel"):
            return
        if kind in ("conll", "text", "parallel"):
            hint = "" if kind == "parallel" else f"; give several files by name, and group by {FILE_COLUMN!r}"
            yield f"group_column is {by!r}, and rows of the format {kind} have no such column{hint}"
        elif kind == "squad" and by != "title":
            yield f"group_column is {by!r}, and questions of the format squad have 'title' alone"


@dataclass(frozen=True)
class LabelledData(TextData):
    """Rows with what a model should answer.

    label_column: of the label or score; for conll the column of the tag by number, for conllu "upos" or "xpos".
    label_separator: what parts several labels of one text. on_error: what becomes of a malformed row.
    """

    label_column: str | None = field(default=None, metadata=reader(_column))
    label_separator: str | None = None
    on_error: Literal["raise", "skip"] = "raise"

    @property
    def labelled(self) -> bool:
        """Whether the rows have labels: by the format, or in a column that is named."""
        return self.label_column is not None or self.known_format in LABELLED

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        kind, label = self.known_format, self.label_column
        if kind == "conll":
            yield from _not_a_number("label_column", label)
        elif kind == "conllu" and label not in (None, "upos", "xpos"):
            yield f"label_column is {label!r}; of the format conllu it is upos or xpos"
        elif kind in ("squad", "text", "parallel") and label is not None:
            yield f"label_column: the format {kind} has no columns to choose from"
        if self.label_separator is not None:
            if kind is not None and kind not in TABLES:
                yield f"label_separator is for tables, and the format is {kind}"
            elif label is None:
                yield "label_separator needs a label_column"
            if not self.label_separator:
                yield "label_separator is empty"


@dataclass(frozen=True)
class EvaluationData(LabelledData):
    """Texts to measure quality with. Without labels, answers are compared with the float model's.

    metric: what the budget judges; None: the task's main one. "cosine" needs no labels.
    """

    metric: Metric | None = None

    @property
    def scored(self) -> bool:
        """Whether quality is told by labels, and not by likeness to the float model."""
        return self.labelled and not (self.metric == UNLABELLED_METRIC and self.known_format in LABELLED)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.metric not in (None, UNLABELLED_METRIC) and not self.labelled:
            yield f"the metric {self.metric} needs a label_column"


@dataclass(frozen=True)
class Data:
    """The data of a recipe, by what it is for.

    train, validation: labelled rows that passes train on, and that choose between their states. unlabelled: plain text
    for passes that train without labels. calibrate: texts for ranges. evaluate: texts that the budget is judged on.
    """

    train: LabelledData | None = None
    validation: LabelledData | None = None
    unlabelled: TextData | None = None
    calibrate: TextData | None = None
    evaluate: EvaluationData | None = None

    def __post_init__(self) -> None:
        for name in ("train", "validation"):
            data = getattr(self, name)
            if data is not None and data.known_format is not None and not data.labelled:
                raise ValueError(f"{name} needs labels: name their label_column")


NAMES: Final = ("train", "validation", "unlabelled", "calibrate", "evaluate")

T = TypeVar("T", bound=TextData)


def located(data: Data, root: yaml.Node, recipe: Path, sets: Path | None) -> Data:
    """The data with the paths of its files, which `check_files` found to be there. sets: the folder of data sets; where
    it is None, the paths in it stay as they are."""
    found: dict[str, Any] = {}
    for name in NAMES:
        part = getattr(data, name)
        found[name] = None if part is None else _located(part, lookup(root, "data", name, "text"), recipe, sets)
    return Data(**found)


def awaited(data: Data) -> list[str]:
    """The files of the folder of data sets, where that was not named."""
    parts = [part for name in NAMES if (part := getattr(data, name)) is not None]
    named = [path for part in parts for path in ([part.text] if isinstance(part.text, str) else part.text.values())]
    places = [path for part in parts for path in (part.paths.values() if part.paths else [part.path])]
    return [name for name, place in zip(named, places, strict=True) if name.startswith(DATA_SETS) and place == Path()]


def check_files(root: yaml.Node, recipe: Path, sets: Path | None, problems: Problems) -> None:
    """Note every file below `data` that is not there, and every name that does not tell the format."""
    for name in NAMES:
        format_node = lookup(root, "data", name, "format")
        for key, node in _file_nodes(lookup(root, "data", name, "text"), f"data.{name}.text"):
            awaits = node.value.startswith(DATA_SETS) and sets is None
            if not awaits and _find(node, recipe, sets) is None:
                problems.add(node, key, f"there is no file {_beside(node, recipe, sets)}")
            elif format_node is None and told_by_name(node.value) is None:
                problems.add(node, key, f"{node.value} does not tell the format: name it with format")


def _located(data: T, node: yaml.Node | None, recipe: Path, sets: Path | None) -> T:
    paths = [_find(file, recipe, sets) or Path() for _, file in _file_nodes(node, "")]
    if isinstance(data.text, str):
        return replace(data, path=paths[0])
    return replace(data, paths=dict(zip(data.text, paths, strict=True)))


def _file_nodes(node: yaml.Node | None, key: str) -> list[tuple[str, yaml.ScalarNode]]:
    if isinstance(node, yaml.MappingNode):
        return [(child_key(key, name.value), file) for name, file in node.value if is_text(file)]
    return [(key, node)] if isinstance(node, yaml.ScalarNode) and is_text(node) else []


def _beside(node: yaml.ScalarNode, recipe: Path, sets: Path | None) -> Path:
    if sets is not None and node.value.startswith(DATA_SETS):
        return sets / str(node.value).removeprefix(DATA_SETS)
    return Path(node.value) if from_override(node) else recipe.parent / node.value


def _find(node: yaml.ScalarNode, recipe: Path, sets: Path | None) -> Path | None:
    """The file in the folder of data sets, beside the recipe, or among those that ship."""
    places = _beside(node, recipe, sets), recipes_dir() / node.value
    return next((path for path in places if path.is_file()), None)


def _not_a_number(key: str, value: str | None) -> Iterator[str]:
    if value is not None and not value.removeprefix("-").isdecimal():
        yield f"{key} is {value!r}; columns of the format conll go by number, the first is 0, the last is -1"

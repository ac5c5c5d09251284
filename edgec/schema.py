"""Closed YAML files: every key is a field of a frozen dataclass, and every error names file, line and key.

The type of a field is its annotation: str, int, float, bool, Any, Literal, tuple[X, ...], dict[str, X],
another dataclass, or one of these or None. What an annotation cannot say stands in the field's metadata:
`bounds`, `pattern`, `choices`, `reader`, `internal`. A ValueError that a dataclass raises in __post_init__ is
reported like the rest.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from edgec.resources import suggestion
from edgec.yaml_tree import Problems, child_key, entries, is_null, plain

T = TypeVar("T")
Reader = Callable[[yaml.Node, Problems, str], Any]

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


_COMPARISONS = {"above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le}


class _Invalid:
    """The place of a value that could not be read. Its problem is already noted."""


INVALID = _Invalid()


def bounds(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> dict[str, Any]:
    """Metadata: the range of a number, or of every number in a tuple or dict."""
    return {"bounds": {"above": above, "at least": at_least, "below": below, "at most": at_most}}


def pattern(regex: str, meaning: str) -> dict[str, Any]:
    """Metadata: the whole text must match `regex`; `meaning` says so in words ("64 hexadecimal digits")."""
    return {"pattern": (regex, meaning)}


def choices(known: Sequence[str]) -> dict[str, Any]:
    """Metadata: the text is one of `known`, where a Literal cannot say so."""
    return {"choices": tuple(known)}


def reader(read: Reader) -> dict[str, Any]:
    """Metadata: `read(node, problems, key)` makes the value, or notes problems and returns INVALID."""
    return {"reader": read}


def internal() -> dict[str, Any]:
    """Metadata: the field is no key of the file. It needs a default."""
    return {"internal": True}


def build(cls: type[T], node: yaml.Node, problems: Problems, key: str = "") -> T | _Invalid:
    """A `cls` from a mapping. An empty section ("budget:" alone) takes every default.

    key is the dotted path of the mapping, for errors.
    """
    members = entries(node, problems, key)
    if members is None:
        problems.add(node, key, "should be a mapping of keys to values")
        return INVALID
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in _keys(cls)}
    for name, (key_node, _) in members.items():
        if name not in fields:
            problems.add(key_node, child_key(key, name), f"unknown key; {suggestion(name, fields)}")
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name in members:
            values[name] = _field(f, hints[name], members[name][1], problems, child_key(key, name))
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            problems.add(node, child_key(key, name), "is missing")
            values[name] = INVALID
    if any(value is INVALID for value in values.values()):
        return INVALID
    try:
        return cls(**values)
    except ValueError as error:
        problems.add(node, key, str(error))
        return INVALID


def to_plain(value: Any) -> Any:
    """What JSON can hold of a dataclass: its fields in their order, without internal ones."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in _keys(type(value))}
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def _keys(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields that are keys of the file."""
    return [f for f in dataclasses.fields(cls) if not f.metadata.get("internal")]


def _field(f: dataclasses.Field[Any], hint: Any, node: yaml.Node, problems: Problems, key: str) -> Any:
    if "reader" in f.metadata:
        return f.metadata["reader"](node, problems, key)
    value = _value(hint, node, problems, key)
    if value is INVALID:
        return INVALID
    complaint = next(filter(None, (_complaint(f.metadata, leaf) for leaf in _leaves(value))), None)
    if complaint:
        problems.add(node, key, complaint)
        return INVALID
    return value


def _value(hint: Any, node: yaml.Node, problems: Problems, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if type(None) in arguments and is_null(node):
            return None
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1:
            return _value(options[0], node, problems, key)
        for option in options:
            value = _value(option, node, Problems(problems.where), key)
            if value is not INVALID:
                return value
        problems.add(node, key, f"should be {_wanted(hint)}, not {_shown(node)}")
        return INVALID
    if origin is tuple and isinstance(node, yaml.SequenceNode):
        items = [_value(arguments[0], item, problems, child_key(key, str(i))) for i, item in enumerate(node.value)]
        return INVALID if any(item is INVALID for item in items) else tuple(items)
    if origin in (dict, Mapping) and (members := entries(node, problems, key)) is not None:
        pairs = {
            name: _value(arguments[1], item, problems, child_key(key, name)) for name, (_, item) in members.items()
        }
        return INVALID if any(item is INVALID for item in pairs.values()) else pairs
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), node, problems, key)
    if hint is Any:
        return plain(node)
    value = _scalar(hint, node) if isinstance(node, yaml.ScalarNode) else INVALID
    if value is INVALID:
        problems.add(node, key, f"should be {_wanted(hint)}, not {_shown(node)}")
    return value


def _scalar(hint: Any, node: yaml.ScalarNode) -> Any:
    value = plain(node)
    if typing.get_origin(hint) is typing.Literal:
        # 1 == True in Python, so the type counts too.
        same = [option for option in typing.get_args(hint) if type(option) is type(value) and option == value]
        return same[0] if same else INVALID
    if hint is float and (type(value) in (int, float) or (type(value) is str and node.style is None)):
        try:
            value = float(value)  # YAML 1.1 takes 1e-3 for a text
        except (ValueError, OverflowError):
            return INVALID
        return value if math.isfinite(value) else INVALID
    return value if type(value) is hint else INVALID


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return list(value)
    return list(value.values()) if isinstance(value, dict) else [value]


def _complaint(metadata: Mapping[str, Any], value: Any) -> str | None:
    """What is wrong with a value of the right type, or None."""
    if type(value) in (int, float) and "bounds" in metadata:
        limits = {word: limit for word, limit in metadata["bounds"].items() if limit is not None}
        if not all(_COMPARISONS[word](value, limit) for word, limit in limits.items()):
            wanted = " and ".join(f"{word} {limit}" for word, limit in limits.items())
            return f"should be {wanted}, not {value}"
    if isinstance(value, str) and "pattern" in metadata:
        regex, meaning = metadata["pattern"]
        if not re.fullmatch(regex, value):
            return f"should be {meaning}, not {value!r}"
    if isinstance(value, str) and "choices" in metadata and value not in metadata["choices"]:
        return f"{value!r} is not supported; {suggestion(value, metadata['choices'])}"
    return None


def _wanted(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_wanted(option) for option in arguments if option is not type(None))
    if origin is typing.Literal:
        return " or ".join(_spelled(option) for option in arguments)
    if origin is tuple:
        return "a list"
    return "a mapping" if origin in (dict, Mapping) else _WORDS.get(hint, "a mapping")


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    value = plain(node)
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    return "nothing" if value is None else _spelled(value)[:60]


def _spelled(value: object) -> str:
    """A scalar as YAML spells it: true, 3, truncate."""
    return str(value).lower() if isinstance(value, bool) else str(value)

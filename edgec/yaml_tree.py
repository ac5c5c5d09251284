"""YAML as a tree of nodes that know their line, the problems found in it, and values set from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from edgec.errors import RecipeError

MAX_BYTES: Final = 1 << 18
MAX_NODES: Final = 10_000  # with aliases written out: a few hundred bytes of YAML can stand for 10**9 nodes

_OVERRIDE: Final = "--set "
_NULL, _STR, _MAP = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "map"))


@dataclass(frozen=True)
class Problem:
    """One line of an error. `place` is (file, line) and orders them."""

    place: tuple[str, int]
    text: str


class Problems:
    """Everything wrong with one file, so that it can be reported together. `where` is the file's name."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._found: list[Problem] = []

    def add(self, node: yaml.Node | None, key: str, what: str) -> None:
        """Note `file:line: key: what`; file and line (or the override) are those that the node came from."""
        mark = node.start_mark if node is not None else None
        file, line = (mark.name, mark.line + 1) if mark else (self.where, 0)
        place = place_of(node, self.where)
        text = f"{place}: {key}: {what}" if key else f"{place}: {what}"
        self._found.append(Problem((file, line), text))

    @property
    def lines(self) -> list[str]:
        """The problems in the order of the file, each one once."""
        in_order = sorted(self._found, key=lambda problem: problem.place)
        return list(dict.fromkeys(problem.text for problem in in_order))

    def raise_if_any(self, hint: str = "") -> None:
        """Raises RecipeError with every problem, each on a line of its own."""
        lines = self.lines
        if len(lines) == 1:
            raise RecipeError(lines[0], hint)
        if lines:
            raise RecipeError("\n  ".join([f"{self.where} has {len(lines)} problems", *lines]), hint)


def read(path: Path, hint: str) -> yaml.Node:
    """The tree of a file.

    Raises RecipeError for what is no YAML, has tags, or is larger than a recipe can be.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not UTF-8 text", hint) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}", "look at its permissions") from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{path}: is larger than {MAX_BYTES // 1024} KB", hint)
    node = _compose(text, str(path), hint)
    if node is None:
        raise RecipeError(f"{path}: is empty", hint)
    return node


def entries(node: yaml.Node, problems: Problems, key: str) -> dict[str, tuple[yaml.ScalarNode, yaml.Node]] | None:
    """Key name -> (key node, value node) of a mapping; empty for a null, None for anything else.

    Keys that are no texts, and keys that come twice, are noted as problems.
    """
    if is_null(node):
        return {}
    if not isinstance(node, yaml.MappingNode):
        return None
    found: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            problems.add(key_node, key, "a key should be a text")
        elif key_node.value in found:
            mark = found[key_node.value][0].start_mark
            earlier = f", first on line {mark.line + 1}" if mark else ""
            problems.add(key_node, child_key(key, key_node.value), f"comes twice{earlier}")
        else:
            found[key_node.value] = (key_node, value_node)
    return found


def lookup(node: yaml.Node, *path: str) -> yaml.Node | None:
    """The node below `node` at a path of keys, None where there is none."""
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [value for key, value in pairs if key.value == name]
        if not found:
            return None
        node = found[0]
    return node


def require_version(root: yaml.Node, path: Path, newest: int) -> None:
    """Refuse a file of a later format than `newest`, before its new keys can be taken for mistakes."""
    node = lookup(root, "edgec")
    if not isinstance(node, yaml.ScalarNode):
        return
    version, line = plain(node), node.start_mark.line + 1
    if type(version) is int and not 1 <= version <= newest:
        raise RecipeError(
            f"{path}:{line}: edgec: the file is of format {version}; this edgec reads up to {newest}",
            "update edgec" if version > newest else f"write edgec: {newest}",
        )


def plain(node: yaml.Node) -> Any:
    """The node as Python values; a date stays the text that it is."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(item) for item in node.value]
    if node.tag.endswith((":timestamp", ":merge", ":value")):
        return node.value
    return yaml.constructor.SafeConstructor().construct_object(node)


def is_null(node: yaml.Node) -> bool:
    """Whether nothing stands there ("key:")."""
    return node.tag == _NULL


def is_text(node: yaml.Node) -> bool:
    """Whether a text stands there."""
    return node.tag == _STR


def empty_mapping(at: yaml.Node) -> yaml.MappingNode:
    """A mapping without keys, in the place of `at`."""
    return yaml.MappingNode(_MAP, [], at.start_mark, at.end_mark)


def child_key(key: str, name: str) -> str:
    """The dotted path of a child."""
    return f"{key}.{name}" if key else name


def place_of(node: yaml.Node | None, where: str) -> str:
    """`file:line` of the node, or the override that it came from; without a node `where`."""
    mark = node.start_mark if node is not None else None
    if mark is None:
        return where
    return str(mark.name) if str(mark.name).startswith(_OVERRIDE) else f"{mark.name}:{mark.line + 1}"


def from_override(node: yaml.Node) -> bool:
    """Whether the node came from the command line and not from the file."""
    return node.start_mark is not None and node.start_mark.name.startswith(_OVERRIDE)


def override(root: yaml.Node, settings: Sequence[str]) -> None:
    """Put values from the command line ("passes.1.scheme=dynamic") into the tree.

    A path goes through keys and list indexes; in a list of single-key mappings ("- quantize: {...}") the
    index alone reaches what stands under that key. A missing section is added; an entry of a list must exist.
    The value is YAML; what it means is checked with the rest of the tree. Raises RecipeError for a path that
    leads nowhere.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        place = _OVERRIDE + setting
        if not equals or not all(path.split(".")):
            raise RecipeError(f"{place}: should be KEY=VALUE", "for example --set budget.size_mb=30")
        value = _compose(text, place, "the value is YAML: put a text with special characters in quotes")
        _set(root, path.split("."), value or _scalar(_NULL, "", place), place)


def _set(node: yaml.Node, path: list[str], value: yaml.Node, place: str) -> None:
    name, rest = path[0], path[1:]
    if isinstance(node, yaml.SequenceNode):
        count = len(node.value)
        if not name.isdecimal() or int(name) >= count:
            last = f"; the last is {count - 1}" if count else ", and the list is empty"
            raise RecipeError(f"{place}: the list has no entry {name}{last}", "entries count from 0")
        child = _opened(node.value[int(name)]) if rest else value
        node.value[int(name)] = child
        if rest:
            _set(_inside(child, rest[0]), rest, value, place)
    elif isinstance(node, yaml.MappingNode):
        positions = {key.value: position for position, (key, _) in enumerate(node.value)}
        if name not in positions:
            positions[name] = len(node.value)
            key_node = _scalar(_STR, name, place)
            node.value.append((key_node, empty_mapping(key_node)))
        key_node, old = node.value[positions[name]]
        child = (empty_mapping(old) if is_null(old) else old) if rest else value
        node.value[positions[name]] = (key_node, child)
        if rest:
            _set(child, rest, value, place)
    else:
        raise RecipeError(f"{place}: {name} would be below a plain value", f"leave out .{name}")


def _opened(node: yaml.Node) -> yaml.Node:
    """A node that can take keys: "- quantize" becomes "- quantize: {}", a null becomes {}."""
    if is_null(node):
        return empty_mapping(node)
    if is_text(node):
        return yaml.MappingNode(_MAP, [(node, empty_mapping(node))], node.start_mark, node.end_mark)
    return node


def _inside(node: yaml.Node, name: str) -> yaml.Node:
    """What stands under the one key of a list entry, unless `name` is that key."""
    if not isinstance(node, yaml.MappingNode) or len(node.value) != 1 or node.value[0][0].value == name:
        return node
    key_node, child = node.value[0]
    child = _opened(child)
    node.value[0] = (key_node, child)
    return child


def _compose(text: str, name: str, hint: str) -> yaml.Node | None:
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.TagToken):
                line = token.start_mark.line + 1
                raise RecipeError(f"{name}:{line}: YAML tags are not allowed", "write the plain value")
        loader = yaml.SafeLoader(text)
        loader.name = name
        node: yaml.Node | None = loader.get_single_node()
        if node is not None and _count(node) > MAX_NODES:
            raise RecipeError(f"{name}: holds more than {MAX_NODES} values (are its aliases circular?)", hint)
        return node and _copy(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        raise RecipeError(f"{name}{f':{mark.line + 1}' if mark else ''}: is not YAML: {what}", hint) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: is not YAML: {str(error).splitlines()[0]}", hint) from None
    except RecursionError:
        raise RecipeError(f"{name}: is nested too deeply", hint) from None


def _count(root: yaml.Node) -> int:
    """How many nodes the tree has with its aliases written out; counting stops above MAX_NODES."""
    count, waiting = 0, [root]
    while waiting and count <= MAX_NODES:
        node = waiting.pop()
        count += 1
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            waiting.extend(part for pair in node.value for part in pair)
    return count


def _copy(node: yaml.Node) -> yaml.Node:
    """The tree with its aliases written out, so that an override of one place does not reach another."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(_copy(key), _copy(value)) for key, value in node.value]
        return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)
    if isinstance(node, yaml.SequenceNode):
        items = [_copy(item) for item in node.value]
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    try:
        plain(node)
    except ValueError:
        # What looks like a number and is none that Python reads (0b, thousands of digits) is taken as a text.
        return yaml.ScalarNode(_STR, node.value, node.start_mark, node.end_mark, "'")
    return node


def _scalar(tag: str, value: str, place: str) -> yaml.ScalarNode:
    mark = yaml.Mark(place, 0, 0, 0, "", 0)
    return yaml.ScalarNode(tag, value, mark, mark)

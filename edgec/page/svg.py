"""A matplotlib figure as SVG inside an HTML page: its colours are the page's, its text is text."""

from __future__ import annotations

import io
import json
import re
import warnings
from hashlib import sha256
from typing import Final
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from .figures import Cell

# matplotlib draws in colours, the page in roles; its style sheet says what they are, in light and in dark. Each role
# has a colour here that nothing else is drawn in.
COLOURS: Final = {
    role: f"#00000{number}"
    for number, role in enumerate(("ink", "muted", "grid", "fp32", "plain", "int8", "weight-only", "bad"), 1)
}
_ROLES: Final = {colour: role for role, colour in COLOURS.items()}
_FIGURE: Final = "figure "
_REFERENCE: Final = re.compile(r"#([\w-]+)")


def gid(cell: Cell) -> str:
    """The gid of a shape that is as long as this figure is large: in the page it has data-key and data-value."""
    return _FIGURE + json.dumps([cell.key, cell.value])


def inline(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element, as wide as its place. label: what it shows, for those who cannot see it."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The reader's fonts draw the text, not matplotlib's.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    prefix = sha256(buffer.getvalue().encode()).hexdigest()[:8]
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        # A style element would hold for the whole page.
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for element in root.iter():
        # HTML knows what an <svg> is without namespaces.
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib = {name: value for old in attributes.items() for name, value in _attribute(*old, prefix).items()}
        element.text = None if element.text is None or not element.text.strip() else element.text
        element.tail = None
    root.attrib = {"class": "chart", "role": "img", "aria-label": label, "viewBox": root.attrib["viewBox"]}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attribute(name: str, value: str, prefix: str) -> dict[str, str]:
    """What becomes of an attribute."""
    if name == "id":
        if value.startswith(_FIGURE):
            key, number = json.loads(value.removeprefix(_FIGURE))
            return {"data-key": key, "data-value": repr(number)}
        # matplotlib numbers the groups of each figure from 1; what is referred to is named by a hash.
        return {"id": prefix + value} if re.fullmatch(r"[a-z][0-9a-f]{10}", value) else {}
    if name in ("href", "clip-path"):
        return {name: _REFERENCE.sub(rf"#{prefix}\1", value)}
    if name == "style":
        value = re.sub(r"font-family: [^;]*(; )?", "", value)
        return {name: re.sub(r"#[0-9a-f]{6}", lambda found: f"var(--{_ROLES[found[0]]})", value)}
    return {name: " ".join(value.split())}

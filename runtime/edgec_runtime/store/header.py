"""header.bin: what all passages of a store have in common, written once and never changed."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from .errors import HeaderInvalid, StoreDamaged, StoreMismatch, StoreNotFound, StoreTooNew

HEADER_FILE: Final = "header.bin"
FORMAT: Final = 1
MAGIC: Final = b"EDGECSTO"
BYTES: Final = 512

# magic, format, width, states, embedding_dim, embedding, overlap, build_id; zeros and a crc32 follow.
_FIELDS: Final = struct.Struct("<8sIIIIII128s")
_TEXT_LIMIT: Final = 127
_CODES: Final = {"float16": 1, "int8": 2, "float32": 3}
_NAMES: Final = {code: name for name, code in _CODES.items()}
_COUNT_LIMIT: Final = 1 << 32


@dataclass(frozen=True)
class InputComponent:
    """What computes the states. Stores of different input components cannot stand for each other.

    build_id: of the bundle. It names weights, compression and tokenizer, and is the same for all targets of a build, so
    that a store made on one machine serves the bundles of others.
    width: values a token after compression, 1 or more.
    """

    build_id: str
    width: int


@dataclass(frozen=True)
class Header:
    """What all passages of a store have in common.

    component: what computes the states.
    states: how states are kept: `float16`, or `int8` with a float16 scale a token.
    embedding_dim: values of a passage's embedding; 0: there are none.
    embedding: how embeddings are kept.
    overlap: tokens that two neighbouring passages of a document share.
    """

    component: InputComponent
    states: Literal["float16", "int8"] = "int8"
    embedding_dim: int = 0
    embedding: Literal["float16", "float32"] = "float32"
    overlap: int = 0
    format: int = field(default=FORMAT, init=False)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's states, its scale included."""
        return self.component.width * 2 if self.states == "float16" else self.component.width + 2

    @property
    def embedding_bytes(self) -> int:
        """Bytes of one passage's embedding."""
        return self.embedding_dim * (2 if self.embedding == "float16" else 4)

    def pack(self) -> bytes:
        """The 512 bytes of header.bin. Raises HeaderInvalid for what does not fit into them."""
        if self.states not in ("float16", "int8"):
            raise HeaderInvalid(f"states: {self.states!r} is no way to keep states", "give float16 or int8")
        if self.embedding not in ("float16", "float32"):
            raise HeaderInvalid(f"embedding: {self.embedding!r} is no way to keep them", "give float16 or float32")
        component = self.component
        counts = {"width": component.width, "embedding_dim": self.embedding_dim, "overlap": self.overlap}
        for name, value in counts.items():
            if not (1 if name == "width" else 0) <= value < _COUNT_LIMIT:
                raise HeaderInvalid(f"{name}: {value} is out of range", "give a count below 2 ** 32; width at least 1")
        content = _FIELDS.pack(
            MAGIC,
            self.format,
            component.width,
            _CODES[self.states],
            self.embedding_dim,
            _CODES[self.embedding],
            self.overlap,
            _text("build_id", component.build_id),
        )
        content += bytes(BYTES - 4 - len(content))
        return content + struct.pack("<I", zlib.crc32(content))


def read_header(folder: Path) -> tuple[Header, int]:
    """The header of the store in `folder`, and its crc32.

    Raises StoreNotFound, StoreDamaged, and StoreTooNew: of every later format too, the first 12 bytes are magic and
    format, and the header is 512 bytes that end with their crc32.
    """
    path = folder / HEADER_FILE
    if not path.is_file():
        raise StoreNotFound(f"{folder} holds no store: it has no {HEADER_FILE}", "give the folder of a store")
    content = path.read_bytes()
    if content[:8] != MAGIC:
        raise StoreDamaged(f"{path} is not the header of a store", "copy the store again from where it is whole")
    (crc,) = struct.unpack_from("<I", content, BYTES - 4) if len(content) == BYTES else (-1,)
    if crc != zlib.crc32(content[: BYTES - 4]):
        raise StoreDamaged(
            f"{path}: the checksum of its {BYTES} bytes differs", "copy the store again from where it is whole"
        )
    (written,) = struct.unpack_from("<I", content, 8)
    if written > FORMAT:
        raise StoreTooNew(f"{path} is of format {written}; this runtime reads up to {FORMAT}", "update edgec-runtime")
    _, _, width, states, dim, embedding, overlap, build_id = _FIELDS.unpack_from(content)
    component = InputComponent(_unpadded(build_id), width)
    header = Header(component, _NAMES.get(states, ""), dim, _NAMES.get(embedding, ""), overlap)  # type: ignore[arg-type]
    try:
        intact = header.pack() == content
    except HeaderInvalid as error:
        raise StoreDamaged(f"{path}: {error.message}", "make the store again with edgec") from error
    if not intact:
        raise StoreDamaged(f"{path} has bytes that format {FORMAT} does not know", "make the store again with edgec")
    return header, crc


def require_component(folder: Path, found: InputComponent, expected: InputComponent) -> None:
    """Raises StoreMismatch, naming what differs, where the states of a store are not of `expected`."""
    names = {"build_id": "build", "width": "width of the compressed states"}
    differences = [
        f"{name} {getattr(found, key)} where {getattr(expected, key)} is expected"
        for key, name in names.items()
        if getattr(found, key) != getattr(expected, key)
    ]
    if differences:
        raise StoreMismatch(
            f"{folder} was made by another model: {'; '.join(differences)}",
            "use the bundle that made the store, or index the passages again with this one",
        )


def require_header(folder: Path, found: Header, expected: Header) -> None:
    """Raises StoreMismatch, naming what differs, where two stores could not be one."""
    require_component(folder, found.component, expected.component)
    differences = [
        f"{key} {getattr(found, key)} where {getattr(expected, key)} is expected"
        for key in ("states", "embedding_dim", "embedding", "overlap")
        if getattr(found, key) != getattr(expected, key)
    ]
    if differences:
        raise StoreMismatch(
            f"{folder} keeps passages in another way: {'; '.join(differences)}",
            "give the options that the store was made with, or make a new one",
        )


def _text(name: str, value: str) -> bytes:
    try:
        content = value.encode()
    except UnicodeEncodeError as error:
        raise HeaderInvalid(f"{name}: {value!r} is no text", "give text without lone surrogates") from error
    if not content or len(content) > _TEXT_LIMIT or 0 in content:
        raise HeaderInvalid(f"{name}: {value!r} does not fit", f"give 1 to {_TEXT_LIMIT} bytes of UTF-8 without zeros")
    return content


def _unpadded(content: bytes) -> str:
    return content.rstrip(b"\0").decode(errors="replace")

"""Small passages and the stores of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from edgec_runtime.store import Header, InputComponent, Passage, StoreWriter

COMPONENT = InputComponent("build-7", width=6)
INT8 = Header(COMPONENT, embedding_dim=4, overlap=2)
FLOAT16 = Header(COMPONENT, states="float16", embedding_dim=3, embedding="float16")
BARE = Header(COMPONENT)


def passage(number: int, header: Header = INT8) -> Passage:
    """The passage `number`: 1 to 5 words of one, two, three and four bytes a letter."""
    random = np.random.default_rng(number)
    words = [str(random.choice(["moss", "Öl", "水の", "🦊x"])) for _ in range(1 + number % 5)]
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    offsets = np.stack([ends - [len(word) for word in words], ends], axis=1)
    states = random.normal(size=(len(words), header.component.width)).astype(np.float32)
    embedding = random.normal(size=header.embedding_dim).astype(np.float32) if header.embedding_dim else None
    return Passage(
        f"p{number}é", " ".join(words), offsets, states, embedding, f"title {number}", "moos.txt", start=number * 10
    )


def passages(count: int, header: Header = INT8, first: int = 0) -> list[Passage]:
    return [passage(number, header) for number in range(first, first + count)]


def write(folder: Path, content: Iterable[Passage], header: Header = INT8) -> Path:
    with StoreWriter.resume(folder, header) as writer:
        for one in content:
            writer.add(one)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

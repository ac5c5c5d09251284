"""The passage store: what a decoupled model computed of passages, kept in files that are mapped into memory.

with StoreWriter.resume("manual.store", header) as writer:
    writer.add(Passage("p1", text, offsets, states, embedding))
store = Store.open("manual.store", expect=header.component)
states = store.states(0)  # float32 (tokens, width)

docs/store.md describes every byte.
"""

from .edit import compact, delete, merge
from .errors import StoreError
from .header import Header, InputComponent
from .passage import Passage
from .reader import Store
from .writer import StoreWriter

__all__ = ["Header", "InputComponent", "Passage", "Store", "StoreError", "StoreWriter", "compact", "delete", "merge"]

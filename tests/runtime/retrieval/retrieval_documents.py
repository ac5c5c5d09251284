"""What the tests index."""

from __future__ import annotations

from edgec_runtime import Document

LONG = " ".join(
    ["Cara walked from the old house to the river , and the garden was cold ."] * 4 + ["Ada lives in Egypt ."]
)
DOCUMENTS = [
    Document("ada", "Ada works in Bern .", "Ada"),
    Document("cara", "the train to Denmark was new . Cara lives near the river .", "Cara"),
    Document("long", LONG, "A walk"),
    Document("none", "a small green letter", "Letter"),
]

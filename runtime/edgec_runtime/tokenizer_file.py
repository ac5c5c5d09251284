"""Opens a tokenizer.json, and tells in the runtime's words why it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ExtraMissing, ManifestInvalid

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def open_tokenizer(data: bytes, name: str) -> Tokenizer:
    """The tokenizer, its own truncation and padding switched off. `name` is the file named in errors.

    Raises ExtraMissing where the package tokenizers is absent, ManifestInvalid for what it cannot read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ExtraMissing("the package tokenizers is not installed", 'pip install "edgec-runtime[text]"') from None
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises plain Exception
        raise ManifestInvalid(
            f"{name} is not a tokenizer that tokenizers can read: {error}",
            "export the bundle again, or update tokenizers",
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

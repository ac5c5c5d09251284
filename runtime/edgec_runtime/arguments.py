"""Values of the command line's options."""

from __future__ import annotations

from argparse import ArgumentTypeError

from .cpu import MOST_THREADS


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a number above zero")
    return int(text)


def thread_count(text: str) -> int:
    count = positive(text)
    if count > MOST_THREADS:
        raise ArgumentTypeError(f"at most {MOST_THREADS}, not {count}")
    return count

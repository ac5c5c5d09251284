"""One call on a thread of its own. (concurrent.futures takes longer to import than what this is used for.)"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")

_MOMENT = 2e-4  # seconds; a longer one is lost where the work never lets go of the interpreter


class Background(Thread, Generic[T]):
    """Starts `work` at once; `result` waits for it, and raises what it raised."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(name="edgec-background", daemon=True)
        self._work = work
        self._value: list[T] = []
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value.append(self._work())
        except BaseException as error:  # handed to the thread that asks for the result
            self._error = error

    def let_begin(self) -> None:
        """Gives the interpreter away once, so that the work is under way before this thread goes on."""
        time.sleep(_MOMENT)

    def result(self) -> T:
        self.join()
        if self._error is not None:
            raise self._error
        return self._value[0]

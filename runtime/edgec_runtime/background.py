"""What makes a cold start shorter: a call on a thread of its own, and no disturbance meanwhile.

(concurrent.futures takes longer to import than what this is used for.)
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")

_SWITCH_SECONDS = 0.0005


@contextmanager
def undisturbed() -> Iterator[None]:
    """For the time of a cold start: no garbage collection (imports make much, and hardly any of it is garbage), and
    threads that hand the interpreter over ten times as often, because they wait for each other.

    Both hold for the whole process, so whoever finds them changed already leaves them alone.
    """
    collects = gc.isenabled()
    interval = sys.getswitchinterval()
    if collects:
        gc.disable()
    if interval > _SWITCH_SECONDS:
        sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        if collects:
            gc.enable()
        if interval > _SWITCH_SECONDS:
            sys.setswitchinterval(interval)


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

    def result(self) -> T:
        self.join()
        if self._error is not None:
            raise self._error
        return self._value[0]

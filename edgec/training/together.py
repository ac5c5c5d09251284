"""Several processes that train one model: joining, agreeing and leaving. Alone, all of it does nothing.

transformers.Trainer shares the batches out and averages the gradients (torchrun and accelerate start the processes,
edgec.processes tells which this one is); what is here keeps them at the same place of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar, cast

import torch

from edgec.errors import ProcessLost, SystemFailure
from edgec.processes import world_size

T = TypeVar("T")


def on_cpu() -> bool:
    """Whether there are several processes and no accelerator for them: then they have to be told so, or each would
    train alone."""
    if world_size() == 1:
        return False
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is None or found.type == "mps"


def agree(value: bool, question: str) -> None:
    """Wait until every process is here. Raises SystemFailure where they differ in `value`; question: of the message,
    what they differ in."""
    if world_size() > 1 and len(set(_heard(lambda: _gathered(value)))) > 1:
        raise SystemFailure(
            f"the {world_size()} processes differ in {question}",
            "start them on one machine, or let the folder of OUT lie on a file system that all machines share",
        )


def leave() -> None:
    """Training is over for this process; the others may go on."""
    if world_size() > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def with_others() -> Iterator[None]:
    """Inside, an error that says that another process has ended becomes ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and _lost(error):
            raise ProcessLost(
                "another of the processes that train together has ended",
                "what it told is above; --resume takes up the passes that were finished",
            ) from error
        raise


def _gathered(value: bool) -> list[bool]:
    """That of every process. The first call brings them together."""
    from accelerate import PartialState

    mine = torch.tensor([int(value)], device=PartialState(cpu=on_cpu()).device)
    every = [torch.zeros_like(mine) for _ in range(world_size())]
    torch.distributed.all_gather(every, mine)
    return [bool(other) for other in every]


def _heard(wait: Callable[[], T]) -> T:
    """What `wait` gives. It runs on a thread of its own: where the others never come, the launcher ends this process by
    a signal, which Python does not hear while it waits in torch."""
    outcome: SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((wait(), None))
        except BaseException as error:
            outcome.put((None, error))

    Thread(target=run, daemon=True).start()
    value, error = outcome.get()
    if error is not None:
        raise error
    return cast("T", value)


def _lost(error: RuntimeError) -> bool:
    # gloo's errors have no type of their own.
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)

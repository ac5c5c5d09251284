"""Runs something that writes a store, and kills it at every call that it makes of the file system, one after the other.

python kill_points.py FOLDER SCENARIO prints {"kills": how many, "wrong": [what did not come out as without kills]}.
A process of its own: it forks, which a process with threads should not.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgec_runtime.errors import BundleError
from edgec_runtime.store import Store, StoreWriter, append, merge
from store_passages import INT8, files, passage, passages, write

CALLS = ("open", "mkdir", "pwrite", "fsync", "ftruncate", "replace", "unlink")
COUNT = 7
SEED = 0


class Killer:
    """Kills this process at its `at`-th call of the file system; where that writes, after the share `part` of it.

    names: of the calls so far.
    """

    def __init__(self, at: int, part: float) -> None:
        self.left, self.part = at, part
        self.names: list[str] = []
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self.left == 0:
                if name == "pwrite":
                    file, content, offset = arguments
                    call(file, content[: int(len(content) * self.part)], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            self.names.append(name)
            return call(*arguments, **options)

        return counted


def calls(action: Callable[[], None]) -> list[str]:
    """The calls that `action` makes of the file system."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        killer = Killer(1 << 30, 0)
        action()
        os.write(sending, " ".join(killer.names).encode())
        os._exit(0)
    os.close(sending)
    with open(receiving) as told:  # noqa: PTH123 - a file descriptor
        names = told.read().split()
    assert os.waitpid(child, 0)[1] == 0, "the action failed by itself"
    return names


def killed(at: int, part: float, action: Callable[[], None]) -> bool:
    """Whether `action`, in a process of its own, was killed rather than done."""
    child = os.fork()
    if child == 0:
        Killer(at, part)
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, "the action failed by itself"
    return os.WIFSIGNALED(status)


class Scenario:
    """`prepare` makes what is there before; `action` can be called again and again until it is through."""

    def __init__(self, folder: Path) -> None:
        self.store, self.committed = folder / "store", folder / "committed"

    def prepare(self) -> None:
        pass

    def action(self) -> None:
        raise NotImplementedError

    def valid(self, ids: list[str]) -> bool:
        """Whether these may be the ids after a kill."""
        raise NotImplementedError


class Write(Scenario):
    def action(self) -> None:
        append.BUFFER_BYTES = 600
        with StoreWriter.resume(self.store, INT8) as writer:
            for number in range(len(writer), COUNT):
                writer.add(passage(number))
                if number % 3 == 1:
                    writer.commit()
                    self.committed.write_text(str(number + 1))

    def valid(self, ids: list[str]) -> bool:
        promised = int(self.committed.read_text() or 0) if self.committed.exists() else 0
        return promised <= len(ids) and ids == [one.id for one in passages(len(ids))]


class Delete(Scenario):
    gone = ("p1é", "p4é")

    def prepare(self) -> None:
        write(self.store, passages(COUNT))

    def action(self) -> None:
        with StoreWriter.open(self.store) as writer:
            writer.delete([name for name in self.gone if name in writer])

    def valid(self, ids: list[str]) -> bool:
        every = [one.id for one in passages(COUNT)]
        return ids in (every, [name for name in every if name not in self.gone])


class Compact(Delete):
    def prepare(self) -> None:
        write(self.store, passages(COUNT))
        Delete.action(self)

    def action(self) -> None:
        append.BUFFER_BYTES = 600
        with StoreWriter.open(self.store) as writer:
            writer.compact()


class Merge(Scenario):
    def prepare(self) -> None:
        for shard in range(3):
            write(self.store.with_name(f"shard{shard}"), passages(3, first=3 * shard))

    def action(self) -> None:
        append.BUFFER_BYTES = 600
        merge([self.store.with_name(f"shard{shard}") for shard in range(3)], self.store)

    def valid(self, ids: list[str]) -> bool:
        return ids == [one.id for one in passages(len(ids))]


def survives(scenario: Scenario) -> str:
    """What is wrong with the store after a kill; empty where nothing is."""
    try:
        if (scenario.store / "state.bin").exists():
            store = Store.open(scenario.store, empty_ok=True)
            store.verify()
            store.embeddings()
            if not scenario.valid(store.ids):
                return f"ids {store.ids}"
    except BundleError as error:
        return error.message
    return ""


def main(folder: Path, kind: type[Scenario]) -> dict[str, Any]:
    # What a process wrote outlives its kill without fsync, which would only take the test's time.
    os.fsync = lambda file: None
    original, work = folder / "original", folder / "work"
    original.mkdir()
    kind(original).prepare()
    shutil.copytree(original, folder / "expected")
    kind(folder / "expected").action()
    expected = files(folder / "expected/store")

    shutil.copytree(original, work)
    names = calls(kind(work).action)
    shutil.rmtree(work)
    kills = [(at, part) for at, name in enumerate(names) for part in ((0, 0.5, 0.99) if name == "pwrite" else (0,))]
    wrong = []
    for at, part in kills:
        shutil.copytree(original, work)
        scenario = kind(work)
        assert killed(at, part, scenario.action)
        reason = survives(scenario)
        scenario.action()
        if reason or files(scenario.store) != expected:
            wrong.append(f"{names[at]}, call {at}, {part}: {reason or 'other bytes'}")
        shutil.rmtree(work)

    random.seed(SEED)
    again = 0
    for _ in range(6):  # killed again and again, also while it takes up what a kill left
        shutil.copytree(original, work)
        scenario = kind(work)
        while killed(random.randrange(len(names) + 5), random.random(), scenario.action):
            again += 1
            if reason := survives(scenario):
                wrong.append(f"again and again: {reason}")
        if files(scenario.store) != expected:
            wrong.append("again and again: other bytes")
        shutil.rmtree(work)
    return {"kills": len(kills) + again, "wrong": wrong}


if __name__ == "__main__":
    scenarios = {"write": Write, "delete": Delete, "compact": Compact, "merge": Merge}
    print(json.dumps(main(Path(sys.argv[1]), scenarios[sys.argv[2]])))

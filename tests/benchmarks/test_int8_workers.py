"""The protocol, with a peer that needs numpy alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.int8 import environments, workers
from benchmarks.int8.contenders import PEERS, Contender
from benchmarks.int8.environments import PeerFailed

SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(PEERS)!r})
import numpy as np
import serve

class Model:
    def __init__(self, folder, threads):
        print("a library that talks")
        self.scale = float((folder / "scale").read_text())
    def embed(self, ids, mask):
        if ids.max() == 13:
            raise ValueError("unlucky")
        if ids.max() == 99:
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(1)
        return self.scale * (ids * mask).sum(axis=1, keepdims=True)
    def embed_texts(self, texts):
        return [[len(text), int(os.environ["OMP_NUM_THREADS"])] for text in texts]

def prepare(model, out, texts, graph):
    (out / "scale").write_text((model / "scale").read_text())

serve.main(prepare, Model)
"""


@pytest.fixture
def peer(tmp_path: Path) -> Contender:
    (tmp_path / "peer.py").write_text(SCRIPT)
    (tmp_path / "scale").write_text("0.5")
    return Contender("tiny", "a tiny peer", "none", str(tmp_path / "peer"))


@pytest.fixture
def worker(peer: Contender, tmp_path: Path) -> Iterator[workers.Worker]:
    with workers.Worker(peer, Path(sys.executable), tmp_path, threads=1, cores=os.sched_getaffinity(0)) as one:
        yield one


def test_commands_are_answered_though_the_library_prints(worker: workers.Worker) -> None:
    assert worker.load() > 0
    assert worker.ask("embed", rows=[[1, 2], [4]], batch=2) == {"embeddings": [[1.5], [2.0]]}
    assert len(worker.ask("time", batch=1, tokens=4, calls=2)["ms"]) == 2
    assert worker.ask("texts", texts=["abc"])["embeddings"] == [[3, 1]]


def test_an_exception_is_told_and_the_worker_goes_on(worker: workers.Worker) -> None:
    worker.load()
    with pytest.raises(PeerFailed, match="embed: ValueError: unlucky"):
        worker.ask("embed", rows=[[13]], batch=1)
    assert worker.ask("embed", rows=[[2]], batch=1) == {"embeddings": [[1.0]]}


def test_a_process_that_ends_leaves_its_last_words(worker: workers.Worker) -> None:
    worker.load()
    with pytest.raises(PeerFailed, match=r"the process ended: .*out of memory"):
        worker.ask("embed", rows=[[99]], batch=1)


def test_a_fresh_process_tells_its_time_and_its_memory(peer: Contender, tmp_path: Path) -> None:
    elapsed, memory = workers.cold_start(peer, Path(sys.executable), tmp_path, "a text")
    assert elapsed > 0
    assert 5 < memory < 1000
    with pytest.raises(PeerFailed, match=r"cold: .*No such file"):
        workers.cold_start(peer, Path(sys.executable), tmp_path / "nowhere", "a text")


def test_preparing_runs_in_the_peer_and_its_failure_is_told(peer: Contender, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    workers.prepare(peer, Path(sys.executable), [tmp_path, out, tmp_path, tmp_path])
    assert (out / "scale").read_text() == "0.5"
    with pytest.raises(PeerFailed, match=r"prepare: .*No such file"):
        workers.prepare(peer, Path(sys.executable), [out / "missing", out, tmp_path, tmp_path])


def test_workers_do_not_see_the_callers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    found = workers.environment(2)
    assert "PYTHONPATH" not in found and "PYTHONDONTWRITEBYTECODE" not in found
    assert found["OMP_NUM_THREADS"] == "2"


def test_a_second_run_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    with (
        environments.only_one(tmp_path),
        pytest.raises(SystemExit, match="another run"),
        environments.only_one(tmp_path),
    ):
        pass
    with environments.only_one(tmp_path):
        pass


def test_an_environment_is_made_once_for_its_requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(environments, "_call", lambda command: called.append(command) or "")
    monkeypatch.setattr(environments, "NEEDED", 0)
    (tmp_path / "torchao").mkdir()
    for _ in range(2):
        environments.python("torchao", tmp_path)
    assert [command[-1] for command in called] == [
        str(tmp_path / "torchao" / "venv"),
        "torch",  # before the rest, so that nothing pulls another build in
        str(PEERS / "torchao.txt"),
    ]

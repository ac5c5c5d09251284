"""Several processes that train together: what they are told, what comes out of them, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import LABELS, SENTENCES, tiny

from edgec import pipeline, processes
from edgec.data.examples import Example
from edgec.errors import PassError, ProcessLost, UserError
from edgec.models import load_build, load_model
from edgec.passes import Finetune, FuseAdapters, Lora, run_pass
from edgec.passes.cache import PassCache
from edgec.state import ModelState, PassContext, TrainingData
from edgec.target import Target

NAMES = LABELS["text-classification"]
ROWS = tuple((SENTENCES[place % 6], NAMES[place % 3]) for place in range(32))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, foreign: Target) -> Path:
    """A folder with a classifier without dropout, rows, and a recipe of two passes that train and one that does not."""
    folder = tmp_path_factory.mktemp("processes")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny("bert", "text-classification", folder / "model", **still)
    (folder / "train.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS))
    (folder / "two.yaml").write_text(
        "edgec: 1\n"
        "model: {source: ./model}\n"
        "data: {train: {text: train.tsv, text_column: text, label_column: label}}\n"
        "passes:\n"
        "  - finetune: {batch_size: 2, accumulate: 2, steps: 4, learning_rate: 1e-3}\n"
        "  - lora: {batch_size: 4, steps: 2, learning_rate: 1e-2}\n"
        "  - fuse-adapters: {int8: false}\n"
        f"targets: [{foreign.name}]\n"
    )
    return folder


def launched(launcher: list[str], folder: Path, out: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "edgec", "compress", "--recipe", "two.yaml", "--out", out],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def logits(state: ModelState) -> torch.Tensor:
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    with torch.inference_mode():
        return state.parts["encoder"](ids, torch.ones_like(ids))[0]


def test_two_processes_give_what_one_gives(shop: Path, tmp_path: Path) -> None:
    """With twice the rows a step: the same rows in the same steps, whoever computes them."""
    done = launched(["torch.distributed.run", "--standalone", "--nproc-per-node", "2"], shop, "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fp32 baseline") == 1
    assert [done.stderr.count(f"pass {name}\n") for name in ("finetune", "lora", "fuse-adapters")] == [1, 1, 1]
    assert "Warning" not in done.stderr and "error" not in done.stderr
    assert sorted(path.name for path in shop.iterdir()) == ["model", "out", "train.tsv", "two.yaml"]
    together = load_build(shop / "out" / "model")

    alone = load_model(shop / "model")
    rows = tuple(Example(text, label=label) for text, label in ROWS)
    ctx = PassContext(tmp_path, data=TrainingData(rows))
    for step in (
        Finetune(batch_size=8, steps=4, learning_rate=1e-3),
        Lora(batch_size=8, steps=2, learning_rate=1e-2),
        FuseAdapters(int8=False),
    ):
        before, alone = alone, run_pass(step, alone, ctx)
    torch.testing.assert_close(logits(together), logits(alone), atol=1e-4, rtol=0)
    assert (logits(alone) - logits(load_model(shop / "model"))).abs().max() > 1e-2
    assert before.lora is not None and together.lora is None
    for mine, its in zip(alone.history[:2], together.history[:2], strict=True):
        assert (mine.report["processes"], its.report["processes"]) == (1, 2)
        assert list(its.report["losses"].values()) == pytest.approx(list(mine.report["losses"].values()), abs=1e-4)


def test_all_end_where_the_first_fails(shop: Path) -> None:
    """The second waits for the first, which sees that OUT is in the way and ends."""
    (shop / "there").mkdir()
    began = time.monotonic()
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = launched(launcher, shop, "there")
    assert done.returncode != 0
    assert "error: there exists" in done.stderr
    assert list((shop / "there").iterdir()) == []
    # The launcher kills what does not end by itself after half a minute, and torch would wait for half an hour.
    assert time.monotonic() - began < 120
    (shop / "there").rmdir()
    assert [path.name for path in shop.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
        ({"RANK": "3", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "", "WORLD_SIZE": "two"}, (0, 1)),
    ],
)
def test_what_the_launcher_says(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (processes.rank(), processes.world_size()) == expected
    assert processes.is_main() == (expected[0] == 0)


def test_only_the_first_compresses(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="which the first process does alone"):
        pipeline.compress(shop / "two.yaml", out=shop / "other")


def test_only_the_first_writes_and_clears_the_cache(shop: Path, tmp_path: Path) -> None:
    state = load_model(shop / "model")
    with pytest.raises(ProcessLost), PassCache(tmp_path / "out", resume=False) as first:
        first.begin()
        first.put("key", state)
        raise ProcessLost("another has ended")
    # The loss of a process is an interruption: what was finished is kept.
    for resume in (False, True):
        with pytest.raises(PassError), PassCache(tmp_path / "out", resume=resume, writes=False) as other:
            assert (other.get("key") is not None) == resume
            other.put("another", state)
            raise PassError("ends")
    assert [path.name for path in first.folder.iterdir()] == ["key"]


def test_results_of_another_number_of_processes_are_not_taken_up(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_model(shop / "model")
    alone = PassCache.key(state, [{"finetune": {"steps": 2}}], [], 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert PassCache.key(state, [{"finetune": {"steps": 2}}], [], 0) != alone


def test_a_folder_that_an_option_names_counts_with_its_content(shop: Path, tmp_path: Path) -> None:
    state = load_model(shop / "model")
    passes = [{"fuse-adapters": {"adapter": str(tmp_path)}}]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    before = PassCache.key(state, passes, [], 0)
    assert PassCache.key(state, passes, [], 0) == before
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert PassCache.key(state, passes, [], 0) != before

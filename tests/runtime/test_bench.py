from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgec_runtime import __main__, bench, fresh, load, measure
from edgec_runtime.errors import EngineFailed, FileDamaged, TaskMismatch
from edgec_runtime.integrity import read_manifest
from edgec_runtime.manifest import Execution
from tiny_bundles import seal, write_bundle

FIGURES = {"rounds", "calls", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "texts_per_s", "ratio", "unstable"}


@pytest.fixture(scope="module")
def report(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two bundles, of which the second must not be batched."""
    alone = write_bundle(
        tmp_path_factory.mktemp("alone") / "b",
        "feature-extraction",
        execution=Execution(batch_invariant=False),
    )
    return bench.bench(
        [bundles["feature-extraction"], alone], tokens=(8, 64, 128), batch=(1, 2), rounds=3, cold_start=True
    )


def test_the_report_is_json_and_complete(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["schema"] == bench.SCHEMA
    assert report["settings"]["threads"] == 1
    assert report["machine"]["versions"]["edgec_runtime"]
    for one in report["bundles"]:
        manifest = read_manifest(Path(one["path"]))
        assert one["build_id"] == manifest.build_id
        assert one["bytes"] == manifest.total_bytes
        assert [(shape["batch"], shape["tokens"]) for shape in one["shapes"]] == [
            (1, 8),
            (1, 32),
            (2, 8),
            (2, 32),
        ]
        for found in [*one["shapes"], *one["schedules"].values()]:
            assert set(found) - {"batch", "tokens"} == FIGURES
            assert found["rounds"] == 3
            assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
        for shape in one["shapes"]:
            assert shape["texts_per_s"] == pytest.approx(shape["batch"] * 1e3 / shape["mean_ms"])


def test_the_first_bundle_is_the_baseline(report: dict[str, Any]) -> None:
    first = report["bundles"][0]
    for found in [*first["shapes"], *first["schedules"].values()]:
        assert found["ratio"] == {"median": 1.0, "p10": 1.0, "p90": 1.0}


def test_rows_longer_than_a_bundle_takes_are_cut_and_reported(report: dict[str, Any]) -> None:
    assert report["settings"]["tokens"] == [8, 32]
    assert any("32 tokens at most" in warning for warning in report["warnings"])


def test_a_bundle_that_must_not_be_batched_is_not(report: dict[str, Any]) -> None:
    assert [set(one["schedules"]) for one in report["bundles"]] == [{"streams", "batches"}, {"streams"}]


def test_a_cold_start_holds_the_imports_and_more(report: dict[str, Any]) -> None:
    assert report["imports_ms"] > 0
    for one in report["bundles"]:
        assert one["cold_start_ms"] > 0
        assert one["cold_start_ratio"]["p10"] <= one["cold_start_ratio"]["median"] <= one["cold_start_ratio"]["p90"]


def test_cold_start_is_left_out_unless_asked_for(bundles: dict[str, Path]) -> None:
    report = bench.bench([bundles["fill-mask"]], tokens=(4,), rounds=1)
    assert report["imports_ms"] is None
    assert report["bundles"][0]["cold_start_ms"] is None
    assert report["bundles"][0]["load_ms"] > 0


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_every_task_can_be_measured(bundles: dict[str, Path], task: str) -> None:
    report = bench.bench([bundles[task]], tokens=(4,), rounds=1)
    assert report["bundles"][0]["task"] == task
    assert set(report["bundles"][0]["schedules"]) == {"streams", "batches"}


def test_inputs_are_as_the_graph_wants_them(bundles: dict[str, Path]) -> None:
    part = read_manifest(bundles["feature-extraction"]).parts[0]
    types = replace(part.inputs[0], name="token_type_ids", dtype="int64")
    ids = np.arange(6).reshape(2, 3)
    feeds = measure.feeds(replace(part, inputs=(*part.inputs, types)), ids)
    assert {name: value.dtype.name for name, value in feeds.items()} == {
        "input_ids": "int32",
        "attention_mask": "int32",
        "token_type_ids": "int64",
    }
    np.testing.assert_array_equal(feeds["input_ids"], ids)
    assert feeds["attention_mask"].all() and not feeds["token_type_ids"].any()


def test_a_fresh_process_tells_its_own_memory(bundles: dict[str, Path]) -> None:
    """Not that of this process, which it is forked from and which is made larger first."""
    ballast = np.ones(512 * 2**20, np.uint8)
    load_ms, peak = fresh.load(bundles["feature-extraction"], 1)
    assert ballast.sum() == len(ballast)
    assert load_ms > 0
    assert peak is not None and 10 < peak < 512


@pytest.mark.parametrize("task", ["question-answering", "fill-mask", "text-classification"])
def test_a_cold_start_of_every_kind_of_request(bundles: dict[str, Path], task: str) -> None:
    assert fresh.cold_start_ms(bundles[task], 1) > 0


def test_a_cold_start_verifies_the_hashes(bundle: Path) -> None:
    (bundle / "README.md").write_text("Another.\n")
    with pytest.raises(EngineFailed, match="FileDamaged"):
        fresh.cold_start_ms(bundle, 1)


def test_a_damaged_bundle_is_not_measured(bundle: Path) -> None:
    (bundle / "README.md").write_text("Something else\n")
    with pytest.raises(FileDamaged):
        bench.bench([bundle], tokens=(4,), rounds=1)


def test_what_the_runtime_warns_of_is_reported(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    seal(bundle, manifest, target=replace(manifest.target, features=("no_such_feature",)))
    report = bench.bench([bundle], tokens=(4,), rounds=1)
    assert any("no_such_feature" in warning for warning in report["warnings"])


def test_json_on_stdout_is_alone_there(bundles: dict[str, Path], tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text("one text\n\nanother one\n")
    command = [sys.executable, "-m", "edgec_runtime", "bench", bundles["feature-extraction"], "--rounds", "1"]
    done = subprocess.run(
        [*command, "--tokens", "4,8", "--text-file", texts, "--json", "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["settings"]["tokens"] == [4, 8]
    assert "warming up" in done.stderr


def test_a_table_without_json(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    bundle = str(bundles["feature-extraction"])
    assert __main__.main(["bench", bundle, "--tokens", "4", "--rounds", "1", "--json", str(file)]) == 0
    table = capsys.readouterr().out
    assert "1 x 4" in table and "streams" in table and "peak memory" in table
    p50 = json.loads(file.read_text())["bundles"][0]["shapes"][0]["p50_ms"]
    assert f"{p50:.2f}" in table


@pytest.mark.parametrize("sizes", ["0", "a", "1,", "-3"])
def test_wrong_sizes(bundles: dict[str, Path], sizes: str) -> None:
    with pytest.raises(SystemExit) as end:
        __main__.main(["bench", str(bundles["fill-mask"]), f"--tokens={sizes}"])
    assert end.value.code == 2


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_text_file_without_texts(bundles: dict[str, Path], tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "texts").write_bytes(content)
    arguments = ["bench", str(bundles["fill-mask"]), "--text-file", str(tmp_path / "texts")]
    assert __main__.main(arguments) == 2


def test_plain_texts_do_not_fit_a_reader(bundles: dict[str, Path]) -> None:
    with pytest.raises(TaskMismatch, match="context"):
        bench.bench([bundles["question-answering"]], tokens=(4,), rounds=1, texts=["a text"])


def test_threads_reach_an_engine_that_runs_texts_alone(tmp_path: Path) -> None:
    """Such a bundle's own engine has one thread whatever is asked for; the benchmark opens another one."""
    path = write_bundle(tmp_path / "b", "feature-extraction", execution=Execution(batch_invariant=False))
    with load(path, threads=2, schedule="batches") as model:
        assert model.runner.schedule == "streams"
    contender = measure.Contender.open(path, 2, [])
    assert contender.engine.session.get_session_options().intra_op_num_threads == 2  # type: ignore[attr-defined]


def test_progress_is_told_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.4, 10.9, 11.0, 11.5, 12.3])
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(clock))
    told: list[str] = []
    tell = bench.once_a_second(told.append)
    for word in "abcdef":
        tell(word)
    assert told == ["a", "d", "f"]


def test_the_docs_name_every_key(report: dict[str, Any]) -> None:
    documented = set(re.findall(r"`(\w+)`", (Path(__file__).parents[2] / "docs" / "bench.md").read_text()))
    assert keys(report) <= documented


def keys(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if isinstance(value, dict):
        return set(value) | set().union(*map(keys, value.values()))
    return set()


def test_bundles_of_one_name_are_told_apart_by_their_folders(bundles: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bundles["feature-extraction"], tmp_path / "erf")
    opened = [measure.Contender.open(path, 1, []) for path in (bundles["feature-extraction"], tmp_path / "erf")]
    other = replace(opened[0], title="another fp32 any")
    titles = [one.title for one in measure.told_apart([*opened, other])]
    assert titles == ["tiny fp32 any (feature-extraction)", "tiny fp32 any (erf)", "another fp32 any"]
    alike = [("m", Path(path)) for path in ("/a/bundles/arm64", "/b/bundles/arm64", "/b/bundles/arm64")]
    assert measure.unlike([*alike, ("n", Path("/a/bundles/arm64"))]) == [
        "m (a/bundles/arm64)",
        "m (b/bundles/arm64)",
        "m (b/bundles/arm64)",
        "n",
    ]

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest
from edgec_runtime.errors import BundleNotFound, UnsafePath
from edgec_runtime.manifest import Execution
from tiny_bundles import write_bundle

from edgec.devices import compare, open_device
from edgec.devices.content import Content
from edgec.devices.device import run_process
from edgec.errors import DeviceError, GateFailed, UserError


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bundles")
    alone = Execution(batch_invariant=False)
    return [
        write_bundle(root / "first", "feature-extraction"),
        write_bundle(root / "second", "feature-extraction", execution=alone),
    ]


def test_bundles_are_measured_in_a_process_of_their_own(
    bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started from a folder with a module that would stand in for numpy."""
    (tmp_path / "numpy.py").write_text("raise ImportError('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    with open_device("local") as device:
        report = compare.bench(device, bundles, tokens=(4,), batch=(1, 2), rounds=2, on_line=lines.append)
    assert report.device == "local"
    assert [one.path for one in report.bundles] == bundles
    first, second = report.bundles
    assert set(first.shapes) == {(1, 4), (2, 4)}
    assert first.shapes[1, 4].ratio == compare.Ratio(1, 1, 1)
    assert second.shapes[1, 4].ratio.p10 <= second.shapes[1, 4].ratio.median <= second.shapes[1, 4].ratio.p90
    assert second.cold_start_ms is not None and second.cold_start_ratio is not None
    assert report.data["schema"] == 1
    assert lines

    table = compare.rows(report)
    assert {len(row) for row in table} == {len(compare.COLUMNS)}
    assert [row[1] for row in table] == [
        *["1 x 4 tokens"] * 2,
        *["2 x 4 tokens"] * 2,
        *["texts, streams"] * 2,
        "texts, batches",
    ]
    assert f"{second.shapes[1, 4].p50_ms:.2f}" == table[1][2]
    assert {len(row) for row in compare.fact_rows(report)} == {len(compare.FACTS)}


def test_a_damaged_bundle_is_refused_in_the_words_of_the_runtime(bundles: list[Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "damaged", "feature-extraction")
    (bundle / "model.onnx").write_bytes(b"no graph")
    lines: list[str] = []
    with open_device("local") as device, pytest.raises(GateFailed, match="bytes instead of") as refused:
        compare.bench(device, [bundles[0], bundle], rounds=1, on_line=lines.append)
    assert refused.value.exit_code == 1
    assert "copy it again" in refused.value.hint
    assert not [line for line in lines if line.startswith(("error", "hint"))]


@pytest.mark.parametrize("url", ["local", "ssh://nobody@127.0.0.1:1", "qemu://cortex-a72"])
def test_every_device_refuses_what_is_no_bundle(url: str, tmp_path: Path) -> None:
    """Before there is a connection."""
    (tmp_path / "letter.txt").write_text("private")
    for path, why in ((tmp_path, r"holds no manifest\.json"), (tmp_path / "absent", "does not exist")):
        with pytest.raises(BundleNotFound, match=why) as refused:
            open_device(url).place(path)
        assert refused.value.exit_code == 2


def test_a_program_that_takes_too_long_is_ended() -> None:
    with open_device("local") as device, pytest.raises(DeviceError, match="took more than"):
        device.runtime(["run", "absent", "-"], timeout=1e-3)


def test_an_unknown_kind_of_device() -> None:
    with pytest.raises(UserError, match="telnet") as unknown:
        open_device("telnet://box")
    assert all(kind in unknown.value.hint for kind in ("local", "ssh://", "qemu://"))


def test_times_of_an_emulated_device_are_refused(bundles: list[Path]) -> None:
    with pytest.raises(UserError, match="emulated"):
        compare.bench(open_device("qemu://cortex-a72"), bundles)


def test_an_interrupted_process_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def interrupt(line: str) -> None:
        pid.write_text(line)

    def feed(stream: object) -> None:
        while not pid.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    code = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        run_process([sys.executable, "-c", code], on_line=interrupt, feed=feed)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_process_keeps_its_streams_apart() -> None:
    code = "import sys; print('data'); print('progress', file=sys.stderr); sys.exit(7)"
    lines: list[str] = []
    done = run_process([sys.executable, "-c", code], on_line=lines.append)
    assert (done.code, done.stdout, done.stderr, lines) == (7, "data\n", "progress\n", ["progress"])


def test_content_is_named_by_paths_and_bytes(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "feature-extraction")
    whole = hashlib.sha256()
    for name in ("README.md", "golden.npz", "manifest.json", "model.onnx", "tokenizer.json"):
        whole.update(f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()} {name}\0".encode())
    assert Content.of_bundle(bundle).digest == whole.hexdigest()[:32]
    os.utime(bundle / "README.md", (0, 0))
    bundle = bundle.rename(tmp_path / "renamed")
    assert Content.of_bundle(bundle).digest == whole.hexdigest()[:32]


def test_content_is_what_the_manifest_lists(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "feature-extraction")
    listed = Content.of_bundle(bundle)
    (bundle / "letter.txt").write_text("private")
    (bundle / "elsewhere").symlink_to(tmp_path)
    assert Content.of_bundle(bundle) == listed
    archive = io.BytesIO()
    listed.write_tar(archive)
    with tarfile.open(fileobj=io.BytesIO(archive.getvalue())) as read:
        names = ("README.md", "golden.npz", "manifest.json", "model.onnx", "tokenizer.json")
        assert read.getnames() == [f"bundle/{name}" for name in names]


def test_content_keeps_to_its_folder(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "feature-extraction")
    (bundle / "README.md").rename(bundle / "inside")
    (bundle / "README.md").symlink_to("inside")
    assert Content.of_bundle(bundle).files["README.md"] == (bundle / "inside").resolve()
    (bundle / "inside").rename(tmp_path / "outside")
    (bundle / "README.md").unlink()
    (bundle / "README.md").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath, match="leaves the bundle"):
        Content.of_bundle(bundle)

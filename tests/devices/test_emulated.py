"""Bundles on emulated CPUs, and the refusals. The golden vectors come from this machine's own CPU."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgec_runtime import golden, loading
from edgec_runtime.cpu import architecture
from edgec_runtime.manifest import (
    MANIFEST_FILE,
    Execution,
    FileInfo,
    Golden,
    Manifest,
    Part,
    Postprocessing,
    Preprocessing,
    Source,
    TargetInfo,
    TensorInfo,
    parse,
)
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from edgec.devices import cpu_files, guests, open_device, sysroot
from edgec.devices.emulated import EmulatedDevice
from edgec.emulation import emulate
from edgec.errors import DeviceError, UserError
from edgec.target import Target, detect, list_targets

WORDS = [
    "the",
    "old",
    "house",
    "near",
    "river",
    "was",
    "quiet",
    "and",
    "a",
    "cold",
    "wind",
    "came",
    "from",
    "north",
]
REQUESTS = [
    "the old house",
    "a cold wind came from the north",
    "river",
    "was the quiet river near the house and",
]
WIDTH, DIMENSION = 64, 24

needs_x86_emulator = pytest.mark.skipif(
    shutil.which("qemu-x86_64") is None or architecture() != "x86_64",
    reason="needs qemu-x86_64 (Debian: qemu-user) on an x86-64 machine",
)
needs_emulator = pytest.mark.skipif(sysroot.missing() is not None, reason=str(sysroot.missing()))


def int8_graph(path: Path, largest: int) -> None:
    """Embeddings, one matrix product in u8 x s8 integers, the mean over tokens. largest: magnitude of the weights."""
    rng = np.random.default_rng(7)
    constants = {
        "table": rng.normal(size=(len(WORDS) + 2, WIDTH)).astype(np.float32),
        "weight": rng.integers(-largest, largest + 1, (WIDTH, DIMENSION)).astype(np.int8),
        "weight_scale": np.float32(0.01),
        "axes": np.array([1], np.int64),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("DynamicQuantizeLinear", ["words"], ["words_u8", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["words_u8", "weight", "zero"], ["products"], name="product/MatMulInteger"),
        helper.make_node("Cast", ["products"], ["product"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "weight_scale"], ["factor"]),
        helper.make_node("Mul", ["product", "factor"], ["states"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
        helper.make_node("Mul", ["states", "mask_3d"], ["kept"]),
        helper.make_node("ReduceMean", ["kept", "axes"], ["sentence_embedding"], keepdims=0),
    ]
    inputs = ("input_ids", "attention_mask")
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def int8_bundle(folder: Path, largest: int = 63) -> Path:
    """A small arm64 bundle for feature extraction whose golden vectors were computed on this machine.

    largest: magnitude of the weights; above 64, x86 without VNNI saturates and rightly answers something else.
    """
    folder.mkdir()
    int8_graph(folder / "encoder.onnx", largest)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    axes = ("batch", "tokens")
    inputs = tuple(TensorInfo(name, "int32", axes) for name in ("input_ids", "attention_mask"))
    output = TensorInfo("sentence_embedding", "float32", ("batch", DIMENSION))
    manifest = Manifest(
        format=1,
        name="tiny",
        build_id="tiny",
        task="feature-extraction",
        family="bert",
        target=TargetInfo("arm64", "aarch64"),
        parts=(Part("encoder", "encoder.onnx", "int8", inputs, (output,)),),
        files=(),
        preprocessing=Preprocessing("tokenizer.json", max_length=16, pad_id=0),
        postprocessing=Postprocessing(dimension=DIMENSION, pooling="mean", normalized=False),
        execution=Execution(batch_invariant=False),
        golden=Golden("golden.npz", max_abs=1e-5, min_cosine=0.999999),
        source=Source("made by hand"),
    )
    with pytest.warns(match="aarch64"), loading.assemble(manifest, folder, verify=False) as model:
        if largest > 64:
            model.runner.engine = emulate(folder / "encoder.onnx", "vnni")  # exact, whatever CPU this machine has
        golden.record(folder / "golden.npz", model, REQUESTS)
    return seal(folder, manifest)


def seal(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest of what now stands in `folder`."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST_FILE:
            content = path.read_bytes()
            files.append(FileInfo(path.name, hashlib.sha256(content).hexdigest(), len(content)))
    sealed = dataclasses.replace(manifest, files=tuple(files)).sealed()
    (folder / MANIFEST_FILE).write_text(sealed.to_text())
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8_bundle(tmp_path_factory.mktemp("emulated") / "bundle")


@pytest.mark.emulated
@needs_emulator
@needs_x86_emulator
@pytest.mark.parametrize(
    "target", [target for target in list_targets() if target.verified == "emulated"], ids=lambda t: t.name
)
def test_targets_that_say_so_reproduce_golden_vectors(bundle: Path, target: Target) -> None:
    assert target.emulated is not None
    with open_device(f"qemu://{target.emulated.qemu_cpu}") as device:
        assert device.emulated
        done = device.runtime(["check", device.place(bundle)], timeout=100)
    assert done.code == 0, done.stderr


@pytest.mark.emulated
@needs_emulator
def test_an_output_that_is_off_is_found(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "off"
    shutil.copytree(bundle, folder)
    vectors = golden.read(folder / "golden.npz")
    vectors.outputs[2]["sentence_embedding"] = vectors.outputs[2]["sentence_embedding"] + 0.1
    golden.write(folder / "golden.npz", vectors.requests, vectors.ids, vectors.outputs)
    seal(folder, parse((folder / MANIFEST_FILE).read_text(), "manifest"))
    with EmulatedDevice("qemu://cortex-a72") as device:
        done = device.runtime(["check", device.place(folder)], timeout=100)
    assert done.code == 1
    assert "sentence_embedding" in done.stderr
    assert "request 2" in done.stderr


@pytest.mark.emulated
@needs_emulator
def test_each_cpu_shows_its_own_features() -> None:
    expected = {"cortex-a72": set(), "neoverse-n1": {"asimddp"}, "max,sve=off": {"asimddp", "i8mm"}}
    targets = {"cortex-a72": "arm64", "neoverse-n1": "arm64-dotprod", "max,sve=off": "arm64-i8mm"}
    with ExitStack() as stack:  # all at once: one CPU's files must not replace another's
        devices = {cpu: stack.enter_context(EmulatedDevice(f"qemu://{cpu}")) for cpu in expected}
        for cpu, features in expected.items():
            facts = devices[cpu].facts()
            assert facts["arch"] == "aarch64" and detect(facts)[0].name == targets[cpu]
            assert set(facts["features"]) & {"asimddp", "i8mm", "sve", "sme"} == features
            assert dict(sysroot.wheel_versions()).items() <= facts["versions"].items()


@pytest.mark.emulated
@needs_emulator
def test_nothing_is_left_behind(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(bundle.iterdir())
    with EmulatedDevice("qemu://cortex-a72") as device:
        assert device.runtime(["facts"], timeout=100).code == 0
        assert list(tmp_path.iterdir()) != []
    assert list(tmp_path.iterdir()) == []
    assert set(bundle.iterdir()) == before


@pytest.mark.emulated
@needs_emulator
def test_unknown_cpus_and_options_are_refused_with_the_list() -> None:
    with pytest.raises(UserError) as caught, EmulatedDevice("qemu://cortex-z9"):
        pass
    assert "cortex-z9" in caught.value.message
    assert {"cortex-a72,", "Haswell,"} <= set(caught.value.hint.split())
    with pytest.raises(UserError, match="warp"), EmulatedDevice("qemu://max,sve=off,warp=on"):
        pass


@pytest.mark.emulated
@needs_x86_emulator
def test_an_x86_cpu_shows_its_own_features() -> None:
    with EmulatedDevice("qemu://Haswell") as device:
        facts = device.facts()
    assert facts["arch"] == "x86_64" and "Haswell" in facts["cpu"]
    assert {"avx2", "fma", "sse4_2", "lm"} <= set(facts["features"])
    assert not {"avx512f", "avx512_vnni", "avx_vnni"} & set(facts["features"])
    assert detect(facts)[0].name == "x86_64-avx2"
    assert dict(sysroot.wheel_versions()).items() <= facts["versions"].items()


@pytest.mark.skipif(architecture() != "x86_64", reason="executes x86 code")
def test_features_of_this_cpu_have_the_kernels_names() -> None:
    code, leaves = guests._READ_CPUID, json.dumps(cpu_files.CPUID_LEAVES)
    done = subprocess.run([sys.executable, "-c", code, leaves], capture_output=True, text=True, check=True)
    registers = {(leaf, subleaf): tuple(values) for leaf, subleaf, *values in json.loads(done.stdout)}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())
    levels = {"sse4_2", "popcnt", "avx", "fma", "bmi2", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "lm"}
    assert set(cpu_files.x86_features(registers)) & levels == flags & levels
    assert flags >= {"sse2", "lm"}


def test_an_x86_cpuinfo_is_this_machines_with_another_cpu(tmp_path: Path) -> None:
    # What QEMU's Haswell answers.
    registers = {
        (0, 0): (13, 0x756E6547, 0x6C65746E, 0x49656E69),
        (1, 0): (0x306C4, 0x800, 0xFED83203, 0x78BFBFD),
        (7, 0): (0, 0x3A9, 0, 0),
        (7, 1): (0, 0, 0, 0),
        (0x80000001, 0): (0x306C4, 0, 0x21, 0x28100800),
        **{
            (0x80000002 + i, 0): tuple(struct.unpack("<4I", part.ljust(16, b"\0")))
            for i, part in enumerate((b"Intel Core Proce", b"ssor (Haswell)", b""))
        },
    }
    host = (
        "processor\t: 0\nmodel name\t: EPYC\nflags\t\t: lm avx512_vnni\ncore id\t\t: 0\n\nprocessor\t: 1\nflags\t: x\n"
    )
    cpu_files.write_x86(tmp_path, registers, host)
    lines = [line.replace("\t", "") for line in (tmp_path / "proc/cpuinfo").read_text().splitlines()]
    assert lines[1] == "model name: Intel Core Processor (Haswell)"
    assert lines[2] == lines[6] and {"avx2", "fma", "lm"} <= set(lines[2].split()) and "avx512_vnni" not in lines[2]
    assert lines[3] == "core id: 0" and len(lines) == 7


def test_an_x86_cpu_needs_an_x86_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qemu-x86_64").write_text("#!/bin/sh\necho 'x86 Haswell  (alias)'\n")
    (tmp_path / "qemu-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(guests, "architecture", lambda: "aarch64")
    with pytest.raises(DeviceError, match="not x86_64") as caught, EmulatedDevice("qemu://Haswell"):
        pass
    assert "--as avx2" in caught.value.hint


@pytest.mark.parametrize("url", ["qemu://", "qemu://../..", "qemu://cortex-a72 -v", "qemu://max,sve"])
def test_what_is_no_cpu_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        open_device(url)


@pytest.mark.parametrize("url", ["qemu://max", "qemu://max,sve-max-vq=1"])
def test_max_with_the_broken_matrix_extension_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="SME") as caught:
        open_device(url)
    assert "qemu://max,sve=off" in caught.value.hint


def test_times_are_refused() -> None:
    with pytest.raises(UserError, match="says nothing about a real CPU"):
        EmulatedDevice("qemu://cortex-a72").runtime(["bench", "somewhere"])


@pytest.mark.parametrize("cpu", ["cortex-a72", "Haswell"])
def test_a_missing_qemu_is_named_with_its_package(cpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="qemu-aarch64 and qemu-x86_64") as caught, EmulatedDevice(f"qemu://{cpu}"):
        pass
    assert "apt-get install qemu-user" in caught.value.hint
    assert "qemu-user" in (sysroot.missing() or "")


def test_features_have_the_kernels_names() -> None:
    # AT_HWCAP and AT_HWCAP2 as a Raspberry Pi 4 and a Graviton 3 report them.
    assert cpu_files.features(0x887, 0) == ("fp", "asimd", "evtstrm", "crc32", "cpuid")
    graviton = cpu_files.features(1 << 20 | 1 << 22, 1 << 13 | 1 << 14)
    assert graviton == ("asimddp", "sve", "i8mm", "bf16")

"""Every way in which a bundle can be wrong has its own error, and none gets past the loader."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest
from edgec_runtime import BundleWarning, load
from edgec_runtime.cpu import warn_if_unfit
from edgec_runtime.errors import (
    BundleNotFound,
    EngineFailed,
    FileDamaged,
    FormatTooNew,
    ManifestInvalid,
    OperatorRefused,
    PartMissing,
    UnsafePath,
)
from edgec_runtime.integrity import read_manifest
from edgec_runtime.manifest import FileInfo, Manifest, Part, TargetInfo
from onnx import TensorProto, helper
from tiny_bundles import graph, random_table, seal, tensors, wordpiece, write_bundle


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.npz", "README.md", "manifest.json"])
@pytest.mark.parametrize("place", [0.0, 0.1, 0.37, 0.5, 0.83, 0.999])
def test_a_changed_byte_is_found(bundle: Path, name: str, place: float) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(ManifestInvalid if name == "manifest.json" else FileDamaged, match=name):
        load(bundle)


def test_every_byte_of_the_manifest_counts(bundle: Path) -> None:
    path = bundle / "manifest.json"
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises((ManifestInvalid, FormatTooNew)):
            read_manifest(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.npz", "manifest.json"])
def test_a_file_cut_short_is_found(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ManifestInvalid if name == "manifest.json" else FileDamaged):
        load(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.npz", "README.md"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(PartMissing, match=name):
        load(bundle)


def test_what_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", bundle / "model.onnx", tmp_path):
        with pytest.raises(BundleNotFound, match=str(path)):
            load(path)


def test_a_newer_format(bundle: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(data | {"format": 2}))
    with pytest.raises(FormatTooNew, match="format 2"):
        load(bundle)


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b'{"format": 1}', b"[" * 100_000, b"", b"null", b'{"format": 1, "name": NaN}']
)
def test_what_is_no_manifest(bundle: Path, text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    with pytest.raises(ManifestInvalid):
        load(bundle)


@pytest.mark.parametrize("value", ["NaN", '"\\ud800"'])
def test_what_no_writer_writes(bundle: Path, value: str) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace('"parity": {}', f'"parity": {{"x": {value}}}'))
    with pytest.raises(ManifestInvalid):
        load(bundle)


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / "manifest.json").open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(ManifestInvalid, match="larger than"):
        load(bundle)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../model.onnx",
        "a/../../model.onnx",
        "a\\model.onnx",
        "C:model.onnx",
        "a//model.onnx",
        "./model.onnx",
        "",
        ".",
        "a\x00b",
    ],
)
def test_a_path_that_may_leave_the_folder(bundle: Path, path: str) -> None:
    manifest = read_manifest(bundle)
    files = tuple(FileInfo(path if f.path == "README.md" else f.path, f.sha256, f.bytes) for f in manifest.files)
    seal(bundle, manifest, files=files)
    with pytest.raises(UnsafePath):
        load(bundle)


def test_links(bundle: Path, tmp_path: Path) -> None:
    inside, outside = bundle / "copy.onnx", tmp_path / "outside.onnx"
    (bundle / "model.onnx").rename(inside)
    (bundle / "model.onnx").symlink_to("copy.onnx")
    load(bundle)  # same bytes, within the folder
    inside.rename(outside)
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(UnsafePath, match="leaves the bundle"):
        load(bundle)
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("model.onnx")
    with pytest.raises((UnsafePath, PartMissing)):
        load(bundle)


def test_a_folder_or_pipe_instead_of_a_file(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    os.mkfifo(bundle / "README.md")
    with pytest.raises(PartMissing):  # and does not wait for a writer
        load(bundle)


def test_an_unlisted_file_is_let_be(bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"?")
    load(bundle)


def test_a_part_or_file_that_is_not_listed(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    for name in ("model.onnx", "tokenizer.json", "golden.npz"):
        seal(bundle, manifest, files=tuple(f for f in manifest.files if f.path != name))
        with pytest.raises(PartMissing, match=name):
            load(bundle)
    seal(bundle, manifest, files=(*manifest.files, manifest.files[0]))
    with pytest.raises(ManifestInvalid, match="twice"):
        load(bundle)
    seal(bundle, manifest, parts=())
    with pytest.raises(PartMissing, match="the parts none"):
        load(bundle)


def swap_model(bundle: Path, model: onnx.ModelProto) -> None:
    """Put another graph into the bundle, with a manifest that fits it."""
    manifest = read_manifest(bundle)
    onnx.save(model, bundle / "model.onnx")
    part = Part("encoder", "model.onnx", "fp32", tensors(model.graph.input), tensors(model.graph.output))
    seal(bundle, manifest, parts=(part,))


def test_an_operator_of_a_foreign_domain(bundle: Path) -> None:
    model = graph("feature-extraction", random_table(wordpiece()))
    model.graph.node[8].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    swap_model(bundle, model)
    with pytest.raises(OperatorRefused, match=r"com\.example:Mul"):
        load(bundle)


def test_an_operator_that_onnxruntime_does_not_know(bundle: Path) -> None:
    for domain in ("", "com.microsoft", "ai.onnx.ml"):
        model = graph("feature-extraction", random_table(wordpiece()))
        model.graph.node[8].op_type = "NoSuchOperator"
        model.graph.node[8].domain = domain
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        swap_model(bundle, model)
        with pytest.raises(OperatorRefused, match="NoSuchOperator"):
            load(bundle)


def test_a_function_of_the_model_itself_is_welcome(bundle: Path) -> None:
    model = graph("feature-extraction", random_table(wordpiece()))
    opset = [helper.make_opsetid("", 18)]
    body = [helper.make_node("Mul", ["a", "b"], ["c"])]
    model.functions.append(helper.make_function("local", "Times", ["a", "b"], ["c"], body, opset))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[8].op_type, model.graph.node[8].domain = "Times", "local"
    swap_model(bundle, model)
    load(bundle)
    model.functions[0].node[0].domain = "com.example"  # what hides in its body is found
    swap_model(bundle, model)
    with pytest.raises(OperatorRefused, match=r"com\.example:Mul"):
        load(bundle)


def external(location: str) -> onnx.ModelProto:
    model = graph("feature-extraction", random_table(wordpiece()))
    tensor = model.graph.initializer[0]
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(size)}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_external_data(bundle: Path, tmp_path: Path) -> None:
    weights = graph("feature-extraction", random_table(wordpiece())).graph.initializer[0].raw_data
    (bundle / "weights.bin").write_bytes(weights)
    swap_model(bundle, external("weights.bin"))
    load(bundle)

    manifest = read_manifest(bundle)
    seal(bundle, manifest, files=tuple(f for f in manifest.files if f.path != "weights.bin"))
    with pytest.raises(PartMissing, match="does not list"):
        load(bundle)

    (bundle / "weights.bin").write_bytes(weights[:-1] + b"!")
    seal(bundle, manifest, files=manifest.files)
    with pytest.raises(FileDamaged, match=r"weights\.bin"):
        load(bundle)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "a/../../outside.bin", "..\\outside.bin"])
def test_external_data_outside_the_folder(bundle: Path, tmp_path: Path, location: str) -> None:
    weights = graph("feature-extraction", random_table(wordpiece())).graph.initializer[0].raw_data
    (tmp_path / "outside.bin").write_bytes(weights)
    swap_model(bundle, external(location))
    with pytest.raises(UnsafePath):
        load(bundle)
    with pytest.raises(UnsafePath):
        load(bundle, verify=False)


def test_memory_addresses_are_no_files(bundle: Path) -> None:
    """onnxruntime reads this location as a pointer into the process."""
    swap_model(bundle, external("*/_ORT_MEM_ADDR_/*"))
    with pytest.raises(PartMissing):
        load(bundle)


def test_a_graph_that_onnxruntime_cannot_load(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = graph("feature-extraction", random_table(wordpiece()))
    model.graph.node[8].input[0] = "nothing"
    swap_model(bundle, model)
    with pytest.raises(EngineFailed, match="encoder"):
        load(bundle)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_does_not_fit_the_manifest(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    onnx.save(graph("feature-extraction", random_table(wordpiece()), dtype="int64"), bundle / "model.onnx")
    seal(bundle, manifest)
    with pytest.raises(ManifestInvalid, match=r"input_ids \(int64"):
        load(bundle)


@pytest.mark.parametrize(
    ("task", "pre", "post", "what"),
    [
        ("feature-extraction", {"long_text": "window"}, {}, "long_text"),
        ("feature-extraction", {"default_prompt": "query"}, {}, "default_prompt"),
        ("feature-extraction", {"max_length": 3}, {}, "max_length"),
        ("feature-extraction", {}, {"dimension": None}, "dimension"),
        ("text-classification", {}, {"activation": "relu"}, "activation"),
        ("token-classification", {}, {"label_scheme": "BILOU"}, "label_scheme"),
        ("token-classification", {"stride": 32}, {}, "stride"),
        ("question-answering", {}, {"max_answer_tokens": 0}, "max_answer_tokens"),
        ("question-answering", {"pairs": False}, {}, "pairs"),
        ("fill-mask", {}, {"mask_id": 3}, "mask_token"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, task: str, pre: dict[str, object], post: dict[str, object], what: str
) -> None:
    with pytest.raises(ManifestInvalid, match=what):
        write_bundle(tmp_path / "b", task, pre=pre, post=post)


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match="2 labels do not fit the 3 classes"):
        write_bundle(tmp_path / "b", "text-classification", labels=("a", "b"))


def test_a_file_replaced_while_loading(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgec_runtime import loading

    known = loading.require_known_operators

    def replace_then_check(*arguments: object) -> None:
        (bundle / "new").write_bytes((bundle / "model.onnx").read_bytes())
        (bundle / "new").replace(bundle / "model.onnx")
        known(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "require_known_operators", replace_then_check)
    with pytest.raises(FileDamaged, match="while it was being loaded"):
        load(bundle)


def test_arguments(bundle: Path) -> None:
    with pytest.raises(ValueError, match="threads"):
        load(bundle, threads=0)
    with pytest.raises(ValueError, match="schedule"):
        load(bundle, schedule="fast")


def test_another_machine_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    vnni = TargetInfo("x86_64-vnni", "x86_64", ("avx2", "avx512_vnni"))
    warn_if_unfit(vnni, "x86_64", frozenset({"avx2", "avx_vnni"}))
    warn_if_unfit(vnni, "x86_64", None)
    warn_if_unfit(TargetInfo("pi", "arm64", ("neon",)), "aarch64", frozenset({"asimd"}))
    assert not recwarn.list
    with pytest.warns(BundleWarning, match="lacks avx512_vnni"):
        warn_if_unfit(vnni, "x86_64", frozenset({"avx2"}))
    with pytest.warns(BundleWarning, match="made for x86_64"):
        warn_if_unfit(vnni, "aarch64", frozenset())


def test_loading_warns_in_the_name_of_the_caller(bundle: Path) -> None:
    manifest: Manifest = read_manifest(bundle)
    seal(bundle, manifest, target=TargetInfo("elsewhere", "riscv64"))
    with pytest.warns(BundleWarning, match="riscv64") as caught:
        load(bundle)
    assert caught[0].filename == __file__

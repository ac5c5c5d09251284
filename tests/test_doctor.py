"""The doctor, on installations that are broken in known ways: fake packages in front of the real ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer

from edgec import doctor
from edgec.cli.doctor import doctor as command

BROKEN_IMPORT = """
import pathlib, torch
if list((pathlib.Path(__file__).parent / "lib").glob("*.so")):
    raise OSError("libcudart.so.13: cannot open shared object file: No such file or directory")
"""


def package(folder: Path, name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> None:
    """A package and its metadata in `folder`, as pip would leave them."""
    for path, text in files.items():
        file = folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def torch_package(folder: Path, cuda: str | None) -> None:
    version_py = f"from typing import Optional\n__version__ = '2.13.0'\ncuda: Optional[str] = {cuda!r}\n"
    package(
        folder,
        "torch",
        "2.13.0",
        {"__init__.py": "", "version.py": version_py, "lib/libtorch_cuda.so": "x" * 90},
    )


def broken_torchaudio(folder: Path) -> Path:
    files = {"__init__.py": BROKEN_IMPORT, "lib/__init__.py": "", "lib/_torchaudio.so": "not a library"}
    package(folder, "torchaudio", "2.11.0", files)
    return folder / "torchaudio/lib/_torchaudio.so"


def by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def the_only(findings: list[doctor.Finding]) -> doctor.Finding:
    (finding,) = findings
    return finding


@pytest.fixture
def search_path(tmp_path: Path) -> list[str]:
    """Fake packages stand in tmp_path/site, which comes before all real ones."""
    (tmp_path / "site").mkdir()
    return [str(tmp_path / "site"), *sys.path]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GPU_DEVICES", ("/dev/absent-for-the-test",))


def test_broken_torchaudio_is_named_and_repaired_once(tmp_path, search_path) -> None:
    torch_package(tmp_path / "site", cuda=None)
    compiled = broken_torchaudio(tmp_path / "site")

    finding = the_only(doctor.check_torchaudio(search_path))
    assert finding.status == "fault"
    assert "libcudart" in finding.detail
    assert "--repair" in finding.cure

    assert doctor.repair(search_path) == [compiled]
    assert not compiled.exists()
    assert the_only(doctor.check_torchaudio(search_path)).status == "ok"
    assert doctor.repair(search_path) == []


def test_repair_touches_no_torchaudio_that_imports(tmp_path, search_path) -> None:
    torch_package(tmp_path / "site", cuda=None)
    package(tmp_path / "site", "torchaudio", "2.11.0", {"__init__.py": "", "lib/_torchaudio.so": "works"})
    assert doctor.repair(search_path) == []


def test_repair_touches_nothing_beside_a_gpu_torch(tmp_path, search_path) -> None:
    torch_package(tmp_path / "site", cuda="13.0")
    compiled = broken_torchaudio(tmp_path / "site")
    assert doctor.repair(search_path) == []
    assert compiled.exists()
    finding = the_only(doctor.check_torchaudio(search_path))
    assert finding.status == "fault"
    assert "--repair" not in finding.cure


def test_cuda_torch_on_a_cpu_box_is_a_warning_with_its_cure(tmp_path, search_path, no_gpu) -> None:
    torch_package(tmp_path / "site", cuda="13.0")
    package(tmp_path / "site", "nvidia_cublas", "13.0.1", {"__init__.py": ""})
    finding = the_only(doctor.check_torch(search_path))
    assert finding.status == "warn"
    assert "CUDA 13.0" in finding.detail
    assert "nvidia-cublas" in finding.cure
    assert "the CPU build of torch==2.13.0" in finding.cure


def test_cuda_torch_beside_a_gpu_is_fine(tmp_path, search_path, monkeypatch) -> None:
    torch_package(tmp_path / "site", cuda="13.0")
    monkeypatch.setattr(doctor, "GPU_DEVICES", (str(tmp_path),))
    assert the_only(doctor.check_torch(search_path)).status == "ok"


def test_versions_out_of_range_and_missing_packages_are_faults(tmp_path, search_path) -> None:
    package(tmp_path / "site", "onnx", "1.2.3", {"__init__.py": ""})
    package(
        tmp_path / "site",
        "edgec",
        "0.1.0",
        {},
        ("onnx>=1.23,<2", "no-such-package>=3", 'absent>=1; extra == "x"'),
    )
    details = {f.detail: f for f in doctor.check_versions(search_path)}
    assert set(details) == {"onnx 1.2.3 is installed; edgec needs <2,>=1.23", "no-such-package is missing"}
    assert all(finding.status == "fault" for finding in details.values())
    assert details["no-such-package is missing"].cure == 'pip install "no-such-package>=3"'


def test_missing_tools_are_warnings_with_the_package_that_brings_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = by_name(doctor.check_tools([]))
    for tool, debian_package in (
        ("qemu-aarch64", "qemu-user"),
        ("ssh", "openssh-client"),
        ("strace", "strace"),
    ):
        assert findings[tool].status == "warn"
        assert findings[tool].cure == f"apt-get install {debian_package}"


def test_this_installation_has_no_fault(tmp_path, monkeypatch) -> None:
    findings = doctor.diagnose()
    assert [finding for finding in findings if finding.status == "fault"] == []
    assert {"python", "torch", "transformers", "onnxruntime", "versions", "disk", "cpu"} <= set(by_name(findings))


def test_telemetry_traces_in_the_home_folder_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert the_only(doctor.check_telemetry(sys.path)).status == "ok"
    traces = tmp_path / ".cache/Microsoft/DeveloperTools/.onnxruntime"
    traces.mkdir(parents=True)
    finding = the_only(doctor.check_telemetry(sys.path))
    assert finding.status == "warn"
    assert "ORT_DISABLE_TELEMETRY=1" in finding.cure


def test_the_command_ends_with_1_while_a_fault_remains_and_repairs_on_request(tmp_path, monkeypatch) -> None:
    torch_package(tmp_path / "site", cuda=None)
    compiled = broken_torchaudio(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, doctor.check_torchaudio))
    file = tmp_path / "findings.json"
    with pytest.raises(typer.Exit) as caught:
        command(json=file)
    assert caught.value.exit_code == 1
    found = json.loads(file.read_text())
    assert found["healthy"] is False
    assert [f["name"] for f in found["findings"] if f["status"] == "fault"] == ["torchaudio"]

    command(repair=True, json=file)
    assert not compiled.exists()
    assert json.loads(file.read_text())["healthy"] is True


def test_a_torchaudio_that_fails_for_another_reason_keeps_its_files(tmp_path, search_path) -> None:
    torch_package(tmp_path / "site", cuda=None)
    compiled = broken_torchaudio(tmp_path / "site")
    (tmp_path / "site/torch/__init__.py").write_text("raise ImportError('libc10.so: cannot open')")
    assert doctor.repair(search_path) == []
    assert compiled.exists()
    finding = the_only(doctor.check_torch(search_path))
    assert finding.status == "fault"
    assert "libc10.so" in finding.detail

"""Looks for what makes edgec fail or run badly on this machine, and names the cure.

Nothing that may be broken is imported here: torch, torchaudio, transformers and onnxruntime are tried in
processes of their own, so that the doctor works where they do not.
"""

from __future__ import annotations

import importlib.machinery
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Literal

from edgec_runtime import machine
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .devices import open_device, sysroot
from .errors import EdgecError, SystemFailure

Status = Literal["ok", "warn", "fault"]

# Any of these device files exists where a GPU driver runs: NVIDIA's, AMD's, Windows' for Linux guests.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

_TOOLS = {
    "qemu-aarch64": (
        "runs arm64 bundles on this machine: --on qemu://cortex-a72",
        "apt-get install qemu-user",
    ),
    "ssh": ("runs bundles on another machine: --on ssh://user@host", "apt-get install openssh-client"),
    "strace": ("lets the tests watch which files and sockets the runtime opens", "apt-get install strace"),
    "adb": ("copies a bundle to an Android device", "apt-get install adb"),
}
_LOW_DISK, _FULL_DISK = 3e9, 0.3e9  # bytes: a build holds the float model twice, and a bundle a target
_REINSTALL = "pip install --force-reinstall --no-deps"


@dataclass(frozen=True)
class Finding:
    """What one check found. `cure` is empty where nothing need be done."""

    name: str
    status: Status
    detail: str
    cure: str = ""


def diagnose(search_path: Sequence[str] | None = None) -> list[Finding]:
    """All findings, in a fixed order. `search_path`: where packages are looked for, sys.path unless told.

    A fault means that edgec does not work; a warning, that something optional is missing or wasted.
    """
    path = list(sys.path if search_path is None else search_path)
    # Most time goes into processes that import one package each, and most machines have two cores.
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [finding for found in pool.map(lambda check: check(path), CHECKS) for finding in found]


def repair(search_path: Sequence[str] | None = None) -> list[Path]:
    """Remove torchaudio's compiled files where they cannot be loaded beside a CPU torch; returns them.

    torchaudio then works in pure Python, a state that its own source provides for. Nothing is done where
    torchaudio imports, is absent, or torch is a GPU build. Raises SystemFailure where removing fails.
    """
    path = list(sys.path if search_path is None else search_path)
    if not _curable(_import_error("torchaudio", path), path):
        return []
    compiled = _compiled_torchaudio(path)
    for file in compiled:
        try:
            file.unlink()
        except OSError as error:
            raise SystemFailure(
                f"cannot remove {file}: {error.strerror}", "run the command as the owner of that folder"
            ) from None
    return compiled


def check_python(path: list[str]) -> list[Finding]:
    version = platform.python_version()
    edgec = _installed(path).get("edgec")
    needed = SpecifierSet((edgec and edgec.metadata["Requires-Python"]) or "")
    if not needed.contains(version, prereleases=True):
        return [Finding("python", "fault", f"{version}; edgec needs {needed}", "make a venv with such a Python")]
    return [Finding("python", "ok", version)]


def check_torch(path: list[str]) -> list[Finding]:
    installed = _installed(path)
    if "torch" not in installed:
        return [Finding("torch", "fault", "torch is not installed", "pip install torch")]
    version = installed["torch"].version
    error = _import_error("torch", path)
    if error:
        return [Finding("torch", "fault", f"{version} cannot be imported ({error})", f"{_REINSTALL} torch=={version}")]
    gpu = _gpu_build(path)
    if gpu is None:
        return [Finding("torch", "ok", f"{version}, CPU build")]
    if any(Path(device).exists() for device in GPU_DEVICES):
        return [Finding("torch", "ok", f"{version}, built for {gpu}")]
    extra = sorted(name for name in installed if name.startswith("nvidia-") or name == "triton")
    gigabytes = _gpu_bytes(path) / 1e9
    release = version.split("+")[0]
    return [
        Finding(
            "torch",
            "warn",
            f"{version} is built for {gpu}, and this machine has no GPU: {gigabytes:.1f} GB are wasted",
            f"pip uninstall -y torch {' '.join(extra)}".rstrip()
            + f", then install the CPU build of torch=={release} (PyTorch's site names the index for it)",
        )
    ]


def check_torchaudio(path: list[str]) -> list[Finding]:
    installed = _installed(path)
    if "torchaudio" not in installed or "torch" not in installed:
        return []
    version = installed["torchaudio"].version
    error = _import_error("torchaudio", path)
    if not error:
        return [Finding("torchaudio", "ok", version)]
    if _curable(error, path):
        detail = f"{version} cannot be loaded beside a CPU torch, and transformers fails with it: {error}"
        return [Finding("torchaudio", "fault", detail, "edgec doctor --repair")]
    release = installed["torch"].version.split("+")[0]
    cure = f"install the torchaudio that was made for torch {release}, or: pip uninstall torchaudio"
    return [Finding("torchaudio", "fault", f"{version} cannot be imported ({error})", cure)]


def check_transformers(path: list[str]) -> list[Finding]:
    return _imports("transformers", "transformers.BertModel, transformers.Trainer", path)


def check_onnxruntime(path: list[str]) -> list[Finding]:
    return _imports("onnxruntime", "edgec_runtime, onnxruntime.InferenceSession", path)


def _imports(name: str, names: str, path: list[str]) -> list[Finding]:
    """Try to import each of `names`; "package.Attribute" also loads what a package defers."""
    installed = _installed(path)
    if name not in installed:
        return [Finding(name, "fault", f"{name} is not installed", f"pip install {name}")]
    version = installed[name].version
    error = _import_error(names, path)
    if error:
        cure = "cure torchaudio" if "torchaudio" in error else f"{_REINSTALL} {name}=={version}"
        return [Finding(name, "fault", f"{version} cannot be imported ({error})", cure)]
    return [Finding(name, "ok", version)]


def check_emulator(path: list[str]) -> list[Finding]:
    """Ask an emulated CPU for its facts: that it answers proves qemu, Python and the wheels together."""
    if shutil.which(sysroot.QEMU) is None:
        return []  # named among the tools
    try:
        with open_device("qemu://cortex-a72") as device:
            versions = device.facts()["versions"]
    except EdgecError as error:
        return [Finding("arm64 emulator", "warn", error.message, error.hint)]
    detail = ", ".join(f"{name} {versions[name]}" for name in ("python", "onnxruntime", "numpy", "tokenizers"))
    return [Finding("arm64 emulator", "ok", detail)]


def check_versions(path: list[str]) -> list[Finding]:
    """Installed versions against the ranges that edgec and its runtime declare."""
    installed = _installed(path)
    found = []
    checked = 0
    for owner, needed_extra in (("edgec", ""), ("edgec-runtime", "text")):
        if owner not in installed:
            found.append(Finding("versions", "fault", f"{owner} is not installed", "run the installation again"))
            continue
        for requirement in map(Requirement, installed[owner].requires or []):
            name = canonicalize_name(requirement.name)
            marker = requirement.marker
            needed = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", needed_extra))
            if name not in installed and needed:
                cure = f'pip install "{name}{requirement.specifier}"'
                found.append(Finding("versions", "fault", f"{name} is missing", cure))
            elif name in installed:
                checked += 1
                version = installed[name].version
                if not requirement.specifier.contains(version, prereleases=True):
                    detail = f"{name} {version} is installed; {owner} needs {requirement.specifier}"
                    cure = f'pip install "{name}{requirement.specifier}"'
                    found.append(Finding("versions", "fault", detail, cure))
    return found or [Finding("versions", "ok", f"{checked} packages fit the declared ranges")]


def check_telemetry(path: list[str]) -> list[Finding]:
    """onnxruntime's Linux wheels since 1.29 write a device id below the home folder unless it is set."""
    traces = Path("~/.cache/Microsoft/DeveloperTools/.onnxruntime").expanduser()
    variable = "ORT_DISABLE_TELEMETRY=1"
    if traces.exists():
        detail = f"another program ran onnxruntime with telemetry on: it left {traces}"
        return [Finding("telemetry", "warn", detail, f"export {variable} in your shell's profile; rm -r {traces}")]
    return [Finding("telemetry", "ok", f"edgec sets {variable} itself")]


def check_tools(path: list[str]) -> list[Finding]:
    found = []
    for tool, (use, cure) in _TOOLS.items():
        place = shutil.which(tool)
        if place:
            found.append(Finding(tool, "ok", place))
        else:
            found.append(Finding(tool, "warn", f"not installed; it {use}", cure))
    return found


def check_disk(path: list[str]) -> list[Finding]:
    folders = {"here": Path.cwd(), "in the cache folder": _existing(sysroot.cache_folder())}
    free = {name: shutil.disk_usage(folder).free for name, folder in folders.items()}
    detail = ", ".join(f"{size / 1e9:.1f} GB free {name}" for name, size in free.items())
    least = min(free.values())
    if least < _LOW_DISK:
        status: Status = "fault" if least < _FULL_DISK else "warn"
        return [Finding("disk", status, detail, "make room, or set EDGEC_CACHE and --out to another disk")]
    return [Finding("disk", "ok", detail)]


def check_cpu(path: list[str]) -> list[Finding]:
    facts = machine.facts()
    name, has = facts["cpu"] or facts["arch"], set(facts["features"] or ())
    if facts["arch"] == "aarch64":
        if "i8mm" in has:
            return [Finding("cpu", "ok", f"{name}: i8mm, the fastest int8 on arm64 (target arm64-i8mm)")]
        if "asimddp" in has:
            return [Finding("cpu", "ok", f"{name}: dot product, int8 is much faster than float (target arm64-dotprod)")]
        return [Finding("cpu", "ok", f"{name}: neither dot product nor i8mm, int8 saves memory and little time")]
    if has & {"avx512_vnni", "avx_vnni"}:
        return [Finding("cpu", "ok", f"{name}: VNNI, int8 is much faster than float (target x86_64-vnni)")]
    return [Finding("cpu", "ok", f"{name}: no VNNI, int8 saves memory and less time (target x86_64-avx2)")]


CHECKS = (
    check_python,
    check_torch,
    check_torchaudio,
    check_transformers,
    check_onnxruntime,
    check_emulator,
    check_versions,
    check_telemetry,
    check_tools,
    check_disk,
    check_cpu,
)


def _installed(path: list[str]) -> dict[str, Distribution]:
    """Distributions by canonical name; the first on the path counts, as it does for `import`."""
    found: dict[str, Distribution] = {}
    for distribution in distributions(path=path):
        name = distribution.metadata["Name"]
        if name:  # a half-removed package has a folder without metadata
            found.setdefault(canonicalize_name(name), distribution)
    return found


def _package_folder(name: str, path: list[str]) -> Path | None:
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    return Path(spec.origin).parent if spec and spec.origin else None


def _gpu_build(path: list[str]) -> str | None:
    """The GPU platform that torch was built for, from its version.py: "CUDA 12.8". None for a CPU build."""
    folder = _package_folder("torch", path)
    if folder is None or not (folder / "version.py").is_file():
        return None
    text = (folder / "version.py").read_text()
    for variable, label in (("cuda", "CUDA"), ("hip", "ROCm")):
        match = re.search(rf"^{variable}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
        if match:
            return f"{label} {match[1]}"
    return None


def _gpu_bytes(path: list[str]) -> int:
    """The size of torch's GPU libraries and of the packages that only they need."""
    torch = _package_folder("torch", path)
    if torch is None:
        return 0
    beside = [file for name in ("nvidia", "triton") for file in (torch.parent / name).rglob("*")]
    own = (torch / "lib").glob("*cuda*")
    return sum(file.stat().st_size for file in (*beside, *own) if file.is_file())


def _compiled_torchaudio(path: list[str]) -> list[Path]:
    folder = _package_folder("torchaudio", path)
    return sorted((folder / "lib").glob("*.so")) if folder else []


def _curable(error: str, path: list[str]) -> bool:
    """Whether torchaudio fails with `error` because its own libraries do not fit a CPU torch that works."""
    fits = ".so" in error and bool(_compiled_torchaudio(path)) and not _gpu_build(path)
    return fits and not _import_error("torch", path)


def _import_error(names: str, path: list[str]) -> str:
    """The last line that importing wrote, "" when it succeeded."""
    modules = [name.strip() for name in names.split(",")]
    code = "".join(
        f"from {module} import {attribute}\n" if attribute else f"import {module}\n"
        for module, _, attribute in (name.partition(".") for name in modules)
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "ORT_DISABLE_TELEMETRY": "1",
    }
    # -P: a file in the current folder must not stand in for a package.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"Python ended with code {done.returncode}"


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())

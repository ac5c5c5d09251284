from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy
import onnxruntime
import pytest
from edgec_runtime import __main__, machine

PI_4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"
PI_4 = "".join(PI_4.replace(": 0\n", f": {n}\n") for n in range(4)) + "Hardware\t: BCM2835\n"
BIG_LITTLE = PI_4 + PI_4.replace("0xd08", "0xd03").replace("asimd", "asimd asimddp")
X86 = "".join(
    f"processor\t: {n}\nmodel name\t: Some CPU @ 3GHz\nphysical id\t: {n // 4}\ncore id\t\t: {n // 2 % 2}\n"
    "flags\t\t: sse2 avx2 avx512_vnni\n\n"
    for n in range(8)
)


def facts(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> dict[str, object]:
    monkeypatch.setattr(machine, "_read", files.get)
    return machine.facts()


def test_this_machine() -> None:
    found = machine.facts()
    assert json.loads(json.dumps(found)) == found
    assert found["cpus"] == os.cpu_count()
    assert 1 <= found["usable"] <= found["cpus"]
    assert found["versions"]["numpy"] == numpy.__version__
    assert found["versions"]["onnxruntime"] == onnxruntime.__version__
    assert found["memory_mb"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def test_a_raspberry_pi(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(
        monkeypatch,
        {
            "/proc/cpuinfo": PI_4,
            "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4",
            "/proc/meminfo": "MemTotal:        3884396 kB\n",
            "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand",
            "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME=x\n',
        },
    )
    assert found["cpu"] == "ARM Cortex-A72"
    assert found["board"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["features"] == ["asimd", "cpuid", "crc32", "evtstrm", "fp"]
    assert (found["cores"], found["memory_mb"], found["governor"]) == (4, 3793, "ondemand")
    assert str(found["os"]).startswith("Debian GNU/Linux 12 (bookworm), ")


def test_big_and_little_cores_have_only_common_features(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(monkeypatch, {"/proc/cpuinfo": BIG_LITTLE})
    assert found["cpu"] == "ARM Cortex-A72 + Cortex-A53"
    assert found["cores"] == 8
    assert "asimddp" not in found["features"]  # type: ignore[operator]


def test_two_sockets_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(monkeypatch, {"/proc/cpuinfo": X86})
    assert (found["cpu"], found["cores"]) == ("Some CPU @ 3GHz", 4)
    assert found["features"] == ["avx2", "avx512_vnni", "sse2"]


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    found = facts(monkeypatch, {})
    unknown = {name for name, value in found.items() if value is None}
    assert unknown >= {"board", "features", "cores", "cpus", "governor", "load", "memory_mb"}
    assert found["usable"] == 1


def test_facts_come_without_onnxruntime() -> None:
    code = "import sys, edgec_runtime.machine as m; m.facts(); sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["facts", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["cpus"] == os.cpu_count()
    assert __main__.main(["facts"]) == 0
    assert "numpy " + numpy.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1", "cpu  130 0 60 840 60 0 10 0 0 0\ncpu0 1", 0.5),
        ("cpu  100 0 50 800 50 0 0 0 0 0", "cpu  100 0 50 900 50 0 0 0 0 0", 0.0),
        ("cpu  100 0 50 800 50 0 0 0 0 0", "cpu  100 0 50 800 50 0 0 0 0 0", None),
        ("", "", None),
    ],
)
def test_busy_is_the_share_of_ticks_that_were_not_idle(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str, share: float | None
) -> None:
    texts = iter([before, after])
    monkeypatch.setattr(machine, "_read", lambda path: next(texts))
    found = machine.busy(0)
    assert found == (None if share is None else pytest.approx(share))

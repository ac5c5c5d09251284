"""What onnxruntime answers on CPUs of each kind: asked once a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from emulation.cases import Array, answers, products, with_float

from edgec.devices.emulated import EmulatedDevice

AnswersOf = Callable[[str], dict[str, Array]]


@pytest.fixture(scope="session")
def answers_of(tmp_path_factory: pytest.TempPathFactory) -> AnswersOf:
    """By the emulated CPU's name, the answers to all cases by name."""
    known: dict[str, dict[str, Array]] = {}

    def ask(cpu: str) -> dict[str, Array]:
        if cpu not in known:
            with EmulatedDevice(f"qemu://{cpu}") as device:
                assert device.guest is not None
                guest = device.guest
                cases = [*products(), *with_float()]
                known[cpu] = answers(guest.command, guest.environment, cases, tmp_path_factory.mktemp("answers"))
        return known[cpu]

    return ask

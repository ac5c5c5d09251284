from __future__ import annotations

import gc
import sys

import pytest
from edgec_runtime.background import Background, undisturbed


def test_what_is_changed_for_a_cold_start_is_changed_back() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), undisturbed():
        assert not gc.isenabled()
        assert sys.getswitchinterval() < before
        with undisturbed():  # a second load at the same time
            pass
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    assert sys.getswitchinterval() == before


def test_a_background_call_gives_its_result_or_its_error() -> None:
    assert Background(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        Background(lambda: 1 // 0).result()

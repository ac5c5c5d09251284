"""A killed writer loses and doubles nothing, and the one that takes it up leaves the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgec_runtime.store import Store
from store_passages import files, passages, write

HERE = Path(__file__).parent

WRITE_SLOWLY = """
import sys
from store_passages import INT8, passage
from edgec_runtime.store import StoreWriter
with StoreWriter.resume(sys.argv[1], INT8) as writer:
    print("writing", flush=True)
    for number in range(len(writer), 3000):
        writer.add(passage(number))
        if number % 5 == 0:
            writer.commit()
"""


@pytest.mark.parametrize("scenario", ["write", "delete", "compact", "merge"])
def test_killed_at_every_call(scenario: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "kill_points.py", tmp_path, scenario], capture_output=True, text=True, cwd=HERE
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    assert result["kills"] > 50


def test_killed_by_the_clock(tmp_path: Path) -> None:
    for number in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_SLOWLY, tmp_path / "store"], stdout=subprocess.PIPE, cwd=HERE
        )
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        time.sleep(0.05 + 0.013 * number)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        with Store.open(tmp_path / "store", empty_ok=True) as store:
            store.verify()
            done = len(store)
            assert store.ids == [one.id for one in passages(done)]
    count = done + 3
    write(tmp_path / "store", passages(3, first=done))
    assert files(tmp_path / "store") == files(write(tmp_path / "whole", passages(count)))

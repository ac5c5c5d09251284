from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tiny_bundles import write_bundle
from typer.testing import CliRunner

from edgec.cli.bench import bench
from edgec.errors import DeviceError, UserError

app = typer.Typer()
app.command()(bench)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("bundles")
    return [str(write_bundle(root / name, "feature-extraction")) for name in ("first", "second")]


def test_tables_on_stdout_and_figures_in_a_file(bundles: list[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = CliRunner().invoke(app, [*bundles, "--rounds", "2", "--tokens", "4,8", "--json", str(file)])
    assert done.exit_code == 0, done.output
    figures = json.loads(file.read_text())
    assert figures["device"] == "local"
    assert [one["path"] for one in figures["bundles"]] == bundles
    assert figures["bundles"][1]["cold_start_ms"] > 0
    p99 = figures["bundles"][1]["shapes"][1]["p99_ms"]
    assert f"{p99:.2f}" in done.stdout
    assert "1 x 8 tokens" in done.stdout
    assert "warming up" in done.stderr


def test_json_on_stdout_is_alone_there(bundles: list[str]) -> None:
    done = CliRunner().invoke(app, [bundles[0], "--rounds", "1", "--tokens", "4", "--no-cold-start", "--json", "-"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bundles"][0]["cold_start_ms"] is None


@pytest.mark.parametrize("sizes", ["0", "16,", "x", "-1", "²"])
def test_sizes_that_are_none(bundles: list[str], sizes: str) -> None:
    done = CliRunner().invoke(app, [bundles[0], f"--batch={sizes}"])
    assert isinstance(done.exception, UserError)
    assert "--batch" in done.exception.message


def test_an_unreachable_device(bundles: list[str]) -> None:
    done = CliRunner().invoke(app, [bundles[0], "--on", "ssh://nobody@127.0.0.1:1"])
    assert isinstance(done.exception, DeviceError)

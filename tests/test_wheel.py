"""The wheel carries the recipes and targets, and edgec finds them there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

_SCRIPT = """
from pathlib import Path
import edgec
from edgec import resources
from edgec.passes import PASSES
from edgec.recipe import load_recipe
from edgec.target import list_targets

assert Path(edgec.__file__).is_relative_to(Path.cwd()), edgec.__file__
assert resources.recipes_dir().is_relative_to(Path.cwd())
for name in resources.names("recipe"):
    recipe = load_recipe(name, passes=PASSES)
    assert recipe.data.evaluate is None or recipe.data.evaluate.path.is_relative_to(Path.cwd())
print(*resources.names("recipe"))
print(*(target.name for target in list_targets()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(folder), str(REPOSITORY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("edgec-*.whl")
    return path


def test_what_travels_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for kind in ("recipes", "targets"):
        shipped = {
            f"edgec/_resources/{p.relative_to(REPOSITORY)}" for p in (REPOSITORY / kind).rglob("*") if p.is_file()
        }
        assert shipped and shipped <= set(names)
    sources = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "edgec").rglob("*.py")}
    assert sources <= set(names)
    # Neither tests nor the runtime, which is a distribution of its own.
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("edgec-")} == {"edgec"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_finds_its_recipes_and_targets(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    recipes, targets = done.stdout.splitlines()
    assert recipes.split() == sorted(p.stem for p in (REPOSITORY / "recipes").glob("*.yaml"))
    assert targets.split() == sorted(p.stem for p in (REPOSITORY / "targets").glob("*.yaml"))

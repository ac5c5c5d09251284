from __future__ import annotations

from pathlib import Path

import pytest

from edgec import resources
from edgec.errors import SystemFailure, UserError

REPOSITORY = Path(__file__).resolve().parent.parent


def test_a_checkout_uses_the_folders_beside_the_package() -> None:
    assert resources.recipes_dir() == REPOSITORY / "recipes"
    assert "minilm-int8" in resources.names("recipe") and "arm64" in resources.names("target")


def test_an_installed_package_uses_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "edgec"
    (package / "_resources" / "recipes").mkdir(parents=True)
    # Some other package's folder of the same name.
    (tmp_path / "site-packages" / "recipes").mkdir()
    (tmp_path / "site-packages" / "targets").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.recipes_dir() == package / "_resources" / "recipes"
    with pytest.raises(SystemFailure, match="shipped targets are missing"):
        resources.names("target")


def test_the_wheel_takes_the_same_folders_along() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"recipes": "edgec/_resources/recipes", "targets": "edgec/_resources/targets"}


def test_find_takes_names_and_paths(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("")
    assert resources.find("target", "arm64") == REPOSITORY / "targets" / "arm64.yaml"
    assert resources.find("recipe", str(mine)) == mine


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("minilm-int", "there is no recipe named 'minilm-int'", "did you mean 'minilm-int8'?"),
        ("zzz", "there is no recipe named 'zzz'", "known: minilm-fp32, "),
        ("arm64", "there is no recipe named 'arm64'", "known: "),
        ("none.yaml", "the recipe file none.yaml does not exist", "`edgec recipes list`"),
        ("./", "the recipe file ./ is a folder, not a file", "`edgec recipes list`"),
        ("../recipes/minilm-int8", "the recipe file ../recipes/minilm-int8 does not exist", "recipes list"),
        ("bare", "there is no recipe named 'bare'", "write ./bare"),
    ],
)
def test_a_miss_names_what_is_near(
    name: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        resources.find("recipe", name)
    assert caught.value.message == message and hint in caught.value.hint

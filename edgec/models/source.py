"""Where a model comes from: a folder, an installed package (`pkg://package/path`), or the Hugging Face
hub."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from edgec.errors import ModelError

PACKAGE_PREFIX: Final = "pkg://"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES: Final = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*", "NOTICE*")
_HUB_OTHER_FORMATS: Final = ("onnx/*", "openvino/*", "coreml/*", "original/*", "*.onnx")


@dataclass(frozen=True)
class Location:
    """A model folder on this machine. revision: the commit that a hub id resolved to."""

    folder: Path
    name: str
    revision: str | None = None


def locate(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Location:
    """The folder of `source`. Only a hub id may download, and only what loading needs.

    Raises ModelError where there is no such folder, package or hub model, or the hub cannot be reached.
    """
    if source.startswith(PACKAGE_PREFIX):
        location = _in_package(source)
    elif Path(source).expanduser().exists():
        location = _folder(Path(source).expanduser())
    elif _HUB_ID.fullmatch(source) and ".." not in source:
        return _from_hub(source, revision, trust_remote_code)
    else:
        raise ModelError(f"there is no folder {source}", "give a model folder, a hub id or pkg://package/path")
    if revision is not None:
        raise ModelError(
            f"revision {revision!r} was given, but {source} is not a hub id",
            "leave `revision` out; pin a local model by its `sha256`",
        )
    return location


def _folder(folder: Path) -> Location:
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file, not a model folder", f"give the folder that holds it: {folder.parent}")
    if (folder / "manifest.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is a bundle, which holds graphs and no torch model",
            "give the model that it was made from, or the `model` folder of the build",
        )
    if not (folder / "config.json").is_file() and (folder / "model" / "edgec.json").is_file():
        folder = folder / "model"  # what `edgec compress --out` wrote
    return Location(folder, folder.resolve().name)


def _in_package(source: str) -> Location:
    package, _, inside = source.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier():
        raise ModelError(f"{source} names no package", "write pkg://package/path, such as pkg://my_models/small")
    if ".." in PurePosixPath(inside).parts:
        raise ModelError(f"{source} leaves its package", "write the path inside the package, without ..")
    # For a top-level name this finds the package without running any of its code.
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModelError(
            f"the package {package} of {source} is not installed",
            f"pip install {package.replace('_', '-')}",
        )
    for root in spec.submodule_search_locations or ():
        if (folder := Path(root) / inside).is_dir():
            return Location(folder, package.replace("_", "-"))
    raise ModelError(f"the package {package} has no folder {inside or '.'}", "see what `pip show -f` lists for it")


def _from_hub(source: str, revision: str | None, trust_remote_code: bool) -> Location:
    from huggingface_hub import errors, snapshot_download

    patterns = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    try:
        for weights in ("*.safetensors", "pytorch_model*.bin"):
            folder = Path(
                snapshot_download(
                    source,
                    revision=revision,
                    allow_patterns=[*patterns, weights],
                    ignore_patterns=list(_HUB_OTHER_FORMATS),
                )
            )
            if any(folder.rglob(weights)):
                break
    except errors.GatedRepoError:
        raise ModelError(
            f"the hub model {source} is gated",
            "accept its terms on its page, then log in with `hf auth login`",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"the hub model {source} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{source} is neither a folder here nor a model on the hub",
            "check the name; a private model needs `hf auth login`",
        ) from None
    except Exception as error:  # the hub's client passes the errors of its HTTP library on, which varies
        raise ModelError(
            f"{source} is no folder here, and the hub could not be reached ({type(error).__name__})",
            "check the path; or download the model where there is a network and give its folder",
        ) from error
    return Location(folder, source.rpartition("/")[2], folder.name)

"""The weight files of a model folder: finding them, hashing them, loading them without running any of their
code."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, Final

import torch
from optimum.exporters.tasks import TasksManager
from safetensors import SafetensorError

from edgec.errors import ModelError
from edgec.models.families import FAMILIES
from edgec.models.files import first_line, read_object
from edgec.models.quiet import quiet

_SINGLE: Final = ("model.safetensors", "pytorch_model.bin")
_OTHER_FORMATS: Final = (
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.gguf",
    "*.ckpt",
    "*.pt",
    "*.pth",
    "adapter_model.*",
)
_LFS_POINTER: Final = b"version https://git-lfs"


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors file or shards of `folder`, or the torch ones where there are none, shards in name
    order.

    Raises ModelError where there are none, where one of them is missing, or is the pointer that Git LFS
    leaves.
    """
    for name in _SINGLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files: tuple[Path, ...] = (folder / name,)
        elif index.is_file():
            shards = read_object(index).get("weight_map")
            if not isinstance(shards, dict) or not all(Path(str(shard)).name == shard for shard in shards.values()):
                raise ModelError(f"{index} names no files of this folder", "get the file again")
            files = tuple(folder / shard for shard in sorted(set(shards.values())))
        else:
            continue
        for file in files:
            _check_present(file)
        return files
    others = sorted(file.name for pattern in _OTHER_FORMATS for file in folder.glob(pattern))
    holds = f" (it holds {', '.join(others)}, which edgec does not read)" if others else ""
    raise ModelError(
        f"{folder} holds no weights{holds}",
        f"it should hold {' or '.join(_SINGLE)}: download the whole model, or save it with save_pretrained",
    )


def _check_present(file: Path) -> None:
    if not file.is_file():
        raise ModelError(f"the weight file {file} is missing", "download the whole model")
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelError(f"{file} is a Git LFS pointer, not the weights", "run `git lfs pull` in its folder")


def sha256(files: tuple[Path, ...]) -> str:
    """Of one file, or of all shards read one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_sha256(files: tuple[Path, ...], expected: str | None, source: str) -> str:
    """The sha256 of the weights. Raises ModelError where it is not the `expected` one."""
    found = sha256(files)
    if expected is not None and found != expected.lower():
        names = ", ".join(file.name for file in files)
        raise ModelError(
            f"{source}: sha256 of {names} is {found}, not {expected}",
            "this is not the pinned model: get the right one, or update `sha256` if the change was meant",
        )
    return found


def load_weights(folder: Path, config: Any, task: str, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """The transformers model for `task`, in float32 and evaluation mode, every tensor of it from the
    checkpoint.

    config: the transformers configuration. Raises ModelError for weights that cannot be read, that have
    another shape than the configuration says, or that lack tensors which the task needs.
    """
    family = FAMILIES[config.model_type]
    model_class = TasksManager.get_model_class_for_task(task)
    safetensors = weight_files(folder)[0].suffix == ".safetensors"
    try:
        with quiet():
            model, info = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation=family.attention,
                use_safetensors=safetensors,
                weights_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
    except (
        SafetensorError,
        pickle.UnpicklingError,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
    ) as error:
        raise ModelError(
            f"the weights in {folder} cannot be loaded: {first_line(error)}",
            "it was cut short, or holds more than plain tensors: get it again, best as model.safetensors",
        ) from error
    if task == "feature-extraction" and getattr(model, "pooler", None) is not None:
        model.pooler = None  # its output is in no embedding; a graph or a calibration without it is the smaller
    _check_complete(folder, task, info, set(model.state_dict()))
    # Mapped tensors lie wherever the file has them, and a matrix product differs in its last bits with the alignment:
    # in memory of torch's own, the same weights calibrate to the same ranges whatever file they came from.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


def _check_complete(folder: Path, task: str, info: dict[str, Any], needed: set[str]) -> None:
    shapes = [
        f"{name} is {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    if shapes:
        raise ModelError(f"{folder}: the weights do not fit config.json: {'; '.join(shapes[:5])}", "get both again")
    missing = sorted(set(info["missing_keys"]) & needed)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ModelError(
            f"{folder} was not trained for {task}: its weights lack {', '.join(missing[:5])}{more}",
            "give the task that it was trained for, or a model that was fine-tuned for this one",
        )

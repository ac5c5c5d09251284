"""config.json: which family, which task, which labels, and whether edgec can take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import transformers
from optimum.exporters.tasks import TasksManager

from edgec.errors import ModelError
from edgec.models.families import FAMILIES, TASKS
from edgec.models.files import read_object
from edgec.models.quiet import quiet

_SUPPORTED_FAMILIES: Final = f"edgec supports {', '.join(FAMILIES)}"
_SUPPORTED_TASKS: Final = f"edgec supports {', '.join(TASKS)}"


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The transformers configuration. Raises ModelError for a family, or a variant of one, that is not
    supported."""
    where = folder / "config.json"
    if not where.is_file():
        raise ModelError(f"{folder} holds no config.json", "give the folder that save_pretrained wrote")
    raw = read_object(where)
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"{where}: the model family {family!r} is not supported", _SUPPORTED_FAMILIES)
    if "auto_map" in raw and not trust_remote_code:
        raise ModelError(
            f"{where}: the model is code of its own", "pass trust_remote_code=True if you trust its author"
        )
    if raw.get("quantization_config"):
        raise ModelError(f"{where}: the model is quantized already", "start from the float model")
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise ModelError(f"{where}: the model is a decoder", "edgec supports encoders")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            f"{where}: position_embedding_type {raw['position_embedding_type']!r} is not supported",
            "transformers 5 computes absolute positions only",
        )
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers checks fields through a library with errors of its own
        raise ModelError(f"{where} is not a {family} configuration: {error}", "get the file again") from error


def choose_task(config: Any, asked: str | None, source: str) -> str:
    """The task asked for, or the one that the model's architecture was made for."""
    if asked is not None:
        if asked not in TASKS:
            raise ModelError(f"the task {asked!r} is not supported", _SUPPORTED_TASKS)
        return asked
    architecture = (config.architectures or [None])[0]
    model_class = getattr(transformers, str(architecture), None)
    try:
        task = TasksManager.infer_task_from_model(model_class) if model_class is not None else None
    except ValueError:
        task = None
    if task is None:
        raise ModelError(f"{source}: the task cannot be told from its architecture ({architecture})",
                         f"give the task; {_SUPPORTED_TASKS}")  # fmt: skip
    if task not in TASKS:
        raise ModelError(f"{source}: its task, {task}, is not supported", _SUPPORTED_TASKS)
    return str(task)


def labels(config: Any, task: str, source: str) -> tuple[str, ...] | None:
    """config.id2label in the order of the ids, for the tasks that have labels."""
    if task not in ("text-classification", "token-classification"):
        return None
    named = {int(i): str(label) for i, label in config.id2label.items()}
    if sorted(named) != list(range(len(named))):
        raise ModelError(f"{source}: id2label of config.json skips an id", "number the labels from 0 without gaps")
    return tuple(named[i] for i in range(len(named)))


def is_multi_label(config: Any, task: str, source: str) -> bool:
    """Whether labels are scored one by one (sigmoid); as transformers' pipeline, also where there is just
    one."""
    if task != "text-classification":
        return False
    if config.problem_type == "regression":
        raise ModelError(f"{source}: a regression head gives no labels", _SUPPORTED_TASKS)
    return bool(config.problem_type == "multi_label_classification" or config.num_labels == 1)

"""A compressed model as a folder: what `edgec compress` leaves in OUT/model and `edgec export` takes.

    config.json, model.safetensors, tokenizer.json, tokenizer_config.json    as save_pretrained writes them
    adapter.safetensors    the tensors of the alignment adapter, where the model has one
    seam.safetensors       the tensors between the components of a decoupled model
    edgec.json    {"edgec": 4, "spec": ModelSpec, "quantization": Quantization or null, "sparse": [NAME],
                   "lora": settings or null, "adapter": {"window": n} or null,
                   "seam": {"split": n, "first": position} or null, "history": [PassRecord],
                   "files": {name: sha256}, "digest": sha256 of this file with an empty digest}

The same state gives the same bytes. A reader refuses a folder of which any byte was changed. Layers have the shapes of
their tensors, whatever config.json says: heads and widths may differ from layer to layer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
from pathlib import Path
from typing import Any, Final

from edgec_runtime.manifest import PassRecord
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from edgec.errors import ModelError, SystemFailure
from edgec.models.config import load_config
from edgec.models.files import first_line, read_object
from edgec.models.part import make_part
from edgec.models.quiet import quiet
from edgec.models.skeleton import empty_model, fill
from edgec.models.tokenizer import load_tokenizer, longest
from edgec.models.weights import check_sha256, sha256, weight_files
from edgec.nn.adapters import inject, without_adapters
from edgec.nn.alignment import AlignmentAdapter
from edgec.nn.parts import Part
from edgec.nn.resize import heads_follow, take_shapes
from edgec.nn.seam import Seam
from edgec.state import LayerQuantization, ModelSpec, ModelState, PointQuantization, Quantization

FORMAT_VERSION: Final = 4
BUILD_FILE: Final = "edgec.json"
TENSOR_FILE: Final = "quantization.safetensors"
ADAPTER_FILE: Final = "adapter.safetensors"
SEAM_FILE: Final = "seam.safetensors"
_AGAIN: Final = "the folder was changed or cut short: make it again with `edgec compress`"


def is_build(folder: Path) -> bool:
    return (folder / BUILD_FILE).is_file()


def save_build(state: ModelState, folder: Path) -> None:
    """Write `state` to the empty or new `folder`. Raises SystemFailure where it cannot be written."""
    part = state.parts["encoder"]
    assert isinstance(part, Part)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            # One file, whatever its size: the sha256 of shards would depend on where they are cut.
            part.model.save_pretrained(folder, max_shard_size="1TB")
            state.tokenizer.save_pretrained(folder)
        if state.quantization is not None and state.quantization.tensors:
            save_file(dict(state.quantization.tensors), folder / TENSOR_FILE)
        if part.adapter is not None:
            save_tensors(part.adapter.state_dict(), folder / ADAPTER_FILE)
        if part.seam is not None:
            save_tensors(part.seam.state_dict(), folder / SEAM_FILE)
        contents = _describe(state, folder)
        described = folder / BUILD_FILE
        described.write_text(_canonical(contents), encoding="utf-8")
        for file in folder.glob("*.safetensors"):  # written for their owner alone
            file.chmod(stat.S_IMODE(described.stat().st_mode))
    except (OSError, SafetensorError) as error:
        raise SystemFailure(
            f"the model cannot be written to {folder}: {first_line(error)}",
            "free some space, or write elsewhere",
        ) from error


def _describe(state: ModelState, folder: Path) -> dict[str, Any]:
    contents = {
        "edgec": FORMAT_VERSION,
        "spec": dataclasses.asdict(state.spec),
        "quantization": None if state.quantization is None else _plain_quantization(state.quantization),
        "sparse": list(state.sparse),
        "lora": None if state.lora is None else dict(state.lora),
        "adapter": _adapter_settings(state),
        "seam": _seam_settings(state),
        "history": [dataclasses.asdict(record) for record in state.history],
        "files": {path.name: sha256((path,)) for path in sorted(folder.iterdir())},
        "digest": "",
    }
    contents["digest"] = _digest(contents)
    return contents


def load_build(folder: Path, *, expected_sha256: str | None = None) -> ModelState:
    """The state that `save_build` wrote, its quantization and history included.

    expected_sha256: of model.safetensors. Raises ModelError for a folder of a later format, or one of which
    anything was changed.
    """
    contents = _read(folder)
    spec_fields = contents["spec"]
    labels = spec_fields["labels"]
    spec = ModelSpec(**{**spec_fields, "labels": None if labels is None else tuple(labels)})
    (weights,) = weight_files(folder)
    check_sha256((weights,), expected_sha256, str(folder))
    config = load_config(folder)
    tokenizer = load_tokenizer(folder, config, spec.task)
    model, tensors = empty_model(config, spec.task), load_tensors(weights)
    if contents["lora"] is not None:
        # Adapters are made for the size of the layer that they stand beside.
        take_shapes(model, without_adapters(tensors))
        inject(model, contents["lora"])
    fill(model, tensors, folder)
    part = make_part(model, spec)
    heads_follow(part)
    if contents["adapter"] is not None:
        part.attach(_adapter(contents["adapter"], folder))
    if contents["seam"] is not None:
        part.decouple(_seam(contents["seam"], folder))
    part.requires_grad_(True)
    return ModelState(
        parts={"encoder": part},
        spec=spec,
        tokenizer=tokenizer,
        quantization=_quantization(contents["quantization"], folder),
        history=tuple(PassRecord(**record) for record in contents["history"]),
        sparse=tuple(contents["sparse"]),
        lora=contents["lora"],
    )


def _adapter_settings(state: ModelState) -> dict[str, Any] | None:
    """What its tensors do not tell."""
    adapter = state.parts["encoder"].adapter
    return None if adapter is None else {"window": adapter.window}


def _adapter(settings: dict[str, Any], folder: Path) -> AlignmentAdapter:
    """The one that `save_build` wrote, as wide as its tensors."""
    tensors = load_tensors(folder / ADAPTER_FILE)
    hidden, output = tensors["hidden.weight"], tensors["output.weight"]
    window = int(settings["window"])
    adapter = AlignmentAdapter(hidden.shape[1] // window, len(output), window=window, units=len(hidden))
    adapter.load_state_dict(tensors)
    return adapter.eval()


def _seam_settings(state: ModelState) -> dict[str, Any] | None:
    """What its tensors do not tell."""
    seam = state.parts["encoder"].seam
    return None if seam is None else {"split": seam.split, "first": seam.first_position}


def _seam(settings: dict[str, Any], folder: Path) -> Seam:
    """The one that `save_build` wrote, as wide as its tensors."""
    tensors = load_tensors(folder / SEAM_FILE)
    longest, hidden = tensors["positions.weight"].shape
    width = len(tensors["compress.weight"]) if "compress.weight" in tensors else None
    seam = Seam(int(settings["split"]), hidden, longest, width=width, first=int(settings["first"]))
    seam.load_state_dict(tensors)
    return seam.eval()


def narrow(state: ModelState, *, task: str | None, max_length: int | None, source: str) -> ModelState:
    """`state` with a lower max_length. Raises ModelError for another task than the build's."""
    if task not in (None, state.spec.task):
        raise ModelError(f"{source} was built for {state.spec.task}, not for {task}", "leave the task out")
    if max_length is None:
        return state
    part = state.parts["encoder"]
    assert isinstance(part, Part)
    length = longest(state.tokenizer, part.model.config, state.spec.max_length, max_length)
    state.tokenizer.model_max_length = length
    return dataclasses.replace(state, spec=dataclasses.replace(state.spec, max_length=length))


def _read(folder: Path) -> dict[str, Any]:
    where = folder / BUILD_FILE
    contents = read_object(where)
    version = contents.get("edgec")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise ModelError(
            f"{where} is of build format {version}; this edgec reads {FORMAT_VERSION}",
            "update edgec" if version > FORMAT_VERSION else _AGAIN.replace("the folder was changed or cut short: ", ""),
        )
    if where.read_text(encoding="utf-8") != _canonical(contents) or contents.get("digest") != _digest(contents):
        raise ModelError(f"{where} was changed after it was written (its digest does not fit)", _AGAIN)
    for name, expected in contents["files"].items():
        if not (folder / name).is_file():
            raise ModelError(f"the file {name} of the build {folder} is missing", _AGAIN)
        if sha256((folder / name,)) != expected:
            raise ModelError(f"{folder / name} was changed after the build was written", _AGAIN)
    return contents


def _plain_quantization(quantization: Quantization) -> dict[str, Any]:
    """As JSON values; its tensors stand in a file of their own."""
    return {
        **dataclasses.asdict(dataclasses.replace(quantization, tensors={})),
        "tensors": sorted(quantization.tensors),
    }


def _quantization(data: dict[str, Any] | None, folder: Path) -> Quantization | None:
    if data is None:
        return None
    tensors = load_file(folder / TENSOR_FILE) if data["tensors"] else {}
    return Quantization(
        data["scheme"],
        {path: _frozen(LayerQuantization, layer) for path, layer in data["layers"].items()},
        data["passes_before"],
        {path: _frozen(PointQuantization, point) for path, point in data["points"].items()},
        tensors,
    )


def _frozen(kind: Any, values: dict[str, Any]) -> Any:
    """An instance of a frozen dataclass from JSON values, in which lists stand for tuples."""

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: frozen(inner) for key, inner in value.items()}
        return tuple(frozen(inner) for inner in value) if isinstance(value, list) else value

    return kind(**{key: frozen(value) for key, value in values.items()})


def _canonical(contents: dict[str, Any]) -> str:
    return json.dumps(contents, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(contents: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical({**contents, "digest": ""}).encode()).hexdigest()

"""Golden vectors: requests as raw text, with the ids, outputs and answers that the exporting machine saw.

golden.npz holds no pickles:

    requests, answers     UTF-8 JSON, a list each, as uint8 (an answer is null where the outputs are the
    answer) ids, id_lengths       int32, all requests one after the other, and how many belong to each
    output.NAME.values    float32, all requests one after the other, flattened output.NAME.shapes    int32
    (requests, axes)
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import FileDamaged
from .notices import TruncationWarning

if TYPE_CHECKING:
    from .tasks.base import TextModel

_PREFIX: Final = "output."
Values = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class GoldenVectors:
    """requests[i] gave ids[i] (tokens,), outputs[i] by name, and answers[i]."""

    requests: list[Any]
    ids: list[NDArray[np.int32]]
    outputs: list[Values]
    answers: list[Any]


def record(path: Path, model: TextModel, requests: Sequence[Any]) -> GoldenVectors:
    """Run the requests and write what came out. Raises what the model raises."""
    from .tasks.base import split

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # long requests are there on purpose
        ids, outputs = model.ids(requests), model.raw(requests)
    encoded = [model.encode(request) for request in requests]
    answers = [
        model.interpret(request, e, split(e, values))
        for request, e, values in zip(requests, encoded, outputs, strict=True)
    ]
    write(path, requests, ids, outputs, answers)
    return GoldenVectors(list(requests), ids, outputs, answers)


def write(
    path: Path,
    requests: Sequence[Any],
    ids: Sequence[ArrayLike],
    outputs: Sequence[Mapping[str, ArrayLike]],
    answers: Sequence[Any] | None = None,
) -> None:
    """Write golden.npz; the same content gives the same bytes. Every request has the same output names."""
    if not requests or not len(requests) == len(ids) == len(outputs):
        raise ValueError("golden vectors need at least one request, with ids and outputs for each")
    id_arrays = [np.asarray(i, np.int32).ravel() for i in ids]
    arrays: dict[str, NDArray[Any]] = {
        "requests": _json(list(requests)),
        "answers": _json(list(answers) if answers is not None else [None] * len(requests)),
        "ids": np.concatenate(id_arrays),
        "id_lengths": np.array([len(i) for i in id_arrays], np.int32),
    }
    for name in sorted(outputs[0]):
        values = [np.asarray(out[name], np.float32) for out in outputs]
        arrays[f"{_PREFIX}{name}.values"] = np.concatenate([value.ravel() for value in values])
        arrays[f"{_PREFIX}{name}.shapes"] = np.array([value.shape for value in values], np.int32)
    # numpy.savez stamps nothing today, but promises nothing either; and deflate differs between zlib
    # versions.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def read(path: Path) -> GoldenVectors:
    """Raises FileDamaged where the file is not what `write` wrote."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        requests = json.loads(arrays["requests"].tobytes())
        answers = json.loads(arrays["answers"].tobytes())
        lengths = arrays["id_lengths"]
        ids = np.split(arrays["ids"], np.cumsum(lengths)[:-1])
        outputs: list[Values] = [{} for _ in requests]
        suffix = ".values"
        for key in arrays:
            if key.startswith(_PREFIX) and key.endswith(suffix):
                name = key[len(_PREFIX) : -len(suffix)]
                shapes = arrays[f"{_PREFIX}{name}.shapes"]
                pieces = np.split(arrays[key], np.cumsum(shapes.prod(axis=1))[:-1])
                for out, piece, shape in zip(outputs, pieces, shapes, strict=True):
                    out[name] = piece.reshape(tuple(shape))
        if not len(requests) == len(answers) == len(ids) == len(outputs) > 0:
            raise ValueError("the lists differ in length")
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise FileDamaged(f"{path} holds no golden vectors: {error}", "export the bundle again") from None
    return GoldenVectors(requests, ids, outputs, answers)


def _json(value: list[Any]) -> NDArray[np.uint8]:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return np.frombuffer(text.encode("utf-8"), np.uint8)

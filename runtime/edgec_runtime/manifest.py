"""The bundle format, version 1: the one definition that the writer (edgec) and the reader (this runtime) share.

A bundle is a folder. `manifest.json` is the canonical serialisation (`Manifest.to_text`) of the dataclasses below;
a reader refuses any other spelling of it, so that one changed byte anywhere in the folder is found. docs/bundle.md
explains every field.

Annotations are not postponed here: a load reads them, and as strings each would have to be compiled.
"""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Hashable
from dataclasses import field
from typing import Any, Final

from .errors import FormatTooNew, ManifestInvalid
from .record import Record

FORMAT_VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
TASKS: Final = (
    "feature-extraction",
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
)


class TensorInfo(Record):
    """A graph input or output. `shape` mixes sizes and axis names: ("batch", "tokens", 384)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Part(Record):
    """One graph of the model. `precision` is "int8" or "fp32".

    forms: which of several equal forms its operators have, "attention": "packed" (docs/costs.md). optimize_at_load:
    let onnxruntime's own optimizer change the graph; bundles ship in their final form and do not.
    """

    name: str
    file: str
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    forms: dict[str, str] = field(default_factory=dict)
    optimize_at_load: bool = False


class FileInfo(Record):
    """A file of the bundle, `path` relative to its folder, with "/" as separator."""

    path: str
    sha256: str
    bytes: int


class Preprocessing(Record):
    """From text to ids.

    max_length: tokens a row, special tokens counted. long_text: "truncate" or "window". stride: tokens that two
    neighbouring windows share. pairs: whether the model was made for text pairs. prompts: named prefixes of a
    sentence-embedding model; default_prompt names the one that is put before every text.
    """

    tokenizer: str
    max_length: int
    pad_id: int
    long_text: str = "truncate"
    stride: int = 0
    pairs: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


class Postprocessing(Record):
    """From the graph's outputs to an answer. Only the fields of the bundle's task are set.

    dimension, pooling, normalized: feature-extraction (the work itself is inside the graph). activation:
    text-classification, "softmax" or "sigmoid". label_scheme: token-classification, "BIO" or "plain".
    max_answer_tokens, null_answers: question-answering. mask_token, mask_id: fill-mask.
    """

    dimension: int | None = None
    pooling: str | None = None
    normalized: bool | None = None
    activation: str | None = None
    label_scheme: str | None = None
    max_answer_tokens: int | None = None
    null_answers: bool | None = None
    mask_token: str | None = None
    mask_id: int | None = None


class Execution(Record):
    """How the runtime should run the parts.

    batch_invariant: False where a row's answer depends on its batch-mates (one dynamic scale for a whole batch);
    the runtime then runs every text alone. schedule: "streams" (unpadded single texts on parallel one-thread
    streams) or "batches" (length-sorted, padded), chosen by measurement where `measured` is true in the manifest.
    """

    batch_invariant: bool = True
    schedule: str = "streams"
    batch_size: int = 8


class TargetInfo(Record):
    """The machine class the graphs were lowered for. `features` are the CPU features that the answers rely on."""

    name: str
    arch: str
    features: tuple[str, ...] = ()


class Golden(Record):
    """Golden vectors, and how far a device may be from them.

    max_abs: largest absolute difference of any graph output. min_cosine: smallest cosine similarity between an
    expected and a computed output row. spread: by kind of CPU ("vnni", "avx2", "arm64"), what emulating its 8-bit
    products gave at export: max_abs, min_cosine and mean_cosine over the requests.
    """

    file: str
    max_abs: float
    min_cosine: float
    spread: dict[str, dict[str, float]] = field(default_factory=dict)


class PassRecord(Record):
    """One pass of the recipe: its options and the figures that it reported."""

    name: str
    options: dict[str, Any]
    report: dict[str, Any]


class GroupQuality(Record):
    """What compression cost the texts of one group, `n` of them; as in Quality."""

    before: float
    after: float
    drop: float
    n: int


class Quality(Record):
    """What compression cost. metric: "cosine" (mean against the float model) or the metric of `data.evaluate`.

    before, after: over all `n` texts. groups: by the values of `data.evaluate.group_column`; group names the worst of
    them, whose drop then is `drop`. Without a column there are no groups, and drop is that over all texts.
    """

    metric: str
    before: float
    after: float
    drop: float
    n: int
    group: str = ""
    groups: dict[str, GroupQuality] = field(default_factory=dict)


class Source(Record):
    """Where the model came from. sha256 is that of its weight file."""

    model: str
    sha256: str | None = None
    revision: str | None = None
    license: str | None = None


class Manifest(Record):
    """`manifest.json`.

    build_id names the compressed model and is the same in the bundles of all targets of one build. digest is the
    sha256 of this manifest with an empty digest.
    """

    format: int
    name: str
    build_id: str
    task: str
    family: str
    target: TargetInfo
    parts: tuple[Part, ...]
    files: tuple[FileInfo, ...]
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    execution: Execution
    golden: Golden
    source: Source
    labels: tuple[str, ...] | None = None
    passes: tuple[PassRecord, ...] = ()
    quality: Quality | None = None
    parity: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    measured: bool = False
    digest: str = ""

    def sealed(self) -> "Manifest":
        """The same manifest with its digest filled in."""
        return dataclasses.replace(self, digest=_digest(dataclasses.asdict(self)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """The canonical text of manifest.json. Seal first."""
        return _text(dataclasses.asdict(self))

    def part(self, name: str) -> Part:
        for part in self.parts:
            if part.name == name:
                return part
        raise ManifestInvalid(
            f"the bundle has no part {name!r}; it has {', '.join(p.name for p in self.parts)}",
            "export the bundle again with this version of edgec",
        )

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def parse(text: str, where: str) -> Manifest:
    """Read the text of a manifest.json. `where` is the path named in errors.

    Raises FormatTooNew for a later format and ManifestInvalid for everything else that does not fit.
    """
    again = "the file was changed or cut short: copy the bundle again"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ManifestInvalid(f"{where} is not JSON: {error}", again) from None
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise ManifestInvalid(f"{where} has no format version", again)
    if data["format"] > FORMAT_VERSION:
        raise FormatTooNew(
            f"{where} is of bundle format {data['format']}; this runtime reads up to {FORMAT_VERSION}",
            "update edgec-runtime on this device, or export the bundle with an older edgec",
        )
    manifest = _build(Manifest, data, where, "")
    assert isinstance(manifest, Manifest)
    if manifest.task not in TASKS:
        raise ManifestInvalid(f"{where}: unknown task {manifest.task!r}; known are {', '.join(TASKS)}", again)
    # Fields that came to the format after a bundle was written are not in its text, and take no part in its digest.
    if _digest(data) != manifest.digest or _text(data) != text:
        raise ManifestInvalid(f"{where} was changed after it was written (its digest does not fit)", again)
    return manifest


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(_text({**values, "digest": ""}).encode()).hexdigest()


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    """The types of a dataclass's fields, in their order."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(typing.cast("type[Any]", kind))}


def _build(kind: type[Any], data: Any, where: str, key: str) -> Any:
    """A dataclass from parsed JSON, every field checked; `key` is the dotted path for errors."""
    if not isinstance(data, dict):
        raise ManifestInvalid(f"{where}: {key or 'the file'} should be an object")
    hints = _hints(typing.cast(Hashable, kind))
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ManifestInvalid(f"{where}: unknown key {_join(key, unknown[0])!r}")
    values: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if f.name in data:
            values[f.name] = _value(hints[f.name], data[f.name], where, _join(key, f.name))
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ManifestInvalid(f"{where}: {_join(key, f.name)!r} is missing")
    if list(data) != list(values):
        raise ManifestInvalid(f"{where} was changed after it was written (the keys of {key or 'the file'} moved)")
    return kind(**values)


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        for option in args:
            if option is type(None):
                continue
            try:
                return _value(option, value, where, key)
            except ManifestInvalid:
                if dataclasses.is_dataclass(option):
                    raise
        raise ManifestInvalid(f"{where}: {key!r} has the wrong type ({type(value).__name__})")
    if origin is tuple:
        if not isinstance(value, list):
            raise ManifestInvalid(f"{where}: {key!r} should be a list")
        return tuple(_value(args[0], item, where, f"{key}.{i}") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ManifestInvalid(f"{where}: {key!r} should be an object")
        return {k: _value(args[1], v, where, _join(key, k)) for k, v in value.items()}
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value, where, key)
    if hint is float and isinstance(value, float | int) and not isinstance(value, bool):
        return value
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ManifestInvalid(f"{where}: {key!r} should be {hint.__name__}, not {type(value).__name__}")
    return value


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name

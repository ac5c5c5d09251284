"""From a folder to a typed object: read the manifest, verify, scan, and put the pieces together."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import TYPE_CHECKING

from . import cpu, integrity
from .background import Background
from .errors import PartMissing
from .graph_scan import require_known_operators, scan_file
from .manifest import Manifest, Part
from .schedule import choose
from .tokenizer_file import open_tokenizer

if TYPE_CHECKING:
    from .engine import Engine, OnnxRuntimeEngine
    from .tasks.answer import Reader
    from .tasks.classify import Classifier
    from .tasks.embed import EmbeddingModel
    from .tasks.mask import MaskFiller
    from .tasks.tag import Tagger

    Model = EmbeddingModel | Classifier | Tagger | Reader | MaskFiller


def load(path: str | Path, *, threads: int | None = None, schedule: str | None = None, verify: bool = True) -> Model:
    """Load a bundle: an EmbeddingModel, Classifier, Tagger, Reader or MaskFiller, by the manifest's task.

    threads: CPU threads to use; default all that the process may use. schedule: "streams" or "batches"
    instead of the manifest's. verify: compare every file with its sha256 (paths and graphs are checked in any
    case). Raises a BundleError; warns (BundleWarning) where this machine is not what the target's answers
    rely on.
    """
    folder = Path(path)
    return assemble(integrity.read_manifest(folder), folder, threads=threads, schedule=schedule, verify=verify)


def assemble(
    manifest: Manifest,
    folder: Path,
    *,
    threads: int | None = None,
    schedule: str | None = None,
    verify: bool = True,
) -> Model:
    """`load` for a manifest at hand. With verify=False only the parts and the tokenizer have to be there, so
    that the golden vectors of a bundle in the making can be computed by the code that will replay them."""
    if threads is not None and not 1 <= threads <= cpu.MOST_THREADS:
        raise ValueError(f"threads must be from 1 to {cpu.MOST_THREADS}, not {threads}")
    if len(manifest.parts) == 1:
        part = manifest.parts[0]
    else:
        from .decoupled import whole

        part = whole(manifest.parts, str(folder))
    cpu.warn_if_unfit(manifest.target, cpu.architecture(), cpu.features())

    # Hashing does not hold the interpreter, so it goes on while numpy and onnxruntime, the larger half of a cold
    # start, are being imported.
    verification = Background(lambda: integrity.verify_files(folder, manifest) if verify else [])
    from .engine import OnnxRuntimeEngine

    chosen = choose(part, manifest.execution, schedule)
    stamps = verification.result()
    graphs = [(one, check_graph(folder, manifest, one)) for one in manifest.parts]
    threads = threads or cpu.usable_cpus()
    # Nor does onnxruntime, for most of the time that it takes to open a session: what is left of the imports, and the
    # tokenizer, take that time.
    each = 1 if chosen == "streams" else threads
    opening = Background(lambda: _together([OnnxRuntimeEngine.of(one, graph, each) for one, graph in graphs]))
    try:
        opening.let_begin()
        from .runner import Runner
        from .text import Encoder

        name = manifest.preprocessing.tokenizer
        tokenizer = open_tokenizer(integrity.locate(folder, name).read_bytes(), name)
    finally:
        opening.join()
    engine = opening.result()
    # What was read above is what was verified, unless somebody put another file in its place in between.
    for stamp in stamps:
        stamp.require_unchanged()
    runner = Runner(
        engine,
        part,
        schedule=chosen,
        threads=threads,
        batch_size=manifest.execution.batch_size,
        pad_id=manifest.preprocessing.pad_id,
    )
    return _task(manifest.task)(manifest, Encoder(tokenizer, manifest.preprocessing), runner)


def opened(folder: Path, manifest: Manifest, threads: int) -> Engine:
    """The graphs of a verified bundle as one engine. Raises what `load` raises for a graph."""
    from .engine import OnnxRuntimeEngine

    return _together(
        [OnnxRuntimeEngine.of(part, check_graph(folder, manifest, part), threads) for part in manifest.parts]
    )


def _together(engines: list[OnnxRuntimeEngine]) -> Engine:
    if len(engines) == 1:
        return engines[0]  # without the module below: every one counts in a cold start
    from .decoupled import together

    return together(engines)


def _task(name: str) -> type[Model]:
    """The class of a task; only that one is imported, since every module counts in a cold start."""
    match name:
        case "feature-extraction":
            from .tasks.embed import EmbeddingModel as Task
        case "text-classification":
            from .tasks.classify import Classifier as Task  # type: ignore[assignment]
        case "token-classification":
            from .tasks.tag import Tagger as Task  # type: ignore[assignment]
        case "question-answering":
            from .tasks.answer import Reader as Task  # type: ignore[assignment]
        case _:
            from .tasks.mask import MaskFiller as Task  # type: ignore[assignment]
    return Task


def check_graph(folder: Path, manifest: Manifest, part: Part) -> Path:
    """The graph of a part, fit to be given to onnxruntime: its operators are stock ones, its files the bundle's own.

    Raises UnsafePath, PartMissing, FileDamaged or OperatorRefused.
    """
    where = str(folder / part.file)
    model = integrity.locate(folder, part.file)
    facts = scan_file(model)
    require_known_operators(facts, where)
    listed = {info.path for info in manifest.files}
    for location in sorted(facts.external_data):
        # Locations are relative to the graph's own folder. normpath would hide a "..": locate sees the whole
        # path.
        relative = posixpath.join(posixpath.dirname(part.file), location)
        integrity.locate(folder, relative)
        if relative not in listed:
            raise PartMissing(
                f"{where} refers to {location!r}, which the manifest does not list", "export the bundle again"
            )
    return model

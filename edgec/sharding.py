"""Reads a corpus on a Ray cluster: workers put shards of it into stores, which are merged.

Shards are documents that follow each other, cut by their characters alone, so that the same documents give the same
shards. They lie in a hidden folder beside the store, which every node has to see. A shard's folder is named by its
documents: what an interrupted run committed is taken up where the documents are still the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from edgec_runtime import Document, Indexed
from edgec_runtime import index as index_documents
from edgec_runtime.errors import BundleError
from edgec_runtime.retrieval.component import open_decoupled
from edgec_runtime.retrieval.documents import checked, passage_id
from edgec_runtime.retrieval.indexing import splitting
from edgec_runtime.store import Store, merge
from edgec_runtime.store.disk import refusals
from edgec_runtime.store.errors import StoreEmpty, StoreExists, StoreInUse, StoreMismatch
from edgec_runtime.store.lock import WriteLock
from edgec_runtime.store.writer import require_free

from edgec.errors import EdgecError, SystemFailure, UserError

SHARD_CHARACTERS: Final = 1 << 20
"""Of a shard, at least: much more work than to load the bundle for it."""

MOST_SHARDS: Final = 128
"""All are open while they are merged, with five files each; a process may often open 1024. Larger corpora have larger
shards."""

RETRIES: Final = 3
"""How often the shard of a worker that died is taken up."""

_IN_USE_SECONDS: Final = 60.0
_RUN: Final = "run.json"


@dataclass(frozen=True)
class Options:
    """What decides about the bytes of a store, beside the documents; edgec_runtime.index explains the last five."""

    build_id: str
    states: Literal["float16", "int8"]
    overlap: int
    question_tokens: int | None
    passage_tokens: int
    split: bool


@dataclass(frozen=True)
class Shard:
    """Documents that follow each other, and the folder of their store."""

    path: Path
    documents: list[Document]

    @property
    def name(self) -> str:
        return f"documents {self.documents[0].id!r} to {self.documents[-1].id!r}"


def interrupted(out: Path) -> bool:
    """Whether a run that was to make the store `out` left shards. What is left of a finished one is removed."""
    shutil.rmtree(_merged(out), ignore_errors=True)
    return (_work(out) / _RUN).is_file()


def index_with_ray(
    bundle: Path,
    documents: Iterable[Document],
    out: Path,
    *,
    resume: bool = False,
    states: Literal["float16", "int8"] | None = None,
    overlap: int | None = None,
    question_tokens: int | None = None,
    passage_tokens: int | None = None,
    split: bool = True,
    threads: int | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Indexed:
    """Make the store `out` as edgec_runtime.index does, byte for byte, on the workers of a Ray cluster.

    documents: gone through twice. resume: take up what an interrupted run committed. threads: of a worker, default 1.
    workers: at most so many at a time, default as many as the cluster has CPUs for. address: of a cluster whose nodes
    see bundle and store at the same paths; without it one is started on this machine, for as long as it takes, unless
    the program has called ray.init. Figures count what all workers added. Raises EdgecError and BundleError.
    """
    ray = _ray()
    bundle, out = bundle.absolute(), out.absolute()
    model = open_decoupled(bundle, schedule="streams")
    with contextlib.closing(model.reader):
        how = splitting(model, None, overlap, question_tokens, passage_tokens, split)
    options = Options(model.component.build_id, states or "int8", how.overlap, question_tokens, how.tokens, split)
    if not resume:
        require_free(out)
        if interrupted(out):
            raise StoreExists(f"an interrupted run left shards in {_work(out)}", "--resume takes it up; or remove them")
    total = characters = 0
    for document in checked(documents):
        total += 1
        characters += len(document.text)
    if not total:
        raise StoreEmpty("there is no document to index", "give one document at least")
    began = time.monotonic()
    with _work_folder(out, options) as work:
        shards = _shards(work, documents, max(SHARD_CHARACTERS, -(-characters // MOST_SHARDS)))
        paths: list[Path] = []
        found: list[Indexed] = []
        progress(0, total)
        with _cluster(ray, address, workers, threads or 1) as most:
            for path, one in _read(ray, bundle, shards, options, threads or 1, most):
                paths.append(path)
                found.append(one)
                progress(sum(one.documents for one in found), total)
        merge(sorted(paths), out)
    with Store.open(out) as store:
        return Indexed(
            total,
            sum(one.passages for one in found),
            sum(one.tokens for one in found),
            sum(one.skipped for one in found),
            len(store),
            sum(path.stat().st_size for path in out.iterdir() if path.is_file()),
            round(time.monotonic() - began, 3),
        )


def index_shard(bundle: Path, shard: Shard, options: Options, threads: int) -> Indexed:
    """What a worker does: read the documents of a shard that are not in its store yet.

    Raises SystemFailure where the node does not see the folders, BundleError.
    """
    for place in (bundle, shard.path.parent):
        if not place.is_dir():
            raise SystemFailure(
                f"{socket.gethostname()}, a node of the Ray cluster, has no folder {place}",
                "put bundle and store on a file system that all nodes see at the same path",
            )
    chosen = {name: value for name, value in asdict(options).items() if name != "build_id"}
    until = time.monotonic() + _IN_USE_SECONDS
    while True:
        try:
            return index_documents(bundle, shard.documents, shard.path, mode="resume", threads=threads, **chosen)
        except StoreInUse:  # the worker that had the shard is given up, and has not ended yet
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _shards(work: Path, documents: Iterable[Document], characters: int) -> Iterator[Shard]:
    def shard() -> Shard:
        content = json.dumps([(one.id, one.text, one.title) for one in some])
        return Shard(work / f"{number:03}-{hashlib.sha256(content.encode()).hexdigest()[:24]}", some)

    number, some, size = 0, [], 0
    for document in checked(documents):
        some.append(document)
        size += len(document.text)
        if size >= characters:
            yield shard()
            number, some, size = number + 1, [], 0
    if some:
        yield shard()


def _read(
    ray: Any, bundle: Path, shards: Iterator[Shard], options: Options, threads: int, workers: int
) -> Iterator[tuple[Path, Indexed]]:
    """The shards, as they come to be whole. No more of them than there are workers are in memory."""
    task = ray.remote(num_cpus=threads, max_retries=RETRIES, scheduling_strategy="SPREAD")(index_shard)
    running: dict[Any, Shard] = {}
    try:
        while True:
            while len(running) < workers and (shard := next(shards, None)) is not None:
                running[task.remote(bundle, shard, options, threads)] = shard
            if not running:
                return
            reference = ray.wait(list(running))[0][0]
            shard = running.pop(reference)
            try:
                yield shard.path, ray.get(reference)
            except ray.exceptions.RayError as error:
                raise _failure(shard, error) from error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _failure(shard: Shard, error: Any) -> Exception:
    """What a worker raised, or what is known about one that died."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EdgecError | BundleError):
        return cause
    if cause is not None:
        return SystemFailure(
            f"{shard.name}: {type(cause).__name__}: {cause}", "every node needs edgec[ray] of the same version"
        )
    kept: set[str] = set()
    with contextlib.suppress(BundleError), Store.open(shard.path, empty_ok=True) as store:
        kept = set(store.ids)
    first = next((one.id for one in shard.documents if passage_id(one.id, 0) not in kept), shard.documents[-1].id)
    return SystemFailure(
        f"{shard.name}: the worker died, and so did {RETRIES} others that took them up; what is not committed begins "
        f"with document {first!r}",
        "look whether the nodes have memory for a worker on each CPU (--workers, --threads); --resume goes on",
    )


@contextlib.contextmanager
def _work_folder(out: Path, options: Options) -> Iterator[Path]:
    """The folder of the shards, which no other process may use; removed at the end, and where nothing is in it yet.

    Raises StoreMismatch where an interrupted run had other options, StoreInUse.
    """
    work = _work(out)
    chosen = asdict(options)
    with refusals(work):
        work.mkdir(parents=True, exist_ok=True)
    lock = WriteLock(work)
    try:
        with refusals(work):
            if (work / _RUN).is_file():
                kept = json.loads((work / _RUN).read_text(encoding="utf-8"))
                if kept != chosen:
                    raise StoreMismatch(
                        f"the interrupted run had other options or another bundle: {kept} where {chosen} is asked for",
                        f"give the same, or remove {work}",
                    )
            else:
                (work / "run.new").write_text(json.dumps(chosen), encoding="utf-8")
                (work / "run.new").replace(work / _RUN)
        yield work
        with refusals(work):
            work.rename(_merged(out))  # half of the shards would be in the way of another run
    except BaseException:
        if not any(_has_passages(path) for path in work.iterdir() if path.is_dir()):
            shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        lock.release()
        shutil.rmtree(_merged(out), ignore_errors=True)


def _has_passages(path: Path) -> bool:
    try:
        with Store.open(path, empty_ok=True) as store:
            return len(store) > 0
    except BundleError:
        return False


def _work(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.shards")


def _merged(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.merged")


def _ray() -> Any:
    """The module, told to keep to itself before it is imported. Raises UserError where it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else every task is told about in a warning
    try:
        import ray
    except ImportError as error:
        raise UserError("the engine ray needs Ray, which is not installed", 'pip install "edgec[ray]"') from error
    return ray


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None, workers: int | None, threads: int) -> Iterator[int]:
    """A connection to a cluster, or a cluster of this machine's own that ends with it; how many workers are to run.

    Raises SystemFailure.
    """
    if ray.is_initialized():
        if address is not None:
            raise UserError("this program has called ray.init already", "leave the address out")
        yield _workers(ray, workers, threads)
        return
    folder = None
    on_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            if address is not None:
                host, _, port = address.rpartition(":")
                if host and port.isdecimal():  # Ray itself would try for minutes
                    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            else:
                # Its ports are open to the network, and who does not know the token is refused. Without one here Ray
                # would write one into the home folder.
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                folder = tempfile.mkdtemp(prefix="edgec-ray-")
                cpus = threads * (workers or max(1, len(os.sched_getaffinity(0)) // threads))
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=0,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _temp_dir=folder,
                )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise SystemFailure(
                f"no Ray cluster at {address}: {error}" if address else f"Ray did not start: {error}",
                "`ray start --head` starts one, and tells its address" if address else "look for room in TMPDIR",
            ) from error
        finally:
            if on_main:
                signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place
        # What Ray has to say about a worker that died would go to stdout, among the data.
        ray._private.worker._worker_logs_enabled = False
        yield _workers(ray, workers, threads)
    finally:
        ray.shutdown()
        ray._private.worker._worker_logs_enabled = True
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _workers(ray: Any, workers: int | None, threads: int) -> int:
    """Raises UserError where no node has CPUs for a worker: it would be waited for without end."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    room = sum(count // threads for count in cpus)
    if not room:
        raise UserError(
            f"no node of the Ray cluster has {threads} CPUs for a worker: {', '.join(map(str, cpus))}",
            "give fewer --threads",
        )
    return min(workers or room, room)

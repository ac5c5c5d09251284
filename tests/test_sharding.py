"""A corpus that Ray workers read in shards gives the bytes of one process, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from decoupled_bundle import write_decoupled
from edgec_runtime import Document, Indexed, index
from edgec_runtime.errors import BundleError
from edgec_runtime.retrieval import indexing
from edgec_runtime.store import Store
from edgec_runtime.store.errors import PassageInvalid, StoreEmpty, StoreExists, StoreInUse, StoreMismatch
from edgec_runtime.store.lock import WriteLock

import edgec
from edgec import sharding
from edgec.cli.main import invoke
from edgec.errors import EdgecError, SystemFailure, UserError
from edgec.sharding import index_with_ray

DOCUMENTS = [
    Document("ada", "Ada works in Bern .", "Ada"),
    Document("cara", "the train to Denmark was new . Cara lives near the river .", "Cara"),
    Document("long", "Cara walked from the old house to the river , and the garden was cold . " * 4, "A walk"),
    Document("none", "a small green letter", "Letter"),
]
MANY = [Document(f"{one.id}-{i}", one.text, one.title) for i in range(20) for one in DOCUMENTS]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoupled(tmp_path_factory.mktemp("decoupled") / "bundle")


@pytest.fixture(scope="module")
def whole(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MANY, read by one process."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    index(bundle, MANY, folder)
    return folder


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patched:
        yield patched


@pytest.fixture(scope="module")
def cluster(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[None]:
    """Two workers on this machine, shared by the tests of this module."""
    before = set(psutil.Process().children(recursive=True))
    monkeypatch_module.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers are to find this module
    with sharding._cluster(sharding._ray(), None, 2, 1) as workers:
        assert workers == 2
        yield
        started = set(psutil.Process().children(recursive=True)) - before
        folder = Path(sharding._ray()._private.worker._global_node.get_temp_dir_path())
        assert len(started) > 4 and folder.is_dir()
    wait_until(lambda: not any(is_running(process) for process in started))
    assert not folder.exists()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of about nine documents."""
    monkeypatch.setattr(sharding, "SHARD_CHARACTERS", 1500)


def slowly(bundle: Path, shard: sharding.Shard, options: sharding.Options, threads: int) -> Indexed:
    """What a worker does, after each document committed; it tells who it is, and waits where a file `pause` is."""
    indexing._COMMIT_SECONDS, indexing._AHEAD = 0.0, 1  # type: ignore[misc]
    place = shard.path.parent.parent
    plain = indexing._Indexing._add

    def add(self: Any, waiting: Any, pool: Any) -> None:
        plain(self, waiting, pool)
        if shard.path.name.startswith("001") and self.passages > 8:
            with (place / "pids").open("a") as file:
                file.write(f"{os.getpid()}\n")
            until = time.monotonic() + 60
            while (place / "pause").exists() and time.monotonic() < until:
                time.sleep(0.02)

    indexing._Indexing._add = add  # type: ignore[method-assign]
    try:
        return sharding.index_shard(bundle, shard, options, threads)
    finally:
        indexing._Indexing._add = plain  # type: ignore[method-assign]


def dying(bundle: Path, shard: sharding.Shard, options: sharding.Options, threads: int) -> Indexed:
    """A worker that dies when it comes to the second shard."""
    if shard.path.name.startswith("001"):
        index(bundle, shard.documents[:3], shard.path, mode="resume")
        os.kill(os.getpid(), signal.SIGKILL)
    return sharding.index_shard(bundle, shard, options, threads)


def failing(bundle: Path, shard: sharding.Shard, options: sharding.Options, threads: int) -> Indexed:
    raise ModuleNotFoundError("No module named 'onnxruntime'")


@pytest.mark.usefixtures("cluster", "small")
def test_two_workers_write_what_one_process_writes(bundle: Path, whole: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    found = index_with_ray(bundle, MANY, tmp_path / "store", progress=lambda done, total: told.append((done, total)))
    assert content(tmp_path / "store") == content(whole) and len(content(whole)) == 7
    with Store.open(whole) as store:
        assert (found.documents, found.passages, found.tokens) == (80, len(store), store.tokens)
        assert (found.total, found.skipped) == (len(store), 0)
    assert told[0] == (0, 80) and told[-1] == (80, 80) and len(told) > 5
    assert hidden(tmp_path / "store") == []
    with pytest.raises(StoreExists, match="holds a store"):
        index_with_ray(bundle, MANY, tmp_path / "store")


@pytest.mark.usefixtures("cluster", "small")
def test_a_killed_worker_loses_and_doubles_nothing(
    bundle: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sharding, "index_shard", slowly)
    (tmp_path / "pause").touch()
    killed: list[int] = []
    kept: list[int] = []

    def progress(done: int, total: int | None) -> None:
        """All shards but the second are read; its worker has committed, and waits."""
        if killed or done < 50:
            return
        wait_until((tmp_path / "pids").exists)
        (shard,) = (tmp_path / ".store.shards").glob("001-*")
        with Store.open(shard) as store:
            kept.append(len(store))
        killed.append(int((tmp_path / "pids").read_text().split()[0]))
        os.kill(killed[0], signal.SIGKILL)
        (tmp_path / "pause").unlink()

    found = index_with_ray(bundle, MANY, tmp_path / "store", progress=progress)
    pids = set((tmp_path / "pids").read_text().split())
    assert len(killed) == 1 and pids - {str(killed[0])}  # another worker went on
    assert found.skipped == kept[0] > 0  # the rest was read again
    assert capfd.readouterr().out == ""
    assert content(tmp_path / "store") == content(whole) and found.passages + found.skipped == found.total


@pytest.mark.usefixtures("cluster", "small")
def test_a_shard_that_kills_its_workers_is_named_and_then_taken_up(
    bundle: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sharding, "index_shard", dying)
        patched.setattr(sharding, "RETRIES", 1)
        with pytest.raises(SystemFailure) as error:
            index_with_ray(bundle, MANY, tmp_path / "store")
    first, last, next_one = error.value.message.split("'")[1::2]
    names = [one.id for one in MANY]
    assert names.index(next_one) == names.index(first) + 3 <= names.index(last)
    assert not (tmp_path / "store").exists()

    with pytest.raises(StoreExists, match="an interrupted run left shards"):
        index_with_ray(bundle, MANY, tmp_path / "store")
    with pytest.raises(StoreMismatch, match="'overlap': 3"):
        index_with_ray(bundle, MANY, tmp_path / "store", resume=True, overlap=3)
    lock = WriteLock(tmp_path / ".store.shards")
    with pytest.raises(StoreInUse):
        index_with_ray(bundle, MANY, tmp_path / "store", resume=True)
    lock.release()
    found = index_with_ray(bundle, MANY, tmp_path / "store", resume=True, workers=1)
    assert found.skipped > 0 and content(tmp_path / "store") == content(whole)
    assert hidden(tmp_path / "store") == []


@pytest.mark.usefixtures("cluster", "small")
def test_an_interrupted_driver_is_taken_up_and_nothing_of_ray_outlives_it(
    bundle: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": one.id, "text": one.text, "title": one.title}) + "\n" for one in MANY))
    args = ["index", str(bundle), str(rows), "--out", str(tmp_path / "store"), "--engine", "ray"]
    script = (
        "import sys; from edgec import sharding; from edgec.cli.main import main; import test_sharding; "
        "sharding.SHARD_CHARACTERS = 1500; sharding.index_shard = test_sharding.slowly; main()"
    )
    temporary = tempfile.mkdtemp(prefix="edgec-")  # short: Ray's sockets have to fit in it
    cluster = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    alone = {name: value for name, value in os.environ.items() if name not in cluster}
    environment = {**alone, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": temporary, "HOME": str(tmp_path)}

    def stopped(way: signal.Signals, *more: str) -> tuple[int, list[str]]:
        """Send a signal when a worker has committed some of its shard; gives the exit code and stderr."""
        (tmp_path / "pids").unlink(missing_ok=True)
        (tmp_path / "pause").touch()
        command = [sys.executable, "-c", script, *args, "--workers", "2", *more]
        driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: (tmp_path / "pids").exists() or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()[1]
        started = psutil.Process(driver.pid).children(recursive=True)
        worker = psutil.Process(int((tmp_path / "pids").read_text().split()[0]))
        driver.send_signal(way)
        said = driver.communicate(timeout=60)[1]
        wait_until(lambda: not any(is_running(process) for process in (worker, *started)))
        assert not (tmp_path / ".ray").exists() and not (tmp_path / "store").exists()
        return driver.returncode, said.splitlines()

    try:
        code, said = stopped(signal.SIGINT)
        assert (code, said[-2:]) == (130, ["error: interrupted", "hint: --resume takes up what was committed"])
        assert len(said) == 3, said  # the bar's label; Ray says nothing
        assert list(Path(temporary).iterdir()) == []
    finally:
        shutil.rmtree(temporary)
    environment |= cluster | {"TMPDIR": tempfile.gettempdir()}
    address = sharding._ray().get_runtime_context().gcs_address
    assert stopped(signal.SIGKILL, "--resume", "--address", address)[0] == -signal.SIGKILL
    (tmp_path / "pause").unlink()

    assert invoke([*args, "--resume", "--json", "-"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["skipped"] > 8 and figures["documents"] == 80
    assert content(tmp_path / "store") == content(whole) and hidden(tmp_path / "store") == []
    with rows.open("a") as file:
        file.write('{"id": "new", "text": "the warm garden", "title": ""}\n')
    assert invoke([*args, "--resume", "--json", "-"]) == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["passages"] == 1 and "by this process alone" in told.err


@pytest.mark.usefixtures("cluster", "small")
def test_errors_of_workers(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(documents: list[Document], error: type[Exception], words: str, **options: Any) -> None:
        with pytest.raises(error, match=words):
            index_with_ray(bundle, documents, tmp_path / "store", **options)
        assert hidden(tmp_path / "store") == [] and not (tmp_path / "store").exists()

    call([], StoreEmpty, "there is no document")
    call([Document("a", "the train"), Document("a", "the river")], BundleError, "two documents have the id 'a'")
    call([DOCUMENTS[2]], PassageInvalid, "document 'long'.* at most 21", split=False)
    call(MANY, UserError, "no node of the Ray cluster has 9 CPUs", threads=9)
    call(MANY, BundleError, "cannot share 99", overlap=99)
    monkeypatch.setattr(sharding, "index_shard", failing)
    call(MANY, SystemFailure, "documents 'ada-0' to .*: ModuleNotFoundError: No module named 'onnxruntime'", workers=1)


@pytest.mark.usefixtures("cluster")
def test_the_commands_of_the_docs(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs/ask.md").read_text()
    alone, joined = [line for line in page.splitlines() if line.startswith("edgec ") and "--engine ray" in line]
    monkeypatch.chdir(tmp_path)
    Path("corpus.jsonl").write_text('{"text": "Ada works in Bern ."}\n')
    assert invoke(shlex.split(alone.replace("BUNDLE", str(bundle)))[1:]) == 0
    assert "documents" in capfd.readouterr().out
    other = joined.replace("BUNDLE", str(bundle)).replace("corpus.store", "other.store")
    assert invoke(shlex.split(other)[1:]) == 2
    assert "has called ray.init already" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "corpus.store"]


def test_a_node_that_does_not_see_the_folders(bundle: Path, tmp_path: Path) -> None:
    options = sharding.Options("b", "int8", 0, None, 5, True)
    for place, shard in ((tmp_path / "no", tmp_path / "w" / "001"), (bundle, tmp_path / "w" / "001")):
        with pytest.raises(SystemFailure, match=r"a node of the Ray cluster, has no folder .*/(no|w)$"):
            sharding.index_shard(place, sharding.Shard(shard, DOCUMENTS), options, 1)


def test_no_cluster_at_an_address(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the train")
    command = [sys.executable, "-c", "from edgec.cli.main import main; main()", "index", bundle, tmp_path / "a.txt"]
    command += ["--out", tmp_path / "store", "--engine", "ray", "--address", "127.0.0.1:1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 3 and "no Ray cluster at 127.0.0.1:1: " in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_shards_depend_on_characters_alone(tmp_path: Path) -> None:
    def cut(documents: list[Document], characters: int) -> list[sharding.Shard]:
        return list(sharding._shards(tmp_path, documents, characters))

    shards = cut(MANY, 1500)
    assert [one for shard in shards for one in shard.documents] == MANY
    assert all(sum(len(one.text) for one in shard.documents) >= 1500 for shard in shards[:-1])
    more = cut([*MANY, Document("new", "the garden")], 1500)
    assert [one.path for one in more[: len(shards) - 1]] == [one.path for one in shards[:-1]]
    changed = cut([Document(MANY[0].id, MANY[0].text, "Another title"), *MANY[1:]], 1500)
    assert changed[0].path != shards[0].path and changed[1].path == shards[1].path


def test_ray_is_missing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.txt").write_text("the train")
    code = invoke(["index", str(bundle), str(tmp_path / "a.txt"), "--out", str(tmp_path / "s"), "--engine", "ray"])
    assert code == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]
    assert "which is not installed" in (said := capfd.readouterr().err) and 'pip install "edgec[ray]"' in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 2}, "options of the engine ray"),
        ({"address": "10.0.0.1:6379"}, "options of the engine ray"),
        ({"engine": "ray", "append": True}, "makes new stores"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], words: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match=words):
        edgec.index(bundle, tmp_path, out=tmp_path / "store", **options)

"""An interrupted compress is taken up where it was; everything else starts afresh."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from edgec_runtime.manifest import PassRecord
from tiny_models import SENTENCES, sentence_transformer
from tokenizers import normalizers

import edgec
from edgec.errors import DataError, PassError
from edgec.exporter import Exporter
from edgec.models import load_model
from edgec.passes import Quantize
from edgec.passes.cache import PassCache
from edgec.state import ModelState, PassContext, PassResult
from edgec.target import Target
from edgec.training.checkpoint import mark_whole


@pytest.fixture
def recipe(tmp_path: Path, foreign: Target) -> Path:
    """For a target of another architecture, so that nothing is measured."""
    sentence_transformer(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES) + "\n")
    path = tmp_path / "small.yaml"
    path.write_text(
        "edgec: 1\n"
        f"model: {{source: {tmp_path}/model}}\n"
        "data: {calibrate: {text: texts.txt}}\n"
        'passes: [{quantize: {scheme: static, smooth: ["*.query", "*.key", "*.value"]}}]\n'
        f"targets: [{foreign.name}]\n"
    )
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Quantize]:
    """Every time that the pass was really run."""
    made: list[Quantize] = []
    apply = Quantize.apply

    def counted(self: Quantize, state: ModelState, ctx: PassContext) -> PassResult:
        made.append(self)
        return apply(self, state, ctx)

    monkeypatch.setattr(Quantize, "apply", counted)
    return made


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stem != "report")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _stop(error: BaseException) -> Callable[..., None]:
    def stop(*_: object, **__: object) -> None:
        raise error

    return stop


def _interrupt(recipe: Path, out: Path, error: BaseException) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exporter, "__init__", _stop(error))
        with pytest.raises(type(error)):
            edgec.compress(recipe, out=out)
    assert not out.exists()


def test_an_interrupted_run_is_taken_up(recipe: Path, calls: list[Quantize], tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = {path.name for path in tmp_path.iterdir()}
    _interrupt(recipe, out, KeyboardInterrupt())
    assert {path.name for path in tmp_path.iterdir()} - before == {".out.passes"}
    assert len(calls) == 1
    said: list[str] = []
    edgec.compress(recipe, out=out, resume=True, say=said.append)
    assert len(calls) == 1
    assert "pass quantize: taken from the interrupted run" in said
    assert {path.name for path in tmp_path.iterdir()} - before == {"out"}

    edgec.compress(recipe, out=tmp_path / "straight")
    assert len(calls) == 2
    taken_up, straight = tree(out), tree(tmp_path / "straight")
    assert "bundles/" in "".join(straight) and "model/model.safetensors" in straight
    assert list(taken_up) == list(straight)
    assert [name for name in straight if taken_up[name] != straight[name]] == []


def test_without_resume_a_run_starts_afresh(recipe: Path, calls: list[Quantize], tmp_path: Path) -> None:
    _interrupt(recipe, tmp_path / "out", KeyboardInterrupt())
    _interrupt(recipe, tmp_path / "out", KeyboardInterrupt())
    assert len(calls) == 2


def test_an_error_leaves_nothing_to_take_up(recipe: Path, calls: list[Quantize], tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    _interrupt(recipe, tmp_path / "out", PassError("it would come again"))
    assert {path.name for path in tmp_path.iterdir()} == before
    assert len(calls) == 1


def test_a_changed_option_is_another_pass(recipe: Path, calls: list[Quantize], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _interrupt(recipe, out, KeyboardInterrupt())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Exporter, "__init__", _stop(KeyboardInterrupt()))
        edgec.compress(recipe, out=out, resume=True, overrides=["passes.0.smooth_alpha=0.7"])
    assert [step.smooth_alpha for step in calls] == [0.5, 0.7]


# The cache by itself.


@pytest.fixture
def state(tmp_path: Path) -> ModelState:
    return load_model(sentence_transformer(tmp_path / "m"))


def test_a_key_names_everything_that_the_result_depends_on(state: ModelState) -> None:
    passes = [{"quantize": dataclasses.asdict(Quantize())}]
    other = dataclasses.replace(state, spec=dataclasses.replace(state.spec, max_length=16))
    pooling = dataclasses.replace(state, spec=dataclasses.replace(state.spec, pooling="cls"))
    cased = copy.deepcopy(state.tokenizer)
    cased.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    weights = dataclasses.replace(state, spec=dataclasses.replace(state.spec, sha256="0" * 64))
    dynamic = [{"quantize": dataclasses.asdict(Quantize(scheme="dynamic"))}]
    keys = [
        PassCache.key(state, passes, SENTENCES, 0),
        PassCache.key(other, passes, SENTENCES, 0),
        PassCache.key(weights, passes, SENTENCES, 0),
        PassCache.key(pooling, passes, SENTENCES, 0),
        PassCache.key(dataclasses.replace(state, tokenizer=cased), passes, SENTENCES, 0),
        PassCache.key(state, dynamic, SENTENCES, 0),
        PassCache.key(state, passes * 2, SENTENCES, 0),
        PassCache.key(state, passes, SENTENCES[1:], 0),
        PassCache.key(state, passes, SENTENCES, 1),
        PassCache.key(state, passes, [("a", "\udcff")], 0),
    ]
    assert len(set(keys)) == len(keys)
    assert PassCache.key(state, passes, SENTENCES, 0) == keys[0]


def test_what_was_put_in_comes_out(state: ModelState, tmp_path: Path) -> None:
    with PassCache(tmp_path / "out", resume=True) as cache:
        assert cache.get("k") is None
        cache.put("k", state)
        found = cache.get("k")
        assert found is not None and found.spec == state.spec
        (cache.folder / "k" / "model.safetensors").write_bytes(b"half of it")
        assert cache.get("k") is None
        cache.put("k", state)
        assert cache.get("k") is not None


@pytest.mark.parametrize(
    ("error", "kept"),
    [(None, False), (DataError("x"), False), (KeyboardInterrupt(), True), (SystemExit(1), True)],
)
def test_what_stays(state: ModelState, tmp_path: Path, error: BaseException | None, kept: bool) -> None:
    cache = PassCache(tmp_path / "out", resume=False)
    try:
        with cache:
            cache.begin()
            cache.put("k", state)
            if error is not None:
                raise error
    except BaseException as caught:
        assert caught is error
    assert cache.folder.exists() == kept
    assert (PassCache(tmp_path / "out", resume=True).get("k") is not None) == kept
    assert PassCache(tmp_path / "out", resume=False).get("k") is None


def test_an_error_does_not_cost_what_was_learnt(state: ModelState, tmp_path: Path) -> None:
    record = PassRecord("align", {}, {"phases": {"1": {"losses": {"5": 0.5}}}})
    learnt = dataclasses.replace(state, history=(*state.history, record))
    said: list[str] = []
    with pytest.raises(DataError), PassCache(tmp_path / "out", resume=False, say=said.append) as cache:
        cache.begin()
        cache.put("k", learnt)
        raise DataError("x")
    assert said == ["what was trained is kept: with --resume the next run takes it up"]
    with pytest.raises(DataError), PassCache(tmp_path / "out", resume=True) as cache:
        cache.begin()
        assert cache.get("k") is not None
        raise DataError("x")
    assert (cache.folder / "k").is_dir()
    with PassCache(tmp_path / "out", resume=True) as cache:
        cache.begin()
        assert cache.get("k") is not None
    assert not cache.folder.exists()


def test_half_a_checkpoint_does_not_count_and_a_whole_one_survives_an_error(tmp_path: Path) -> None:
    said: list[str] = []
    for marked in (False, True):
        with pytest.raises(DataError), PassCache(tmp_path / "out", resume=True, say=said.append) as cache:
            cache.begin()
            checkpoint = cache.training_folder("k") / "phase1" / "checkpoint-20"
            checkpoint.mkdir(parents=True)
            (checkpoint / "model.bin").touch()
            if marked:
                mark_whole(checkpoint)
            assert cache.goes_on("k") == marked
            raise DataError("x")
        assert checkpoint.exists() == marked
    assert said[-1] == "what was trained is kept: with --resume the next run takes it up"


def test_a_folder_that_was_made_for_nothing_goes(state: ModelState, tmp_path: Path) -> None:
    with pytest.raises(DataError), PassCache(tmp_path / "a" / "b" / "out", resume=False) as cache:
        cache.begin()
        cache.put("k", state)
        raise DataError("x")
    assert not (tmp_path / "a").exists()


def test_a_run_that_was_refused_leaves_the_folder_of_the_other(state: ModelState, tmp_path: Path) -> None:
    cache = PassCache(tmp_path / "out", resume=False)
    cache.put("k", state)
    with pytest.raises(DataError), PassCache(tmp_path / "out", resume=False):
        raise DataError("another run is writing out")
    assert (cache.folder / "k").is_dir()

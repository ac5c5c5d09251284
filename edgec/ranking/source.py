"""The ranking of a model source or a build: what `edgec sensitivity` does."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from edgec.data.readers import read_texts
from edgec.devices.sysroot import cache_folder
from edgec.errors import UserError
from edgec.passes import Quantize, run_pass
from edgec.schema import build
from edgec.state import PassContext, Progress, no_progress
from edgec.target import load_target
from edgec.yaml_tree import Problems, override

from .result import Ranking

if TYPE_CHECKING:
    from edgec.data.examples import Text
    from edgec.state import ModelState

ROWS: Final = 64
_HINT: Final = "docs/passes/quantize.md explains every option"


def sensitivity(
    model: str | Path,
    data: str | Path,
    *,
    scheme: str | None = None,
    options: Sequence[str] = (),
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    rows: int = ROWS,
    target: str | None = None,
    task: str | None = None,
    revision: str | None = None,
    resume: bool = True,
    progress: Progress = no_progress,
) -> Ranking:
    """Rank the layers of `model` by what each costs where it alone is quantized; see edgec.ranking.measure.rank.

    model: a build that `compress` wrote, whose own decision is ranked, or a model source, which is quantized first:
    scheme and options ("smooth=['*.query']") are those of the quantize pass, calibrated on the same texts. data,
    format, text, text_pair: see edgec.data.readers; rows: how many texts, from the start. target: the machine class
    whose weight range counts; None: 8 bits. task, revision: of a source, see edgec.models.load_model. resume: take up
    the layers that an earlier run with the same model, decision and texts has finished. Raises UserError for options
    that do not fit or are given for a build, DataError for the texts, and what loading raises.
    """
    step = _pass(scheme, options)
    reduce_range = load_target(target).int8.reduce_range if target is not None else False
    texts = tuple(read_texts(data, format=format, text=text, text_pair=text_pair, rows=rows))
    from edgec.models import load_model

    from .measure import rank

    state = load_model(model, task=task, revision=revision)
    if state.quantization is None:
        state = _quantized(step, state, texts, progress)
    elif scheme is not None or options:
        raise UserError(
            f"{model} is quantized already: its own decision is what is ranked",
            "leave the options of quantize out, or give the model that the build was made from",
        )
    place = cache_folder() / "sensitivity" / f"{_name(model, data, scheme, options, rows, target)}.jsonl"
    if not resume:
        place.unlink(missing_ok=True)
    return rank(state, texts, reduce_range=reduce_range, resume_file=place, progress=progress)


def _pass(scheme: str | None, options: Sequence[str]) -> Quantize:
    """The quantize pass with these options. Raises RecipeError with every one that does not fit."""
    settings = [*([] if scheme is None else [f"scheme={scheme}"]), *options]
    root = yaml.MappingNode("tag:yaml.org,2002:map", [])
    override(root, settings)
    problems = Problems("the options of quantize")
    made = build(Quantize, root, problems)
    problems.raise_if_any(_HINT)
    assert isinstance(made, Quantize)
    return made


def _quantized(step: Quantize, state: ModelState, texts: tuple[Text, ...], progress: Progress) -> ModelState:
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        return run_pass(step, state, PassContext(Path(folder), texts, progress=progress))


def _name(*call: Any) -> str:
    """Of the file that keeps the finished layers of such a call; the file itself knows what they belong to."""
    return hashlib.sha256(repr(tuple(map(str, call))).encode("utf-8", "surrogatepass")).hexdigest()[:16]

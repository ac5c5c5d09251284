"""From a model source to the state that passes and export work on."""

from __future__ import annotations

from pathlib import Path

from edgec.errors import ModelError
from edgec.models import build, sentence_transformers
from edgec.models.config import choose_task, is_multi_label, labels, load_config
from edgec.models.files import card_license, license_files
from edgec.models.part import make_part
from edgec.models.quiet import quiet
from edgec.models.source import locate
from edgec.models.tokenizer import load_tokenizer, longest
from edgec.models.weights import check_sha256, load_weights, weight_files
from edgec.state import ModelSpec, ModelState


def load_model(
    source: str | Path,
    *,
    task: str | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    trust_remote_code: bool = False,
    max_length: int | None = None,
) -> ModelState:
    """Load a model and everything that is known about it.

    source: a folder, `pkg://package/path`, a hub id (the only kind that may download) or a folder that
    `save_build` wrote. task: one of families.TASKS; where it is None it is inferred from modules.json or the
    architecture. revision: of a hub id. sha256: of the weight file (several shards: of all, in name order).
    trust_remote_code: run Python code that lies in the model folder; without it no such code is run.
    max_length: tokens a row, special tokens counted; it may only lower what the model allows.

    The state has one part, "encoder". A feature-extraction model without modules.json gets mean pooling and
    no normalisation. Raises ModelError, with the cause and the remedy, before any long work where that is
    possible.
    """
    source = str(source)
    with quiet():
        location = locate(source, revision=revision, trust_remote_code=trust_remote_code)
    root = location.folder
    if build.is_build(root):
        state = build.load_build(root, expected_sha256=sha256)
        return build.narrow(state, task=task, max_length=max_length, source=source)

    sentence = _sentence_transformer(root, task)
    folder = root if sentence is None else sentence.folder
    config = load_config(folder, trust_remote_code=trust_remote_code)
    task = "feature-extraction" if sentence else choose_task(config, task, source)
    if task == "feature-extraction" and sentence is None and (root / "modules.json").is_file():
        raise ModelError(
            f"{root}: modules.json has no Pooling, so it gives no embedding of a text", "add a Pooling module"
        )
    files = weight_files(folder)
    tokenizer = load_tokenizer(
        folder,
        config,
        task,
        do_lower_case=sentence is not None and sentence.do_lower_case,
        trust_remote_code=trust_remote_code,
    )
    length = longest(tokenizer, config, sentence.max_seq_length if sentence else None, max_length)
    tokenizer.model_max_length = length
    embeds = task == "feature-extraction"
    spec = ModelSpec(
        name=location.name,
        source=source,
        task=task,
        family=config.model_type,
        max_length=length,
        sha256=check_sha256(files, sha256, source),
        revision=location.revision,
        license=card_license(root),
        license_text=license_files(root),
        labels=labels(config, task, source),
        multi_label=is_multi_label(config, task, source),
        pairs=task in ("text-classification", "question-answering"),
        pooling=(sentence.pooling if sentence else "mean") if embeds else None,
        normalize=sentence is not None and sentence.normalize,
        prompts=dict(sentence.prompts) if sentence else {},
        default_prompt=sentence.default_prompt if sentence else None,
    )
    model = load_weights(folder, config, task, trust_remote_code=trust_remote_code)
    return ModelState(parts={"encoder": make_part(model, spec)}, spec=spec, tokenizer=tokenizer)


def _sentence_transformer(root: Path, task: str | None) -> sentence_transformers.SentenceTransformer | None:
    """What modules.json says. A folder whose only module is the Transformer is an ordinary model."""
    if not (root / "modules.json").is_file():
        return None
    modules = sentence_transformers.module_folders(root)
    if [kind for kind, _ in modules] == ["Transformer"] and modules[0][1].resolve() == root.resolve():
        return None
    if task not in (None, "feature-extraction"):
        raise ModelError(
            f"{root} is a sentence-transformers model for feature-extraction, not for {task}",
            "leave the task out",
        )
    return sentence_transformers.read(root)

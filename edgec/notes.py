"""The texts that a bundle carries for people: README.md and LICENSES."""

from __future__ import annotations

from typing import Final

from edgec_runtime.manifest import Manifest

_PYTHON: Final = {
    "feature-extraction": 'vectors = model.embed(["A first text.", "A second one."])   # float32 (2, {dimension})',
    "text-classification": 'for label in model.classify(["A text to classify."]):\n    print(label.label, label.score)',
    "token-classification": 'for span in model.tag("Ada Lovelace lived in London."):\n    print(span.text, span.label)',
    "question-answering": (
        'answer = model.answer("Who wrote it?", "The letter was written by Ada.")\nprint(answer.text, answer.score)'
    ),
    "fill-mask": 'for fill in model.fill_mask("Paris is the {mask} of France."):\n    print(fill.token, fill.score)',
}


_DECOUPLED: Final = """Run `input.onnx` on each of the two texts alone, with its special tokens: the first with
`token_type_ids` 0, the second with 1. Then `cross.onnx` on the states of the first followed by those of the second. The
states of a passage can be kept: `edgec_runtime.index` and `PassageReader` do that."""


def readme(manifest: Manifest) -> str:
    """README.md of a bundle: what it is and how to run it, from Python and from C."""
    post = manifest.postprocessing
    call = _PYTHON[manifest.task].replace("{dimension}", str(post.dimension)).replace("{mask}", post.mask_token or "")
    pre = manifest.preprocessing
    graphs = []
    for part in manifest.parts:
        graphs.append(f"`{part.file}` ({part.precision}; its weights lie beside it in `{part.file}.data`)")
        for kind, tensors in (("input", part.inputs), ("output", part.outputs)):
            for tensor in tensors:
                axes = ", ".join(map(str, tensor.shape))
                graphs.append(f"- {kind} `{tensor.name}`: {tensor.dtype} ({axes})")
    if len(manifest.parts) > 1:
        graphs += ["", _DECOUPLED]
    features = f", needs the CPU feature {', '.join(manifest.target.features)}" if manifest.target.features else ""
    return f"""# {manifest.name}

A {manifest.task} model ({manifest.family}) for the target {manifest.target.name} ({manifest.target.arch}{features}),
made by edgec {manifest.versions.get("edgec", "")}. `manifest.json` describes it; every file's sha256 stands there.

## From Python

    pip install "edgec-runtime[text]"

    from edgec_runtime import load
    model = load("path/to/this/folder")
    {call.replace(chr(10), chr(10) + "    ")}

`python -m edgec_runtime check path/to/this/folder` replays the golden vectors on the device.

## From C, or any language with an ONNX Runtime binding

The graphs are plain ONNX for stock ONNX Runtime on the CPU. Set `ORT_DISABLE_TELEMETRY=1` in the environment before
the library loads; one thread a session, texts unpadded and one at a time, is the fastest way on most CPUs.

{chr(10).join(graphs)}

`tokenizer.json` is read by the tokenizers library (Rust, with C bindings). A row has at most {pre.max_length} tokens,
special tokens counted; the padding id is {pre.pad_id}; `attention_mask` is 1 for tokens and 0 for padding.
`golden.npz` holds raw requests, their ids and the expected outputs.
"""


def license_notes(manifest: Manifest, license_text: str | None = None) -> str:
    """LICENSES of a bundle: what is known about the rights in its content, and the model's own licence files."""
    source = manifest.source
    stated = source.license or "not stated by the model's card: ask its publisher before you ship it"
    notes = f"""Model weights and tokenizer
  source:   {source.model}{f" (revision {source.revision})" if source.revision else ""}
  sha256:   {source.sha256 or "unknown"}
  licence:  {stated}
  changed:  {"converted and quantized to int8" if any(p.precision == "int8" for p in manifest.parts) else "converted"}

The files written by edgec itself (manifest, README, graph structure) are under the Apache License 2.0.
"""
    return notes if license_text is None else f"{notes}\n{license_text}"

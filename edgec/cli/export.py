"""`edgec export`: one model, one target, one bundle."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console
from edgec.files import megabytes


class OnMiss(StrEnum):
    FAIL = "fail"
    FALLBACK = "fallback"


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|BUILD", help="A folder, hub id, pkg://package/path, or a compress output."),
    ],
    target: Annotated[
        str,
        typer.Option("--target", metavar="NAME|FILE", help="See `edgec targets list` and `edgec targets detect`."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="BUNDLE", help="Where to write. [default: MODEL-TARGET]")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task, where the model's configuration does not tell it.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a commit, tag or branch.")] = None,
    opset: Annotated[int, typer.Option(min=18, max=23, help="ONNX opset of the graph.")] = 23,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Most tokens of a text. [default: the model's own limit]")
    ] = None,
    null_answers: Annotated[
        bool, typer.Option("--null-answers", help='question-answering: "there is no answer" may win.')
    ] = False,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="question-answering: the longest answer.")] = 30,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="DEVICE", help="Measure there against fp32: local or ssh://user@host[:port]."),
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(min=0, help="Times as fast as fp32 that it has to be on DEVICE, at 128 tokens.")
    ] = None,
    on_miss: Annotated[
        OnMiss, typer.Option("--on-miss", help="Where --speedup is missed: write nothing, or the fp32 bundle.")
    ] = OnMiss.FAIL,
    forms: Annotated[
        str,
        typer.Option(
            "--forms", metavar="WHICH", help="As of `edgec compress`; without --on the default ones or a bundle's."
        ),
    ] = "kept",
    force: Annotated[bool, typer.Option("--force", help="Replace BUNDLE, once the new one is whole.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
    json: Annotated[Path | None, console.json_option("Write the manifest there too; - is stdout.")] = None,
) -> None:
    """Export a model for one target.

    A build is exported as its passes left it, any other source in fp32.
    """
    from edgec import operations

    manifest = operations.export(
        model,
        target=target,
        out=out,
        task=task,
        revision=revision,
        opset=opset,
        max_length=max_length,
        null_answers=null_answers,
        max_answer_tokens=max_answer_tokens,
        on=on,
        speedup=speedup,
        on_miss=on_miss.value,
        forms=forms,
        force=force,
        trust_remote_code=trust_remote_code,
        say=console.say,
    )
    if json is not None:
        console.write_json(json, manifest.to_dict())
    precision = manifest.parts[0].precision
    folder = out or Path(f"{manifest.name}-{manifest.target.name}")
    console.info(f"written to {folder}: {precision}, {megabytes(manifest.total_bytes)} MB")

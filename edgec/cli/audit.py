"""`edgec audit`: which share of a bundle's work runs in int8, why the rest does not, and where the error comes from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgec.cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgec.auditing import Components, GraphAudit, TensorError

WORST: Final = 10
"""How many modules the table of tensor errors shows; --json has all."""


def audit(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")],
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens of the row that is run; default 128.")
    ] = None,
    question_tokens: Annotated[
        int | None,
        typer.Option("--question-tokens", min=1, help="Of these, a decoupled model's question; default 1/8."),
    ] = None,
    threads: Annotated[int, console.threads_option("Threads that onnxruntime may use.")] = 1,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="BUNDLE",
            help="Compare every module with this float bundle. [default: OUT/baseline for OUT/bundles/TARGET]",
        ),
    ] = None,
    json: Annotated[Path | None, console.json_option("Write the report as JSON; - is stdout.")] = None,
) -> None:
    """Count how much of a bundle's work runs in int8.

    Runs it under onnxruntime's profiler and counts multiply-accumulates. Shows the share of int8 kernels, the
    operators that ran, the nodes that multiply in float with the reason, and the quantizing that serves nothing.
    Against a float bundle: how far each module's output is from float, on the golden requests.
    """
    from edgec.auditing import audit as run_audit
    from edgec.auditing import tensor_errors
    from edgec.emulation import adapt

    against = against or _baseline(bundle)
    report = run_audit(
        bundle, tokens=tokens, question_tokens=question_tokens, threads=threads, progress=console.progress
    )
    errors = None if against is None else tensor_errors(bundle, against, adapt=adapt, progress=console.progress)
    if str(json) != "-":
        for name, part in report.parts.items():
            _show(f"{report.name} for {report.target}, part {name}, {report.tokens} tokens", part)
        if report.components is not None:
            _show_components(report.components)
        if errors is not None:
            _show_errors(f"tensor error against {against}", errors)
    if json is not None:
        data = report.to_dict()
        data["against"] = None if against is None else str(against)
        data["tensors"] = None if errors is None else [asdict(error) for error in errors]
        console.write_json(json, data)


def _baseline(bundle: Path) -> Path | None:
    """The fp32 bundle that `edgec compress` wrote beside this one."""
    folder = bundle.absolute().parent
    found = folder.parent / "baseline"
    return found if folder.name == "bundles" and found.is_dir() else None


def _show_errors(title: str, errors: Sequence[TensorError]) -> None:
    from edgec.auditing import worst

    shown = worst(errors, WORST)
    if shown[0].snr_db is None and shown[0].cosine == 1:
        console.info(f"{title}: no module differs")
        return
    console.table(
        f"{title}: the worst {len(shown)} of {len(errors)} modules, the worst is {shown[0].module}",
        ["module", "SNR dB", "cosine"],
        [
            [error.module, "-" if error.snr_db is None else f"{error.snr_db:.1f}", f"{error.cosine:.6f}"]
            for error in shown
        ],
    )


def _show(title: str, part: GraphAudit) -> None:
    shares = [
        ("int8", part.macs.int8, part.int8_share),
        ("weight-only", part.macs.weight_only, part.weight_only_share),
        ("float", part.macs.float, part.float_share),
    ]
    console.table(
        title,
        ["arithmetic", "million MACs", "share"],
        [[kind, _millions(macs), _percent(share)] for kind, macs, share in shares],
    )
    console.table(
        "operators",
        ["operator", "domain", "nodes", "factors", "million MACs", "share", "time"],
        [
            [
                row.op,
                row.domain,
                str(row.count),
                ", ".join(row.factors),
                _millions(row.macs.total) if row.macs.total else "",
                _percent(row.share) if row.macs.total else "",
                _percent(row.time_share),
            ]
            for row in part.operators
        ],
    )
    if part.float_nodes:
        console.table(
            "float nodes",
            ["node", "million MACs", "why"],
            [[node.name, _millions(node.macs), node.reason] for node in part.float_nodes],
        )
    if part.islands:
        console.table(
            "quantize/dequantize islands",
            ["island", "nodes", "us"],
            [[i.kind, " > ".join(i.nodes), f"{i.microseconds:.0f}"] for i in part.islands],
        )
    if part.uncounted:
        console.info(f"not counted, because edgec has no rule for them: {', '.join(part.uncounted)}")


def _show_components(found: Components) -> None:
    """What one question costs where its passage is kept, against a model that reads both with every layer."""
    rows = [
        ("question, input component", found.question_tokens, found.question),
        ("passage, input component, once", found.passage_tokens, found.passage),
        ("both, cross component", found.question_tokens + found.passage_tokens, found.cross),
        ("both, all layers: not decoupled", found.question_tokens + found.passage_tokens, found.standard),
    ]
    console.table(
        f"a question costs {_percent(found.answer_ratio)} of what it did; the cross component alone "
        f"{_percent(found.cross_ratio)}",
        ["component", "tokens", "million MACs", "share"],
        [[name, str(tokens), _millions(macs), _percent(macs / found.standard)] for name, tokens, macs in rows],
    )


def _millions(macs: int) -> str:
    return f"{macs / 1e6:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

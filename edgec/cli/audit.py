"""`edgec audit`: which share of a bundle's work runs in int8, and why the rest does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgec.cli import console

if TYPE_CHECKING:
    from edgec.auditing import GraphAudit


def audit(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")],
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens of the row that is run; default 128.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads that onnxruntime may use.")] = 1,
    json: Annotated[Path | None, console.json_option("Write the report as JSON; - is stdout.")] = None,
) -> None:
    """Count how much of a bundle's work runs in int8.

    Runs it under onnxruntime's profiler and counts multiply-accumulates. Shows the share of int8 kernels, the
    operators that ran, the nodes that multiply in float with the reason, and the quantizing that serves nothing.
    """
    from edgec.auditing import audit as run_audit

    report = run_audit(bundle, tokens=tokens, threads=threads, progress=console.progress)
    if str(json) != "-":
        for name, part in report.parts.items():
            _show(f"{report.name} for {report.target}, part {name}, {report.tokens} tokens", part)
    if json is not None:
        console.write_json(json, report.to_dict())


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


def _millions(macs: int) -> str:
    return f"{macs / 1e6:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

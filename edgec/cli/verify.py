"""`edgec verify`: does a bundle answer on a device as it did where it was made?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edgec.cli import console

_WORST_LAYERS: Final = 5


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of the bundle.")],
    on: Annotated[
        str, typer.Option("--on", metavar="DEVICE", help="local, ssh://user@host[:port] or qemu://cpu.")
    ] = "local",
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="KIND",
            help="Answer as another kind of CPU: avx2, vnni, arm64, or a target's. May be repeated.",
        ),
    ] = None,
    json: Annotated[Path | None, console.json_option("Write the result as JSON; - is stdout.")] = None,
) -> None:
    """Replay a bundle's golden vectors on a device.

    Compares token ids, graph outputs and answers. Ends with exit code 1 where they are not reproduced, and names
    the worst output.

    With --as, no device is asked: the 8-bit products are computed as that kind of CPU does, and the table tells how
    far its answers are from the golden vectors, and in which layers its 16-bit sums are too small.
    """
    from edgec import operations
    from edgec.errors import GateFailed

    found = operations.verify(bundle, on=on, kinds=kinds or (), say=console.say)
    if str(json) != "-":
        if kinds:
            _print_kinds(found)
        else:
            _print_requests(found)
        console.info(f"limits: max abs {found['limit_max_abs']:g}, min cosine {found['limit_min_cosine']:g}")
    if json is not None:
        console.write_json(json, found)
    if found["ok"]:
        return
    if kinds:
        beyond = [kind for kind, one in found["as"].items() if not one["within"]]
        raise GateFailed(
            f"{found['bundle']}: the answers on {' and '.join(beyond)} are beyond the bundle's limits", _remedy(beyond)
        )
    raise GateFailed(
        f"{found['bundle']} on {found['device']}: {found['failure']}",
        "export for a target that fits this machine: `edgec targets detect` names it",
    )


def _print_requests(found: dict[str, Any]) -> None:
    console.table(
        f"{found['bundle']} on {found['device']}",
        ["request", "ids equal", "answer equal", "max abs", "min cosine", "worst output"],
        [
            (
                str(one["index"]),
                "yes" if one["ids_equal"] else "NO",
                "yes" if one["answer_equal"] else "NO",
                f"{one['max_abs']:.3g}",
                f"{one['min_cosine']:.6f}",
                one["worst_output"],
            )
            for one in found["requests"]
        ],
    )


def _print_kinds(found: dict[str, Any]) -> None:
    console.table(
        f"{found['bundle']} against its golden vectors",
        ["kind", "max abs", "min cosine", "mean cosine", "within limits", "sums lost"],
        [
            (
                kind,
                f"{one['max_abs']:.3g}",
                f"{one['min_cosine']:.6f}",
                f"{one['mean_cosine']:.6f}",
                "yes" if one["within"] else "NO",
                str(one["sums_lost"]),
            )
            for kind, one in found["as"].items()
        ],
    )
    for kind, one in found["as"].items():
        if not one["layers"]:
            continue
        worst = one["layers"][:_WORST_LAYERS]
        console.table(
            f"{kind}: sums of two products that do not fit in 16 bits, {len(worst)} of {len(one['layers'])} layers",
            ["layer", "lost", "of", "share"],
            [
                (layer["layer"], str(layer["lost"]), str(layer["sums"]), f"{layer['lost'] / layer['sums']:.2e}")
                for layer in worst
            ],
        )


def _remedy(beyond: list[str]) -> str:
    if beyond == ["avx2"]:
        return "without VNNI 8-bit weights saturate: ship a bundle for the target x86_64-avx2 there, with 7-bit weights"
    return "export for the targets that have such CPUs, and ship to each its own bundle"

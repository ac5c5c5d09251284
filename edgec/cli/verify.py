"""`edgec verify`: does a bundle answer on a device as it did where it was made?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of the bundle.")],
    on: Annotated[
        str, typer.Option("--on", metavar="DEVICE", help="local, ssh://user@host[:port] or qemu://cpu.")
    ] = "local",
    json: Annotated[Path | None, console.json_option("Write the result as JSON; - is stdout.")] = None,
) -> None:
    """Replay a bundle's golden vectors on a device.

    Compares token ids, graph outputs and answers. Ends with exit code 1 where they are not reproduced, and names
    the worst output.
    """
    from edgec import pipeline
    from edgec.errors import GateFailed

    found = pipeline.verify(bundle, on=on, say=console.say)
    if str(json) != "-":
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
        console.info(f"limits: max abs {found['limit_max_abs']:g}, min cosine {found['limit_min_cosine']:g}")
    if json is not None:
        console.write_json(json, found)
    if not found["ok"]:
        raise GateFailed(
            f"{found['bundle']} on {found['device']}: {found['failure']}",
            "export for a target that fits this machine: `edgec targets detect` names it",
        )

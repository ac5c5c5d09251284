"""`edgec doctor`: what is wrong with this installation, and the cure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console


def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove torchaudio's compiled files where they cannot be loaded.")
    ] = False,
    install_emulator: Annotated[
        bool,
        typer.Option("--install-emulator", help="Download the arm64 system that --on qemu://CPU runs bundles in."),
    ] = False,
    json: Annotated[Path | None, console.json_option("Write the findings as JSON; - is stdout.")] = None,
) -> None:
    """Check this installation and name the cure of every fault.

    Exit code 1 when a fault remains; what is only missing or wasteful is a warning.
    """
    import dataclasses

    from edgec import doctor as checks
    from edgec.devices import sysroot

    if repair:
        for file in checks.repair():
            console.info(f"removed {file}")
    if install_emulator:
        sysroot.install(console.info)
    findings = checks.diagnose()
    healthy = all(finding.status != "fault" for finding in findings)
    if json is None or str(json) != "-":
        rows = [[finding.name, finding.status, finding.detail, finding.cure] for finding in findings]
        console.table("edgec doctor", ["check", "status", "detail", "cure"], rows)
    if json is not None:
        found = [dataclasses.asdict(finding) for finding in findings]
        console.write_json(json, {"healthy": healthy, "findings": found})
    if not healthy:
        raise typer.Exit(1)

"""`birdtune doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuning.cli import options as opt
from tuning.cli.inputs import read_recordings
from tuning.cli.output import err_console, out_console, print_result

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def doctor_command(
    data: Annotated[
        str | None, typer.Option("--data", help="Recordings whose files are looked for.", metavar="CSV|DIR")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Check Python, torch, the GPU, audio, Ray, memory, disk and data, and print a remedy for each fault.

    Exit code 0 without a fault, 1 with one.
    """
    from dataclasses import asdict

    from birdnet_core.data.building import default_cache
    from tuning.doctor import examine

    recordings = None if data is None else read_recordings(data)
    findings = []
    for finding in examine(default_cache(), Path("runs"), recordings):
        findings.append(finding)
        if as_json:
            continue
        out_console.print(f"{finding.state:8}", style=STYLES[finding.state], end="")
        out_console.print(f"{finding.name:17} {finding.found}")
        if finding.remedy:
            out_console.print(f"{'':26}{finding.remedy}")
    n_faults = sum(finding.state == "fault" for finding in findings)
    if as_json:
        print_result({"findings": [asdict(f) for f in findings], "n_faults": n_faults}, as_json)
    elif n_faults:
        err_console.print(f"{n_faults} fault{'s' if n_faults > 1 else ''}", style="bold red")
    else:
        out_console.print("no fault; try `birdtune demo`")
    raise typer.Exit(1 if n_faults else 0)

"""`birdtune status`, `dashboard` and `runs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from birdnet_core.errors import ConfigError
from tuning.cli import options as opt
from tuning.cli.output import err_console, out_console, print_result


def status_command(
    run: opt.Run,
    watch: Annotated[
        float | None,
        typer.Option(min=0.2, help="Draw it anew every so often, until Ctrl-C.", metavar="SECONDS"),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Print the state of a run, from another terminal while it runs, or after it; only reads."""
    from dataclasses import asdict

    from birdnet_core.records.run_folder import RunFolder
    from tuning.views.status import StatusReader, as_text

    reader = StatusReader(RunFolder.existing(run))
    if watch is None:
        status = reader.status()
        print_result(asdict(status), as_json, as_text(status))
        return
    if as_json:
        raise ConfigError("--json prints once, and --watch draws again and again; leave one of them out")
    import contextlib
    import time

    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(console=out_console, auto_refresh=False) as live:
        while True:
            live.update(as_text(reader.status()), refresh=True)
            time.sleep(watch)


def dashboard_command(
    run: opt.Run,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 8080,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
) -> None:
    """Serve a page that follows a run while it trains, on this machine alone, until Ctrl-C; only reads.

    On another machine, forward the port to yours: ssh -N -L 8080:127.0.0.1:8080 HOST
    """
    import contextlib
    import functools
    import json
    import signal
    import subprocess
    import tempfile
    import webbrowser

    from birdnet_core.records.run_folder import RunFolder
    from tuning.views.dashboard import Dashboard, optuna_command

    folder = RunFolder.existing(run)
    # In processes of their own: what draws takes hundreds of MB, which the server need not hold. They have
    # the modules of this process, and not those of a folder `reports` where the command was called.
    python = [sys.executable, "-P", "-m"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    @functools.cache
    def drawn(facts: str) -> str:
        command = [*python, "reports.page.live"]
        done = subprocess.run(
            command, input=facts, capture_output=True, text=True, env=environment, check=True
        )
        return done.stdout

    def page() -> str:
        studies = [folder.read_study(name) for name in folder.study_names()]
        keys = ("name", "question", "kind", "metric", "epochs")
        commands = {study["name"]: optuna_command(folder, study) for study in studies}
        return drawn(
            json.dumps(
                {
                    "run": str(run),
                    "studies": [{key: study.get(key) for key in keys} for study in studies],
                    "commands": {name: text for name, text in commands.items() if text},
                }
            )
        )

    report = [*python, "reports", str(folder.path.absolute())]
    with (
        tempfile.TemporaryDirectory(prefix="birdtune-dashboard-") as scratch,
        contextlib.closing(Dashboard(folder, port, page, report, environment, Path(scratch))) as dashboard,
        contextlib.suppress(KeyboardInterrupt),
    ):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the scratch folder would stay
        page()  # a folder of another version is refused here, and the first browser need not wait
        err_console.print(f"{dashboard.address} follows {run}; Ctrl-C ends it")
        has_screen = any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
        if has_screen and not no_browser:
            webbrowser.open(dashboard.address)
        dashboard.serve_forever()


def runs_command(
    folder: Annotated[
        Path, typer.Argument(callback=opt.local, help="A folder with run folders in it.", metavar="DIR")
    ],
    as_json: opt.Json = False,
) -> None:
    """List the run folders at or below a folder, newest first: study, state, best trial, begun, hours."""
    import textwrap
    from dataclasses import asdict

    from rich.console import Group

    from tuning.views.runs import list_runs
    from tuning.views.study_view import aligned

    rows, unreadable = list_runs(folder)
    header = ["run", "study", "kind", "state", "trials", "begun (UTC)", "hours", "version", "best trial"]
    lines = [
        [
            os.path.relpath(row.run, folder),
            row.study,
            row.kind,
            row.state + (f", {row.n_failed} failed" if row.n_failed else ""),
            f"{row.n_ended}/{row.n_trials}",
            row.begun[:16].replace("T", " "),
            f"{row.hours:.2f}",
            row.version or "",
            f"{row.metric} {row.best.value:.4f}: {textwrap.shorten(row.best.label, 70)}" if row.best else "",
        ]
        for row in rows
    ]
    result = {"runs": [asdict(row) for row in rows], "unreadable": [asdict(each) for each in unreadable]}
    print_result(result, as_json, Group(*aligned(header, lines)) if rows else "")
    for each in unreadable:
        err_console.print(f"cannot be read: {each.run}: {each.error}", style="yellow")
    if not rows:
        raise typer.Exit(1)

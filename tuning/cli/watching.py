"""`birdtune status` and `birdtune dashboard`."""

from __future__ import annotations

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
) -> None:
    """Show a copy of a run's searches in optuna-dashboard, on this machine alone, until Ctrl-C."""
    import contextlib
    import tempfile

    from birdnet_core.records.run_folder import RunFolder
    from tuning.views.dashboard import copy_storage, serve

    folder = RunFolder.existing(run)
    with tempfile.TemporaryDirectory(prefix="birdtune-dashboard-") as scratch:
        storage = copy_storage(folder, Path(scratch))
        err_console.print(f"http://127.0.0.1:{port} shows the searches as they are now; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            serve(storage, port)

"""What several verbs print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from birdnet_core.errors import BirdtuneError

# No markup: names come from the data. Only for people are lines broken, between words; a command is not.
out_console = Console(highlight=False, markup=False, soft_wrap=True)
err_console = Console(stderr=True, highlight=False, markup=False, soft_wrap=not sys.stderr.isatty())


def print_error(error: BirdtuneError) -> None:
    """Print an expected error: one clear message, without a traceback."""
    print_fault("\n       ".join(str(error).split("\n")))


def print_fault(text: str) -> None:
    err_console.print(Text.assemble(("error: ", "bold red"), text))


def list_skipped(skipped: list[dict[str, str]], fate: str = "left out") -> None:
    if skipped:
        n = f"{len(skipped)} recording{'' if len(skipped) == 1 else 's'}"
        err_console.print(f"{n} {fate}:", style="yellow")
        for item in skipped:
            err_console.print(f"  {item['path']}: {item['error']}")


def list_failures(run: Path) -> None:
    from birdnet_core.records.run_folder import RunFolder

    for record in RunFolder(run).records().values():
        if record.error and record.status != "infeasible":
            err_console.print(f"  {record.trial_id} {record.status}: {record.error}")


def print_result(result: dict[str, Any], as_json: bool, text: str | Group = "") -> None:
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    elif isinstance(text, Group):
        out_console.print(text)
    else:
        for line in text.split("\n"):
            out_console.print(line, soft_wrap=line.startswith("next: ") or not sys.stdout.isatty())


def in_words(value: Any) -> str:
    """Return a cell of a table, or settings as ``name=value``, numbers to five digits."""
    if isinstance(value, dict):
        return ", ".join(f"{k}={v:.5g}" if isinstance(v, float) else f"{k}={v}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """Give the path of a file for rows as they come, which has the name `out` once all are there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    try:
        yield partial
    except BirdtuneError:  # bad input: there are no rows
        partial.unlink(missing_ok=True)
        raise
    except BaseException:
        err_console.print(f"the rows until now are in {partial}")
        raise
    partial.replace(out)


@contextmanager
def recordings_bar(verb: str, n_files: int) -> Iterator[Callable[[float], None]]:
    """Draw a bar on a terminal while the block runs; give what moves it to a number of recordings."""
    bar = Progress(
        TextColumn(verb),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total} recordings"),
        TimeRemainingColumn(),
        console=err_console,
        transient=True,
        # Drawn by this thread alone: while a file is decoded, standard error belongs to the decoder.
        auto_refresh=False,
        disable=not err_console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=n_files)
        yield lambda n_read: bar.update(task, completed=n_read, refresh=True)

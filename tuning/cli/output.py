"""What several verbs print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console, Group
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
        if record.error:
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
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)

"""What several verbs print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from birdnet_core.errors import BirdtuneError

# No markup: names come from the data.
out_console = Console(highlight=False, soft_wrap=True, markup=False)
err_console = Console(stderr=True, highlight=False, markup=False)


def tell_error(error: BirdtuneError) -> None:
    """Print an expected error: one clear message, without a traceback."""
    lines = str(error).split("\n")
    err_console.print("error:", style="bold red", end=" ")
    err_console.print("\n       ".join(lines), soft_wrap=True)


def list_skipped(skipped: list[dict[str, str]], fate: str = "were left out") -> None:
    if skipped:
        err_console.print(f"{len(skipped)} recordings {fate}:", style="yellow")
        for item in skipped:
            err_console.print(f"  {item['path']}: {item['error']}", soft_wrap=True)


def list_failures(run: Path) -> None:
    from birdnet_core.records import RunFolder

    for record in RunFolder(run).records().values():
        if record.error:
            line = f"  {record.trial_id} {record.status}: {record.error}"
            err_console.print(line, soft_wrap=True)


def tell(result: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        out_console.print(text)


def in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)

"""Documents that are made from the code are what the code makes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_reference_of_verbs_is_that_of_the_commands(tmp_path):
    made = tmp_path / "verbs.md"
    command = [sys.executable, "-m", "typer", "tuning.cli", "utils", "docs", "--name", "birdtune"]
    subprocess.run(
        [*command, "--title", "Every verb", "--output", str(made)], cwd=ROOT, check=True, capture_output=True
    )
    assert made.read_text() == (ROOT / "docs" / "verbs.md").read_text(), "run `make docs`"

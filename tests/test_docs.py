"""Documents that are made from the code are what the code makes."""

import re
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


def test_every_file_of_the_packages_is_in_the_tree_of_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.split("## The tree")[1].split("```")[1]
    for package in ("birdnet_core", "search_spaces", "tuning", "reports"):
        for file in (ROOT / package).rglob("*.py"):
            if file.name not in ("__init__.py", "__main__.py") and file.parent.name != "studies":
                assert re.search(rf"\b{file.name}\b", tree), file

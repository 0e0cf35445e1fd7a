"""Documents that are made from the code are what the code makes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("sphinx", reason="no Sphinx here, which the extra `docs` installs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    path = os.environ | {"PYTHONPATH": "."}
    made = subprocess.run(command, cwd=ROOT, env=path, capture_output=True, text=True)
    assert (made.stderr, made.returncode) == ("", 0)
    pages = {page.relative_to(tmp_path): page.read_text() for page in tmp_path.rglob("*.html")}
    written = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert {page.relative_to(ROOT).with_suffix(".html") for page in written} <= set(pages)
    for name, text in pages.items():
        assert not re.search(r"""(src|<link[^>]* href)=["'](https?:)?//""", text), name

import ast
import subprocess
import sys
from pathlib import Path

import birdnet_core

NAMES = {"TrainConfig", "prepare", "Dataset", "Session", "train", "load_audio", "Classifier"}


def test_the_names_of_a_notebook_are_exported():
    assert set(birdnet_core.__all__) == NAMES <= set(dir(birdnet_core))
    for name in NAMES:
        assert getattr(birdnet_core, name).__name__ == name


def test_importing_the_package_loads_no_library():
    script = (
        "import sys, birdnet_core\n"
        "heavy = {'torch', 'numpy', 'pandas', 'soundfile', 'soxr'} & set(sys.modules)\n"
        "print('loaded:', *heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("loaded:", "")


def test_examples_import_these_names_from_the_package_itself():
    for file in (Path(__file__).parents[2] / "examples").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("birdnet_core."):
                assert not NAMES & {alias.name for alias in node.names}, file

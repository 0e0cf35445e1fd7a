"""Imports point one way; see docs/architecture.md."""

import ast
import graphlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("birdnet_core", "search_spaces", "tuning", "reports")
MODULES = {
    file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): file
    for package in PACKAGES
    for file in (ROOT / package).rglob("*.py")
}
FOUNDATION = {
    f"birdnet_core.{m}" for m in ("errors", "config", "conventions", "plugins", "registry", "records")
}

# What each package may import of the others, and which libraries it must do without.
MAY = {
    "birdnet_core": set(),
    "search_spaces": FOUNDATION | {"birdnet_core.presets"},
    "tuning": {"search_spaces", "birdnet_core"},
    "reports": {f"birdnet_core.{m}" for m in ("errors", "intervals", "processes", "records", "registry")},
}
NEVER = {
    "birdnet_core": {"ray", "optuna", "matplotlib", "scipy", "typer", "rich", "jinja2"},
    "search_spaces": {"ray", "torch", "torchaudio", "matplotlib", "scipy"},
    "tuning": {"matplotlib", "scipy"},
    "reports": {"ray", "torch", "torchaudio", "transformers"},
}


def imports(file: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it, also those for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: imports are absolute here"
            # `from birdnet_core import registry` imports a module, `from x.y import name` a name of x.y
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def is_allowed(module: str, allowed: set[str]) -> bool:
    return any(module == a or module.startswith(f"{a}.") for a in allowed)


def faults() -> list[str]:
    out = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            is_cli = name.startswith("tuning/cli/")
            for module in sorted(imports(file)):
                top = module.split(".")[0]
                if top in NEVER[package] and not is_cli:
                    out.append(f"{name} imports {module}")
                if is_cli or top not in PACKAGES or top == package:
                    continue
                if not is_allowed(module, MAY[package]):
                    out.append(f"{name} imports {module}")
    return out


def test_imports_point_one_way():
    assert faults() == []


def test_the_foundation_imports_nothing_of_the_rest():
    for module in FOUNDATION:
        path = ROOT / module.replace(".", "/")
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            own = {m for m in imports(file) if m.startswith("birdnet_core.")}
            assert all(is_allowed(m, FOUNDATION) for m in own), file


def test_no_modules_import_each_other_in_a_circle():
    """Neither at their top nor late, within a function."""
    graph = {name: imports(file) & set(MODULES) - {name} for name, file in MODULES.items()}
    del graph["birdnet_core"]  # loads what it exports when it is first used
    graphlib.TopologicalSorter(graph).prepare()


def test_git_ignores_no_module_of_the_packages():
    """What git ignores is in no clone, is not linted, and hatch leaves it out of the wheel."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    checked = subprocess.run(
        ["git", "check-ignore", "--no-index", *map(str, MODULES.values())],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stdout) == (1, ""), checked.stdout + checked.stderr

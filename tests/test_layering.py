"""Imports point one way; see docs/architecture.md."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("birdnet_core", "search_spaces", "tuning", "reports")
FOUNDATION = {f"birdnet_core.{m}" for m in ("errors", "checks", "config", "plugins", "registry", "records")}

# What each package may import of the others, and which libraries it must do without.
MAY = {
    "birdnet_core": set(),
    "search_spaces": FOUNDATION | {"birdnet_core.presets"},
    "tuning": {"search_spaces", "birdnet_core"},
    "reports": {f"birdnet_core.{m}" for m in ("errors", "checks", "intervals", "records", "registry")},
}
NEVER = {
    "birdnet_core": {"ray", "optuna", "matplotlib", "scipy", "typer", "rich", "jinja2"},
    "search_spaces": {"ray", "torch", "torchaudio", "matplotlib", "scipy"},
    "tuning": {"matplotlib", "scipy"},
    "reports": {"ray", "torch", "torchaudio", "transformers"},
}


def imports(file: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            # `from birdnet_core import registry` imports a module, `from x.y import name` a name of x.y
            is_package = node.module in PACKAGES
            found |= {f"{node.module}.{a.name}" for a in node.names} if is_package else {str(node.module)}
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
        own = {m for m in imports(ROOT / f"{module.replace('.', '/')}.py") if m.startswith("birdnet_core.")}
        assert own <= FOUNDATION, module

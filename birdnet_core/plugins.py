"""Python from outside birdtune that registers models, losses and other names, in every process that needs it.

A plugin is a module (``my_lab.models``) or a file (``my_losses.py``). The process that a user starts loads it
by name (`load`), or because an installed package declares it (entry point group ``birdtune.plugins``). The
processes that this one starts receive its plugins (`loaded`) and load the same (`load_shipped`). A study
in Python is a plugin where its file registers more than the study.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from birdnet_core.errors import ConfigError

GROUP = "birdtune.plugins"
_OWN = ("birdnet_core", "search_spaces", "tuning", "reports")


@dataclass(frozen=True)
class Plugin:
    """A module or file that registers names which are not birdtune's.

    Args:
        name: of the module, or the path of the file.
        kind: ``module`` and ``file`` were named by the user, ``installed`` is a module of an entry point, and
            ``study`` the file of a study.
        sha256: of the text of a file; of a module, of all Python files of its top-level package.
        version: of the installed package that a module belongs to; None where there is none.
        source: the text of a file, None of a module.
        folder: where the top-level package of a module lies.
    """

    name: str
    kind: Literal["module", "file", "study", "installed"]
    sha256: str
    version: str | None = None
    source: str | None = None
    folder: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def label(self) -> str:
        """The name without the folder of a file."""
        return self.name if self.source is None else Path(self.name).name

    def facts(self) -> dict[str, Any]:
        """Return the plugin's entry in records."""
        return {"name": self.label, "kind": self.kind, "version": self.version, "sha256": self.sha256}

    @property
    def module(self) -> str:
        """The name in `sys.modules`."""
        return self.name if self.source is None else f"birdtune_file_{Path(self.name).stem}"


_loaded: dict[str, Plugin] = {}  # by module
_has_loaded_installed = False


def loaded() -> list[Plugin]:
    """Return the plugins that this process has loaded, in order."""
    return list(_loaded.values())


def owner(module: str) -> Plugin | None:
    """Return the plugin that code of `module` came with; None for birdtune's own."""
    if module in _loaded:
        return _loaded[module]
    top = module.partition(".")[0]
    return next((p for p in _loaded.values() if p.source is None and p.name.partition(".")[0] == top), None)


def load(name: str) -> Plugin:
    """Load the module `name`, or the file where it ends in .py, and return the plugin.

    Python's path is searched, then the current folder. Raises ConfigError for a plugin that cannot be found
    or read, or that raises while it is imported.
    """
    if name.endswith(".py"):
        return load_file(Path(name).absolute(), source_of(name))
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    return load_module(name)


def source_of(path: str | Path) -> str:
    """Return the text of a Python file; ConfigError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not text in UTF-8: {error.reason}") from None


def digest(source: str) -> str:
    """Return the SHA-256 of the text of a file."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def load_file(path: str | Path, source: str) -> Plugin:
    """Run the text of the file `path`, and return the plugin; ConfigError where it raises."""
    plugin = Plugin(str(path), "file", digest(source), source=source)
    there = _loaded.get(plugin.module)
    if there and there.kind == "file" and there.name != plugin.name and there.sha256 != plugin.sha256:
        raise ConfigError(f"two plugins are files called {plugin.label}: {there.name}, {path}; rename one")
    try:
        execute(plugin)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the plugin {str(path)!r} raised {type(error).__name__}: {error}") from error
    return keep(plugin)


def execute(plugin: Plugin) -> types.ModuleType:
    """Run the text of a file as a module, and return it; its errors are not caught.

    The module is entered in `sys.modules`, where dataclasses and type hints look; `sys.path` is unchanged.
    """
    assert plugin.source is not None
    module = types.ModuleType(plugin.module)
    module.__file__ = plugin.name
    sys.modules[module.__name__] = module
    exec(compile(plugin.source, plugin.name, "exec"), module.__dict__)
    return module


def keep(plugin: Plugin) -> Plugin:
    """Enter a plugin as loaded, so that other processes load it too."""
    _loaded[plugin.module] = plugin
    return plugin


def load_shipped(plugin: Plugin) -> None:
    """Load a plugin of another process, unless this one has it; ConfigError where it cannot be loaded."""
    there = _loaded.get(plugin.module)
    if there is not None and there.sha256 == plugin.sha256:
        return
    if plugin.source is not None:
        load_file(plugin.name, plugin.source)
        keep(plugin)
        return
    if plugin.folder is not None and plugin.folder not in sys.path and Path(plugin.folder).is_dir():
        sys.path.append(plugin.folder)
    check_same(plugin)
    load_module(plugin.name, plugin.kind)


def check_same(plugin: Plugin) -> None:
    """Raise ConfigError where the module that this process would import is not the same as `plugin`."""
    _, sha256 = _located(plugin.name)
    if sha256 != plugin.sha256:
        raise ConfigError(
            f"the plugin {plugin.name!r} is another one here: the SHA-256 of its files is {sha256[:12]}, and "
            f"{plugin.sha256[:12]} is needed{f' (version {plugin.version})' if plugin.version else ''}"
        )


def load_installed() -> None:
    """Load the plugins that installed packages declare, at the first call."""
    global _has_loaded_installed
    if _has_loaded_installed:
        return
    _has_loaded_installed = True
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            load_module(point.module, "installed")
        except ConfigError as error:
            package = point.dist.name if point.dist else "an installed package"
            raise ConfigError(
                f"{error}; {package} declares it as an entry point ({GROUP}): mend or uninstall that package"
            ) from error


def load_module(name: str, kind: Literal["module", "file", "study", "installed"] = "module") -> Plugin:
    """Import a module from Python's path, and return the plugin; ConfigError as for `load`."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(
            f"--plugin {name!r} is not accepted; it takes a module such as my_lab.models, or a .py file"
        )
    top = name.partition(".")[0]
    if top in _OWN or top in sys.stdlib_module_names:
        raise ConfigError(
            f"the plugin {name!r} is a part of {'birdtune' if top in _OWN else 'Python'} itself"
        )
    folder, sha256 = _located(name)
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the plugin {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    there = _loaded.get(name)
    if there is not None and there.sha256 == sha256:
        return there
    return keep(Plugin(name, kind, sha256, version=_version(top), folder=folder))


def _located(name: str) -> tuple[str, str]:
    """Return the folder and the hash of a module's top-level package, without importing it."""
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ConfigError(
            f"the plugin {name!r} is not found: there is no module {top!r} where Python looks, nor in "
            f"{os.getcwd()}; give a module that is installed or lies here, or the path of a .py file"
        )
    roots = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [(file, file.relative_to(root)) for root in roots for file in sorted(root.rglob("*.py"))]
    if not roots and spec.origin and Path(spec.origin).is_file():
        files = [(Path(spec.origin), Path(Path(spec.origin).name))]
    if not files:
        raise ConfigError(
            f"the plugin {name!r} has no Python file in {', '.join(map(str, roots)) or spec.origin}"
        )
    hashed = hashlib.sha256()
    for file, relative in files:
        hashed.update(f"{relative.as_posix()}\n".encode())
        hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return str((roots or [files[0][0]])[0].parent), hashed.hexdigest()


def _version(top: str) -> str | None:
    packages = importlib.metadata.packages_distributions().get(top)
    return importlib.metadata.version(packages[0]) if packages else None

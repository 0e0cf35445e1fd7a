"""Studies by name: built-in ones, and those in files of a user's own.

A file is in YAML, or in Python with one function that it registers; it may register models, losses, features
and augmentations as well. Every fault of a file is a ConfigError with its line.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from birdnet_core import plugins
from birdnet_core.config import component
from birdnet_core.errors import ConfigError
from birdnet_core.registry import COMPONENTS, Entry, studies
from search_spaces.files.study_yaml import parse_study
from search_spaces.space import SAMPLES, sample
from search_spaces.study import Ablation, Search, Study, in_quick_size

YAML, PYTHON = (".yaml", ".yml"), (".py",)


def is_study_file(name: str) -> bool:
    """Return whether `name` is that of a file, not of a registered study."""
    return Path(name).suffix.lower() in (*YAML, *PYTHON)


def read_source(name: str) -> str:
    """Return the text of a study file; ConfigError where it cannot be read."""
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the study {name!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the study {name!r} is not text in UTF-8: {error.reason}") from None


def load_study(
    name: str, *, quick: bool = False, options: Mapping[str, Any] | None = None, source: str | None = None
) -> Study:
    """Return the study `name`, with `quick` in its quick size.

    A name that ends in .yaml, .yml or .py is a file of the user's own; `source` replaces its content.
    `options` are values for the study's keyword-only parameters. Raises ConfigError for an unknown name or
    option, and for a file without a study.
    """
    study = _from_file(name, options or {}, source) if is_study_file(name) else _built_in(name, options or {})
    return in_quick_size(study) if quick else study


def _built_in(name: str, options: Mapping[str, Any]) -> Study:
    try:
        entry = studies[name]
    except ConfigError as error:
        raise ConfigError(f"{error}; a study of your own is a .yaml or .py file") from None
    made: Study = entry.make(**component(studies, name, options).kwargs)
    return replace(made, name=name, question=entry.summary)


def _from_file(name: str, options: Mapping[str, Any], source: str | None) -> Study:
    text = read_source(name) if source is None else source
    if Path(name).suffix.lower() in PYTHON:
        return _from_python(text, name, options)
    if options:
        raise ConfigError(f"{name} has no option {', '.join(options)}: a study in YAML takes none")
    return parse_study(text, Path(name))


def _from_python(text: str, name: str, options: Mapping[str, Any]) -> Study:
    plugin = plugins.Plugin(name, "study", plugins.digest(text), source=text)
    try:
        with studies.apart() as registered:
            with _with_line(name, 1):
                plugins.execute(plugin)
                entry = _the_only(registered)
            chosen = component(studies, entry.name, options)
        code = getattr(inspect.unwrap(entry.make), "__code__", None)
        with _with_line(name, code.co_firstlineno if code else 1):
            made = entry.make(**chosen.kwargs)
            _check(made, entry)
            study: Study = replace(made, name=entry.name, question=entry.summary)
    finally:
        # A file that registers a model or a loss stays loaded, also in the processes that train.
        if any(plugin.module in registry.modules() for registry in COMPONENTS):
            plugins.keep(plugin)
        else:
            del sys.modules[plugin.module]
    return study


def _the_only(registered: dict[str, Entry]) -> Entry:
    if not registered:
        raise ConfigError(
            "no study in this file; decorate a function that returns an Ablation or a Search with "
            '@register_study("name")'
        )
    if len(registered) > 1:
        raise ConfigError(f"{len(registered)} studies in this file ({', '.join(registered)}); it takes one")
    return next(iter(registered.values()))


def _check(study: Any, entry: Entry) -> None:
    """Make the cells of an ablation, or sample a search, so that faults show before anything runs."""
    if not isinstance(study, (Ablation, Search)):
        returned = type(study).__name__
        raise ConfigError(f"study {entry.name!r} returned a {returned}; it returns an Ablation or a Search")
    if not entry.summary:
        raise ConfigError(f"study {entry.name!r} has no docstring; its first line is the question")
    if isinstance(study, Ablation):
        study.cells()
        return
    for trial in sample(study.space, SAMPLES):
        if not isinstance(trial.settings, dict):
            raise ConfigError(
                f"the space of a search returned {trial.settings!r}; it returns a dict of settings, such as "
                '{"optim.lr": 1e-3}'
            )


@contextmanager
def _with_line(name: str, line: int) -> Iterator[None]:
    """Raise what the user's code raises as a ConfigError with its line; `line` where it has none."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name
        ]
        line = lines[-1] if lines and lines[-1] else line
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, SyntaxError) and error.filename == name:
            line, what = error.lineno or line, f"this is no Python: {error.msg}"
        elif isinstance(error, ModuleNotFoundError):
            what += "; a study is one file, and imports what is installed"
        elif isinstance(error, ConfigError):
            what = str(error)
        raise ConfigError("\n".join(f"{name}:{line}: {each}" for each in what.split("\n"))) from error

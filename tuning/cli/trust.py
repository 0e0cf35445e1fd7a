"""Whose code runs when a run continues: the user's own, and that of a run folder only with their consent.

A run folder keeps the text of a study in Python and of plugin files, and is handed on. So `resume` and its
like run such text only where the user gives the same file, or says `--trust`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from birdnet_core import plugins
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.run_folder import RunFolder
from tuning.cli.request import Request


def is_python(study: str) -> bool:
    """Return whether the study is a file whose text is run."""
    return Path(study).suffix.lower() == ".py"


def load_code(
    run: RunFolder,
    study: str,
    request: Request,
    *,
    files: Sequence[str] = (),
    trust: bool = False,
    with_study: bool = True,
) -> None:
    """Load the plugins of a request, and raise ConfigError where that, or the study, needs the user's word.

    `files` are the user's own copies; a copy counts where its content is that of the run folder. A module is
    imported by its name, from where Python looks, if its files are what they were. Without `with_study` the
    study's own text will not be run.
    """
    copies = {plugins.digest(plugins.source_of(file)): file for file in files if is_python(file)}
    copies |= {each.sha256: each.name for each in plugins.loaded() if each.source is not None}
    texts = [
        (f"plugin {p.label!r}", p.name, p.source, "--plugin") for p in request.plugins if p.kind == "file"
    ]
    if with_study and is_python(request.study):
        texts.append((f"study {study!r}", request.study, request.source, "--study"))
    for what, path, source, option in texts:
        if source is None:
            raise RunFolderError(f"{str(run.path)!r} does not hold the text of {path!r}, its {what}")
        if not trust and plugins.digest(source) not in copies:
            _refuse(run, study, what, path, source, option, files)
    named = {each.name: each.sha256 for each in plugins.loaded()}
    for plugin in request.plugins:
        if plugin.name in named or plugin.sha256 in copies:
            continue
        if plugin.source is not None:
            plugins.load_file(plugin.name, plugin.source)
            continue
        try:
            plugins.check_same(plugin)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; {str(run.path)!r} was started with it: give --plugin {plugin.name} where it can "
                "be imported, to continue with what it is now"
            ) from None
        plugins.load_module(plugin.name)


def _refuse(
    run: RunFolder, study: str, what: str, path: str, source: str, option: str, files: Sequence[str]
) -> None:
    sha256 = plugins.digest(source)
    others = [
        f"{file} is another text (SHA-256 {plugins.digest(plugins.source_of(file))[:12]})" for file in files
    ]
    where = run.path / "studies" / f"{study}.json"
    raise ConfigError(
        f"{what} of {str(run.path)!r} is Python, {Path(path).name} (SHA-256 {sha256[:12]}), and would be run "
        f"from the run folder, which may come from anyone{': ' if others else ''}{', '.join(others)}\n"
        f"give your own copy of the file, {option} {Path(path).name}, which must have the same text; or, "
        f"after a look at `request` in {where}, --trust"
    )

"""Studies by name: built-in ones, and those in files of a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdnet_core import registry
from birdnet_core.config import component
from birdnet_core.errors import ConfigError
from search_spaces.files.study_file import is_study_file, study_from_file
from search_spaces.study import Study, in_quick_size


def load_study(
    name: str, *, quick: bool = False, options: Mapping[str, Any] | None = None, source: str | None = None
) -> Study:
    """Return the study `name`, with `quick` in its quick size.

    A name that ends in .yaml, .yml or .py is a file of the user's own; `source` replaces its content.
    `options` are values for the study's keyword-only parameters. Raises ConfigError for an unknown name or
    option, and for a file without a study.
    """
    study: Study
    if is_study_file(name):
        study = study_from_file(name, options or {}, source)
    else:
        try:
            entry = registry.studies[name]
        except ConfigError as error:
            raise ConfigError(f"{error}; a study of your own is a .yaml or .py file") from None
        chosen = component(registry.studies, name, options or {})
        study = replace(entry.make(**chosen.kwargs), name=name, question=entry.summary)
    return in_quick_size(study) if quick else study

"""What options name: recordings, a config, a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from birdnet_core.errors import ConfigError, DataError, did_you_mean
from tuning.cli.options import parse_settings
from tuning.cli.output import err_console

if TYPE_CHECKING:
    import pandas as pd

    from birdnet_core.config import TrainConfig
    from search_spaces.study import Study
    from tuning.views.live import StageBars


def read_recordings(source: str) -> pd.DataFrame:
    """Return the manifest that ``--data`` names: a CSV, a folder per species, or synthetic birds."""
    from birdnet_core.data.building import default_cache
    from birdnet_core.data.manifest import index_folder, read_manifest
    from birdnet_core.demo.synthetic import cached_synthetic_birds

    if source == "synthetic":
        return read_manifest(cached_synthetic_birds(default_cache()))
    if Path(source).is_dir():
        return index_folder(source)
    if not Path(source).exists():
        raise DataError(
            f"no recordings at {source!r}: there is no such file or folder; give a manifest CSV, "
            "a folder with one folder per species, or 'synthetic'"
        )
    return read_manifest(source)


def read_config(source: str) -> TrainConfig:
    """Return the config of a preset, or in best.json, a trial's record or a config file."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.presets import PRESETS, preset
    from birdnet_core.records.files import read_json

    if source in PRESETS:
        return preset(source)
    if not Path(source).exists():
        raise ConfigError(
            f"no config at {source!r}: there is no such file{did_you_mean(source, PRESETS)}; give best.json, "
            f"a trial's record, a config as JSON, or a preset ({', '.join(PRESETS)})"
        )
    content = read_json(Path(source))
    config = content.get("config", {k: v for k, v in content.items() if k != "schema"})
    if not isinstance(config, dict):
        raise ConfigError(f"{source!r} holds no config: 'config' is {config!r:.80}; it takes an object")
    return TrainConfig.from_dict(config)


def prepared(
    source: str, settings: list[str] | None, workers: int | None, bars: StageBars | None = None
) -> tuple[pd.DataFrame, dict[str, Any], Path]:
    """Return the manifest, the dataset's facts and its folder, under a bar for each stage."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import Dataset, prepare
    from tuning.views.live import StageBars

    config = TrainConfig().override(parse_settings(settings))
    bars = bars or StageBars(err_console)
    with bars.live():
        manifest = read_recordings(source)
        folder = prepare(manifest, config, workers=workers, progress=bars)
    return manifest, Dataset.open(folder).facts, folder


def find_study(
    name: str,
    *,
    quick: bool,
    options: dict[str, Any],
    repeats: int | None = None,
    trials: int | None = None,
    scheduler: str | None = None,
    audit: float | None = None,
    folds: bool | None = None,
    constraints: Sequence[str] = (),
    source: str | None = None,
) -> Study:
    """Return the study `name`; ConfigError for repeats of a search, and for options of one in an ablation."""
    from dataclasses import replace

    import optuna

    from birdnet_core.records.bounds import parse_constraint
    from search_spaces.loading import load_study
    from search_spaces.study import Search, in_size

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = load_study(name, quick=quick, options=options, source=source)
    if constraints:
        bounds = tuple(parse_constraint(text, "--constraint") for text in constraints)
        study = replace(study, constraints=bounds)
    if isinstance(study, Search):
        if repeats is not None:
            raise ConfigError(
                f"{name!r} is a search: use --trials, not --repeats; `birdtune sweep --folds` trains its "
                "best configs on all folds"
            )
        given: dict[str, Any] = {"scheduler": scheduler, "audit": audit, "folds": folds}
        study = replace(study, **{name: value for name, value in given.items() if value is not None})
        return in_size(study, None, trials)
    if trials is not None:
        raise ConfigError(f"{name!r} is an ablation: its trials are its cells; use --repeats, not --trials")
    for option, value in (("--scheduler", scheduler), ("--audit", audit), ("--folds", folds)):
        if value is not None:
            raise ConfigError(
                f"{name!r} is an ablation: every cell trains its whole budget; {option} is for searches"
            )
    return in_size(study, repeats, None)

"""The request for a sweep from the command line: one value, which the run folder keeps for `resume`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from birdnet_core.errors import RunFolderError
from birdnet_core.plugins import Plugin
from birdnet_core.records.checks import Types, check_fields
from tuning.cli.inputs import find_study
from tuning.engine.halt import Budget
from tuning.engine.packing import Resources

if TYPE_CHECKING:
    from birdnet_core.config import TrainConfig
    from birdnet_core.records.run_folder import RunFolder
    from search_spaces.study import Study


@dataclass(frozen=True, kw_only=True)
class Request:
    """A sweep as the command line asks for it.

    Args:
        study: the name of a study, or the absolute path of its file.
        source: what that file held.
        name: of the study in the run folder, where it is not its own.
        data: ``synthetic``, or the absolute path of a manifest or a folder.
        base: the config that all trials start from, None for the defaults.
        settings: what ``--set`` changes in every trial; `options`: what ``--option`` changes in the study.
        warm_start: the absolute path of the earlier run. enqueue: the configs that are trained first.
        plugins: modules and files that ``--plugin`` named.

    The other fields are the options of `birdtune sweep` of the same name.
    """

    study: str
    source: str | None = None
    name: str | None = None
    data: str = "synthetic"
    base: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    repeats: int | None = None
    trials: int | None = None
    quick: bool = False
    resources: Resources = field(default_factory=Resources)
    address: str | None = None
    workers: int | None = None
    sampler: str = "tpe"
    scheduler: str | None = None
    audit: float | None = None
    folds: bool | None = None
    constraints: tuple[str, ...] = ()
    warm_start: str | None = None
    enqueue: tuple[dict[str, Any], ...] = ()
    storage: str = "journal"
    budget: Budget = field(default_factory=Budget)
    tensorboard: bool = False
    plugins: tuple[Plugin, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the request as a JSON object."""
        return asdict(self)

    @classmethod
    def of(cls, run: RunFolder, study: str) -> Request:
        """Return the request that `study` of a run was started with.

        Raises RunFolderError where another program started it, and for a request that no command line can
        have made.
        """
        content = run.read_study(study)
        values = content.get("request")
        if values is None:
            command = (content.get("provenance") or {}).get("command")
            again = f"repeat `{command}`" if command else "call sweep() again with its arguments"
            raise RunFolderError(
                f"study {study!r} in {str(run.path)!r} was not started by `birdtune sweep`; {again}, which "
                "continues it"
            )
        where = f"the request of study {study!r} in {str(run.path)!r} was altered"
        read = _read(cls, values, where)
        read["budget"] = Budget(**_read(Budget, read["budget"], f"{where}: the budget"))
        read["resources"] = Resources(**_read(Resources, read["resources"], f"{where}: the resources"))
        read["plugins"] = tuple(
            Plugin(**_read(Plugin, each, f"{where}: a plugin")) for each in read["plugins"]
        )
        return cls(**read)

    def load_study(self) -> Study:
        """Return the study: that of a file as the file was when the run was started."""
        study = find_study(
            self.study,
            quick=self.quick,
            options=self.options,
            repeats=self.repeats,
            trials=self.trials,
            scheduler=self.scheduler,
            audit=self.audit,
            folds=self.folds,
            constraints=self.constraints,
            source=self.source,
        )
        return replace(study, name=self.name or study.name)

    def base_config(self) -> TrainConfig:
        """Return the config that all trials start from."""
        from birdnet_core.config import TrainConfig

        return TrainConfig.from_dict(self.base or {})

    def file_note(self) -> str | None:
        """Return a sentence where the study's file is no longer what the run was started with."""
        file = Path(self.study)
        if self.source is None:
            return None
        if not file.is_file():
            state = "is gone"
        elif file.read_text(encoding="utf-8-sig", errors="replace") != self.source:
            state = "has changed since this run was started"
        else:
            return None
        return f"{file} {state}: the run continues with what it was then, which its folder keeps"


def _read(of: type, values: Any, where: str) -> dict[str, Any]:
    """Return the fields of a dataclass from a JSON object; RunFolderError for those of another type."""
    types = {name: _types_of(hint) for name, hint in get_type_hints(of).items()}
    check_fields(where, values, types, {})
    if unknown := set(values) - set(types):
        raise RunFolderError(f"{where}: it holds {', '.join(map(repr, sorted(unknown)))}, which is unknown")
    return dict(values)


def _types_of(hint: Any) -> Types:
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return tuple(each for part in get_args(hint) for each in _types_of(part))
    special: dict[Any, Types] = {float: (float, int), tuple: (list,), Literal: (str,)}
    return (dict,) if is_dataclass(kind) else special.get(kind, (kind,))

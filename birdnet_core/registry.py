"""Registries of models, losses, features, backbones, augmentations and studies: names that become code.

Every plug-in point is a `Registry`: a file in the package of that kind decorates one callable, and the
callable's keyword-only parameters become the options of that name. Nothing is imported before a name is
first looked up, so importing this module needs no torch. `plugins` adds a user's own names.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from birdnet_core import plugins
from birdnet_core.errors import ConfigError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a registered callable."""

    name: str
    annotation: Any
    default: Any


@dataclass(frozen=True)
class Entry:
    """A registered callable with its summary and options."""

    name: str
    make: Callable[..., Any]
    summary: str
    options: dict[str, Option]

    def defaults(self) -> dict[str, Any]:
        """Return the default of every option."""
        return {option.name: option.default for option in self.options.values()}


class Registry:
    """The names of one kind, filled by importing every module of `package` at the first look-up."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._is_complete = False

    def register(self, name: str) -> Callable[[F], F]:
        """Enter the decorated callable under `name`; its keyword-only parameters are its options.

        Raises ConfigError when the name is taken by another callable, or an option lacks a default.
        """

        def decorate(make: F) -> F:
            known = self._entries.get(name)
            if known is not None and _origin(known.make) != _origin(make):
                raise ConfigError(
                    f"{self.kind} {name!r} is registered twice: by {_origin(known.make)} "
                    f"and by {_origin(make)}; give one of them another name"
                )
            summary = (inspect.getdoc(make) or "").split("\n", 1)[0]
            self._entries[name] = Entry(name, make, summary, self._options(name, make))
            return make

        return decorate

    @contextlib.contextmanager
    def apart(self) -> Iterator[dict[str, Entry]]:
        """Collect the names that are registered while the block runs, and keep them out of the registry."""
        self._complete()
        kept, self._entries = self._entries, {}
        try:
            yield self._entries
        finally:
            self._entries = kept

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._complete()
        return sorted(self._entries)

    def modules(self) -> set[str]:
        """Return the modules that registered something, without importing any."""
        return {entry.make.__module__ for entry in self._entries.values()}

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of `name`; raises ConfigError that lists the known names."""
        self._complete()
        try:
            return self._entries[name]
        except KeyError:
            known = self.names()
            raise ConfigError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, known)} (known: {', '.join(known)}; "
                "one of your own comes with --plugin)"
            ) from None

    def _complete(self) -> None:
        if self._is_complete:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._is_complete = True
        plugins.load_installed()

    def _options(self, name: str, make: Callable[..., Any]) -> dict[str, Option]:
        hints = typing.get_type_hints(make.__init__ if inspect.isclass(make) else make)
        options = {}
        for parameter in inspect.signature(make).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            if parameter.default is parameter.empty:
                raise ConfigError(f"{self.kind} {name!r}: option {parameter.name!r} has no default")
            options[parameter.name] = Option(
                parameter.name, hints.get(parameter.name, Any), parameter.default
            )
        return options


models = Registry("model", "birdnet_core.models")
losses = Registry("loss", "birdnet_core.losses")
features = Registry("feature", "birdnet_core.features")
backbones = Registry("backbone", "birdnet_core.backbones")
augmentations = Registry("augmentation", "birdnet_core.augment")
studies = Registry("study", "search_spaces.studies")


COMPONENTS = (models, losses, features, backbones, augmentations)
"""The registries whose names a config holds; `studies` vary configs."""


def load_shipped(shipped: Iterable[Mapping[str, Any]]) -> None:
    """Load the plugins of another process (`Plugin.to_dict`); ConfigError for one that cannot be loaded."""
    for values in shipped:
        plugin = plugins.Plugin(**values)
        # A study's file may name its study like a registered one; a worker does not need it.
        with studies.apart() if plugin.kind == "study" else contextlib.nullcontext():
            plugins.load_shipped(plugin)


def checked_value(value: Any, annotation: Any, where: str) -> Any:
    """Return `value` in the type of `annotation`, or raise ConfigError that names `where`.

    An int is accepted for a float and a list for a tuple; nothing else is converted, so that 3.5 or 3.0 for
    an int and "yes" for a bool are errors. So are inf and nan, which JSON cannot hold.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} = {value!r} is not a finite number; it takes {describe_type(annotation)}")
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        for member in arguments:
            try:
                return checked_value(value, member, where)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)) and (arguments[-1] is ... or len(arguments) == len(value)):
            members = arguments[:1] * len(value) if arguments[-1] is ... else arguments
            return tuple(checked_value(v, a, where) for v, a in zip(value, members, strict=True))
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # An int may be larger than any float.
            with contextlib.suppress(OverflowError):
                return float(value)
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif annotation is type(None):
        if value is None:
            return None
    elif isinstance(value, annotation):
        return value
    raise ConfigError(f"{where} = {value!r} is not accepted; it takes {describe_type(annotation)}")


def describe_type(annotation: Any) -> str:
    """Return a type in words: ``int``, ``float or none``, ``'a' or 'b'``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(a) for a in arguments)
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in arguments)
    if annotation is type(None):
        return "none"
    return getattr(annotation, "__name__", str(annotation)) if origin is None else str(annotation)


def _origin(make: Callable[..., Any]) -> str:
    return f"{make.__module__}.{make.__qualname__}"

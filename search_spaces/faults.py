"""What is wrong with a study, and where: values, to which a study file adds its lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from birdnet_core.errors import ConfigError

Place = tuple[str | int, ...]
"""Keys and indices that lead to a value of a study as a file nests them: ``("factors", "optim.lr", 1)``."""


@dataclass(frozen=True)
class Fault:
    """What is wrong at `place`: a sentence with what was given and what is accepted."""

    place: Place
    text: str


class StudyError(ConfigError):
    """A study cannot be used, for all of its `faults`."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)  # as the arguments, so that it can be pickled
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(fault.text for fault in self.faults)


@contextmanager
def collected(faults: list[Fault], *place: str | int, lead: str = "") -> Iterator[None]:
    """Add the faults that the block raises to `faults`, within `place` and with `lead` before their texts."""
    try:
        yield
    except StudyError as error:
        faults += [Fault((*place, *fault.place), lead + fault.text) for fault in error.faults]
    except ConfigError as error:
        faults.append(Fault(place, f"{lead}{error}"))

"""Everything that birdtune touches of Ray beyond its public interface, for Ray 2.60 and newer.

`tests/tuning/engine/test_ray_internals.py` fails where a new Ray has changed one of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray._private import state
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial

_task_failed = RayActorManager._actor_task_failed


def take_low_memory_for_death() -> None:
    """Let Ray Tune take a process that Ray's memory monitor ended for a dead one.

    Ray raises OutOfMemoryError for it, which Tune does not expect: it would end the whole sweep.
    """

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception).splitlines()[0])
        _task_failed(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed  # type: ignore[method-assign]


def node_of_dead(error: Exception | None) -> str | None:
    """Return the id of the node whose process died with `error`; None where Ray does not know.

    Ray's public interface has it in the dashboard alone, which is not started.
    """
    if not isinstance(error, RayActorError) or not error.actor_id:
        return None
    facts = state.actors(error.actor_id) or {}
    node: str | None = facts.get("Address", {}).get("NodeID")
    return node or None


def error_of(trial: Trial) -> Exception | None:
    """Return what Ray raised for a trial, None where it raised nothing.

    From the trial's local folder: `Trial.get_pickled_error` looks in the storage, where it is not yet.
    """
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    with open(path, "rb") as file:
        error: Exception = cloudpickle.load(file)
    return error


def drop_results(trial: Trial) -> None:
    """Drop what Ray keeps of a trial that is over: a tenth of a megabyte that nobody reads."""
    trial.run_metadata.last_result = {"done": True}
    trial.run_metadata.metric_analysis = {}
    trial.run_metadata.metric_n_steps = {}


def stop_before_start(tune_controller: Any, trial: Trial) -> None:
    """Stop a trial that waits for a process. Ray reads the local folder of every trial at the end."""
    trial.init_local_path()
    tune_controller.stop_trial(trial)

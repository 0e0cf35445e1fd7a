import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

from tuning.engine.nodes import take_low_memory_for_death


class Tracked:
    """What Ray's manager of actors knows of one, as far as it is asked."""

    actor_id = 1

    def __init__(self, tell):
        self._tracked_actor = self
        self._on_error = lambda actor, error: tell(error)


def test_a_process_that_rays_memory_monitor_ended_is_a_dead_one_to_tune(monkeypatch):
    monkeypatch.setattr(RayActorManager, "_cleanup_actor", lambda self, tracked_actor: None)
    # Put back at the end.
    monkeypatch.setattr(RayActorManager, "_actor_task_failed", RayActorManager._actor_task_failed)
    manager = RayActorManager(resource_manager=None)
    low = OutOfMemoryError("1 worker was killed: the node runs low on memory.\nTop 10 users of memory: ...")
    with pytest.raises(RuntimeError, match="unexpected"):  # as soon as this fails, drop ours
        manager._actor_task_failed(Tracked(print), low)
    take_low_memory_for_death()
    told = []
    manager._actor_task_failed(tracked_actor_task=Tracked(told.append), exception=low)
    assert {type(error) for error in told} == {RayActorError}
    assert str(told[0]) == "1 worker was killed: the node runs low on memory."
    with pytest.raises(RuntimeError, match="unexpected"):
        manager._actor_task_failed(Tracked(print), ObjectLostError("?", None, ""))

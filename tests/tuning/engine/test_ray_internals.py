import os

import pytest
import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from tuning.engine.ray_internals import drop_results, error_of, node_of_dead, take_low_memory_for_death


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
        manager._actor_task_failed(Tracked([].append), low)
    take_low_memory_for_death()
    errors = []
    manager._actor_task_failed(tracked_actor_task=Tracked(errors.append), exception=low)
    assert {type(error) for error in errors} == {RayActorError}
    assert str(errors[0]) == "1 worker was killed: the node runs low on memory."
    with pytest.raises(RuntimeError, match="unexpected"):
        manager._actor_task_failed(Tracked([].append), ObjectLostError("?", None, ""))


@pytest.mark.ray
def test_what_ray_raised_for_a_trial_is_read_from_its_folder(cluster, tmp_path):
    trial = Trial("TrainTrial", stub=True, storage=StorageContext(str(tmp_path), "sweep"))
    trial.init_local_path()
    assert error_of(trial) is None
    trial.handle_error(RayActorError(error_msg="its process is gone"))
    found = error_of(trial)
    assert isinstance(found, RayActorError) and str(found) == "its process is gone"


def test_what_ray_keeps_of_a_trial_is_dropped_at_its_end():
    trial = Trial("TrainTrial", stub=True)
    trial.update_last_result({"val/f1_macro": 0.5, "record": "x" * 10_000, "training_iteration": 1})
    before = len(trial.get_json_state()[1])
    drop_results(trial)
    assert len(trial.get_json_state()[1]) < before - 10_000
    assert (trial.last_result, trial.metric_analysis) == ({"done": True, "trial_id": trial.trial_id}, {})


@pytest.mark.ray
def test_the_node_of_a_process_that_died_is_known(cluster):
    @ray.remote(num_cpus=0)
    class Dying:
        def die(self):
            os._exit(1)

    with pytest.raises(RayActorError) as caught:
        ray.get(Dying.remote().die.remote())
    (node,) = ray.nodes()
    assert node_of_dead(caught.value) == node["NodeID"]
    assert node_of_dead(ValueError()) is None

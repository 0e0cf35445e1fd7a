from types import SimpleNamespace

from ray.tune.experiment import Trial

from birdnet_core.config import TrainConfig
from birdnet_core.records import RunFolder
from tuning.dispatch import Dispatcher
from tuning.journal import Journal
from tuning.placement import Placement
from tuning.searcher import PlannedSearcher


def test_a_trial_whose_process_never_started_is_entered_and_recorded(tmp_path):
    config = TrainConfig()
    line = {"study": "x", "trial_id": config.trial_id, "number": 0, "factors": {}}
    trial = SimpleNamespace(
        trial_id="ray-1",
        config={"config": config.to_dict(), "journal": line, "resources": {"cpu": 1.0, "gpu": 0.0}},
        last_result=None,
        pickled_error_file=None,
    )
    seen = []
    journal = Journal(RunFolder(tmp_path), seen.append)
    dispatcher = Dispatcher(
        PlannedSearcher([trial.config]), journal, Placement(cpus=1, gpus=0.0, concurrent=1), restarts=0
    )
    dispatcher.suggest("ray-1")
    journal.keep_error(trial)
    dispatcher.on_trial_complete("ray-1", error=True)
    assert [e["event"] for e in seen] == ["trial", "restart"]  # once more, in another process
    dispatcher.suggest("ray-1")
    dispatcher.on_trial_complete("ray-1", error=True)
    assert [e["event"] for e in seen] == ["trial", "restart", "end"]
    assert (seen[0]["cpus"], seen[0]["gpus"]) == (1.0, 0.0)
    assert journal.members("x") == {config.trial_id}
    record = RunFolder(tmp_path).records()[config.trial_id]
    assert (record.status, record.epochs) == ("failed", 0)
    assert record.config == config.to_dict()


def test_what_ray_keeps_of_a_trial_is_dropped_at_its_end(tmp_path):
    trial = Trial("TrainTrial", stub=True)
    trial.update_last_result({"val/f1_macro": 0.5, "record": "x" * 10_000, "training_iteration": 1})
    before = len(trial.get_json_state()[1])
    Journal(RunFolder(tmp_path), print).on_trial_complete(0, [trial], trial)
    assert len(trial.get_json_state()[1]) < before - 10_000
    assert (trial.last_result, trial.metric_analysis) == ({"done": True, "trial_id": trial.trial_id}, {})

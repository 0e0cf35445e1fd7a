"""What a search survives: its Optuna study, its records and its journal agree whatever was killed."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.bounds import Bound
from birdnet_core.records.run_folder import RunFolder
from reports import choose, load
from search_spaces.study import Ablation, Search
from tests.settings import SMALL
from tests.tuning.engine import driver
from tests.tuning.engine.test_faults import events, wait_for
from tuning.engine import preparation
from tuning.engine.halt import Budget
from tuning.engine.launch import Resources, sweep
from tuning.engine.searcher import open_storage
from tuning.views.status import run_status

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[3]
STATE_OF = {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "diverged": "FAIL"}


def optuna_trials(run, name="rates"):
    run = RunFolder(run)
    storage = open_storage(run.read_study(name)["storage"], run)
    trials = optuna.load_study(study_name=name, storage=storage).get_trials()
    storage.remove_session()
    return trials


def check_agreement(run, name="rates", n_trials=12):
    """Every trial has one record, one state in Optuna that agrees with it, and each of its epochs once."""
    records = RunFolder(run).records()
    trials = optuna_trials(run, name)
    assert len(trials) == n_trials
    by_number = {e["number"]: e["trial_id"] for e in events(run, "trial") if e["study"] == name}
    assert {t.number: t.user_attrs["trial_id"] for t in trials} == by_number
    assert set(records) == set(by_number.values())
    for trial in trials:
        assert trial.state.name == STATE_OF[records[trial.user_attrs["trial_id"]].status], trial
    trained = Counter((e["trial_id"], e["epoch"]) for e in events(run, "epoch"))
    assert set(trained.values()) <= {1}
    for trial in trials:
        name_of = trial.user_attrs["trial_id"]
        epochs = sorted(epoch for who, epoch in trained if who == name_of)
        assert epochs == list(range(1, records[name_of].epochs + 1)) == sorted(trial.intermediate_values)
    (study,) = [s for s in run_status(RunFolder(run)).studies if s.name == name]
    assert study.n_left == 0 and study.counts == dict(
        Counter(records[by_number[n]].status for n in by_number)
    )


def table(run):
    """Return what is known of every trial, without what depends on the clock."""
    records = RunFolder(run).records()
    return {
        t.number: (
            t.params, t.state.name, t.values, t.intermediate_values,
            *(getattr(records[t.user_attrs["trial_id"]], fact)
              for fact in ("trial_id", "status", "epochs", "best_epoch", "metrics", "f1_per_species")),
        )
        for t in optuna_trials(run)
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(cluster, birds, cache, tmp_path_factory):
    """What becomes of the twelve trials without an accident."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIRDTUNE_CACHE", str(cache))  # that of the tests: this fixture is made before theirs
        driver.search(run, birds)
    check_agreement(run)
    assert {record.status for record in RunFolder(run).records().values()} == {"completed", "pruned"}
    return table(run)


def start(run, birds, concurrent=1):
    command = [sys.executable, "-m", "tests.tuning.engine.driver", run, birds, "search", str(concurrent)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def kill_drivers(run, birds, dice, n_kills, concurrent=1):
    """Start drivers and end each by SIGKILL after a few epochs, some of them while they start."""
    for _ in range(n_kills):
        known = len(events(run, "epoch"))
        process = start(run, birds, concurrent)
        if dice.random() < 0.2:
            time.sleep(dice.uniform(0.5, 8))
        else:
            more = known + dice.randint(0, 2)
            wait_for(lambda: len(events(run, "epoch")) >= more or process.poll() is not None)  # noqa: B023
            time.sleep(dice.uniform(0, 0.3))
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


CLUSTER = """
import os, signal, sys
from pathlib import Path
import ray
from ray._private import state
from ray.cluster_utils import Cluster
from tests.tuning.engine import driver

run, birds = map(Path, sys.argv[1:])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
ones = [nodes.add_node(num_cpus=1) for _ in range(3)]
ray.init(address=nodes.address, log_to_driver=False)
n_harms = n_restarts = 0

def harm(event):
    # Kill a worker, then a node; the driver once both are survived: a worker may outlive its node a while.
    global n_harms, n_restarts
    n_restarts += event["event"] == "restart"
    # After even epochs the rule may end the trial, which then has nothing to restart.
    if event["event"] != "epoch" or event["epoch"] % 2 == 0 or n_restarts < n_harms:
        return
    n_harms += 1
    if n_harms == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    (actor,) = [a for a in state.actors().values() if a["State"] == "ALIVE"]
    if n_harms == 1:
        os.kill(actor["Pid"], signal.SIGKILL)
    else:
        (node,) = [n for n in ones if n.node_id == actor["Address"]["NodeID"]]
        nodes.remove_node(node, allow_graceful=False)

driver.search(run, birds, observer=harm)
"""


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["60m"], indirect=True)
def test_ten_kills_of_the_driver_one_of_a_worker_one_of_a_node_and_a_full_disk_change_nothing(
    undisturbed, birds, small_disk
):
    dice = random.Random(5)
    run, ballast = small_disk / "run", small_disk / "ballast"
    kill_drivers(run, birds, dice, 5)
    done = subprocess.run(  # it ends by the tenth kill
        [sys.executable, "-c", CLUSTER, run, birds], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(events(run, "restart")) == 2
    process = start(run, birds)
    known = len(events(run, "epoch"))
    wait_for(lambda: len(events(run, "epoch")) > known)
    with contextlib.suppress(OSError), open(ballast, "wb") as file:
        while True:
            file.write(bytes(4096))
    _, complaints = process.communicate(timeout=120)
    assert "the sweep was stopped: cannot write" in complaints, complaints
    assert any(t.state.name == "RUNNING" for t in optuna_trials(run))
    ballast.unlink()
    kill_drivers(run, birds, dice, 4)
    _, complaints = start(run, birds).communicate(timeout=300)
    check_agreement(run)
    assert table(run) == undisturbed


@pytest.mark.slow
def test_kills_of_a_driver_with_two_trials_side_by_side_lose_and_repeat_nothing(undisturbed, birds, tmp_path):
    run = tmp_path / "run"
    kill_drivers(run, birds, random.Random(6), 3, concurrent=2)
    _, complaints = start(run, birds, 2).communicate(timeout=300)
    check_agreement(run)
    # Who is stopped depends on who came first; what a trial's epochs give does not.
    for number, (params, _, _, values, *_) in table(run).items():
        expected_params, _, _, expected, *_ = undisturbed[number]
        assert params == expected_params
        both = set(values) & set(expected)
        assert both and all(values[epoch] == expected[epoch] for epoch in both)


def test_a_search_by_folds_that_was_killed_ends_as_one_that_was_not_and_trains_no_fold_twice(
    cluster, birds, tmp_path
):
    driver.folds(tmp_path / "alive", birds)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tests.tuning.engine.driver", run, birds, "folds"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: any(e.get("fold") == 2 for e in events(run, "trial")) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    driver.folds(run, birds)

    def ends(of):
        return [(t.params, t.state, t.value, t.user_attrs) for t in optuna_trials(of)]

    assert ends(run) == ends(tmp_path / "alive")
    trained = Counter((e["trial_id"], e["epoch"]) for e in events(run, "epoch"))
    assert set(trained.values()) == {1}
    first = [t for t in optuna_trials(run) if t.state.name == "COMPLETE"]
    (number,) = {e["number"] for e in events(run, "trial") if e.get("fold")}
    assert max(first, key=lambda t: t.value).number == number
    best = choose(load([run]))
    assert best["n"] == 3 and best["config"]["repeat"] == 0
    assert "1 of 5 configs have all 3 folds" in best["how_sure"]
    (study,) = run_status(RunFolder(run)).studies
    assert study.state == "finished" and sum(study.counts.values()) == 5
    assert study.n_epochs == len(trained)


# ----------------------------------------------------------------- what a search does with its trials


ONE = Resources(concurrent=1)


def rates(trial):
    return {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-1, log=True)}


def test_a_bad_sample_is_one_failed_trial_and_the_next_driver_does_not_meet_it_again(cluster, data, tmp_path):
    """The space passes the samples of the check; then it raises, and then makes an impossible config."""

    def space(trial):
        choices = rates(trial)
        if trial.study.study_name == "rates":  # not that of the check
            if trial.number == 1:
                raise KeyError("no such species")
            if trial.number == 2:
                choices["model.widht"] = 3
        return choices

    run = tmp_path / "run"
    search = Search(name="rates", question="?", space=space, n_trials=4, scheduler="fifo")
    summary = sweep(search, data, run, settings=SMALL, resources=ONE)
    assert summary.counts == {"completed": 2, "failed": 2}
    failed = [r for r in RunFolder(run).records().values() if r.status == "failed"]
    raised, impossible = sorted(failed, key=lambda r: r.traceback is None)
    assert raised.error == "the space of study 'rates' raised KeyError: 'no such species'"
    assert "no such species" in raised.traceback
    assert "has no option 'widht'" in impossible.error
    assert [t.state.name for t in optuna_trials(run)] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    lr = [t.params["optim.lr"] for t in optuna_trials(run)]
    factors = {e["number"]: e["factors"] for e in events(run, "trial")}
    assert [factors[n]["optim.lr"] for n in range(4)] == lr
    (study,) = run_status(RunFolder(run)).studies
    assert (study.counts, study.n_left) == ({"completed": 2, "failed": 2}, 0)
    again = sweep(search, data, run, settings=SMALL, n_trials=5, resources=ONE, rerun_failed=True)
    assert again.counts == {"completed": 5, "failed": 2}  # what replaces them has numbers of its own


def test_a_space_that_raises_at_once_is_refused_with_its_line_before_anything_is_made(data, tmp_path):
    def space(trial):
        return {"optim.lr": 1 / 0}

    with pytest.raises(ConfigError, match=r"study 'rates' raised ZeroDivisionError: .*line \d+"):
        sweep(Search(name="rates", question="?", space=space), data, tmp_path / "run", settings=SMALL)
    assert not (tmp_path / "run").exists()


def test_a_config_that_was_pruned_is_not_trained_again(cluster, data, tmp_path):
    """Twelve trials of five configs under ASHA; then an ablation of these configs, which trains them on."""
    levels = (1e-2, 3e-3, 1e-3, 1e-4, 1e-5)

    def space(trial):
        return {"optim.lr": trial.suggest_categorical("optim.lr", levels)}

    run, settings = tmp_path / "run", {**SMALL, "training.epochs": 4}
    search = Search(
        name="rates",
        question="?",
        space=space,
        n_trials=12,
        metric="val/loss",
        grace_epochs=1,
        reduction_factor=2,
    )
    sweep(search, data, run, settings=settings, sampler="random", resources=ONE)
    trials = optuna_trials(run)
    by_config = {}
    for trial in trials:
        by_config.setdefault(trial.user_attrs["trial_id"], []).append(trial)
    assert len(by_config) >= 3 and any(t.state.name == "PRUNED" for t in trials)
    for same in by_config.values():
        assert len({(t.state, str(t.values)) for t in same}) == 1
        if same[0].state.name == "PRUNED":
            assert len({str(t.intermediate_values) for t in same}) == 1
    trained = Counter((e["trial_id"], e["epoch"]) for e in events(run, "epoch"))
    assert set(trained.values()) == {1}
    (study,) = run_status(RunFolder(run)).studies
    assert study.n_left == 0 and sum(study.counts.values()) == 12

    ablation = Ablation(name="all", question="?", factors={"optim.lr": levels}, metric="val/loss")
    sweep(ablation, data, run, settings=settings, n_repeats=1, resources=ONE)
    trained = Counter((e["trial_id"], e["epoch"]) for e in events(run, "epoch"))
    assert len(trained) == 5 * 4 and set(trained.values()) == {1}
    assert {r.status for r in RunFolder(run).records().values()} == {"completed"}
    records = RunFolder(run).records()
    fresh = driver.train_alone(records.values(), data, tmp_path / "fresh").records()
    assert {n: r.metrics for n, r in records.items()} == {n: r.metrics for n, r in fresh.items()}


def test_a_config_with_too_many_parameters_is_not_trained_and_another_study_may_train_it(
    cluster, data, tmp_path
):
    def space(trial):
        return {"model.width": trial.suggest_categorical("model.width", (8, 64))}

    run, settings = tmp_path / "run", {**SMALL, "model.name": "audio_cnn", "training.epochs": 1}
    search = Search(
        name="widths",
        question="?",
        space=space,
        n_trials=3,
        scheduler="fifo",
        constraints=(Bound("n_params", "<=", 30_000), Bound("hours", "<=", 1)),
    )
    sweep(search, data, run, settings=settings, sampler="random", n_trials=3, resources=ONE)
    sweep(search, data, run, settings=settings, sampler="random", n_trials=6, resources=ONE)  # resumed
    records = RunFolder(run).records()
    by_status = {record.status: record for record in records.values()}
    assert set(by_status) == {"completed", "infeasible"} and len(records) == 2
    large, small = by_status["infeasible"], by_status["completed"]
    assert large.config["model"]["width"] == 64 and large.epochs == 0 and large.n_params > 30_000
    assert large.error.startswith(f"not trained: n_params = {large.n_params}, and a constraint is n_params<=")
    assert small.n_params <= 30_000
    trials = optuna_trials(run, "widths")
    assert len(trials) == 6
    for trial in trials:
        is_large = trial.params["model.width"] == 64
        assert (trial.state.name == "PRUNED") == is_large == (trial.constraints["n_params<=30000"] > 0)
    assert choose(load([run]))["config_id"] == small.config_id
    other = replace(search, constraints=())
    with pytest.raises(RunFolderError, match="other settings.*constraints"):
        sweep(other, data, run, settings=settings, sampler="random", resources=ONE)
    ablation = Ablation(name="all", question="?", factors={"model.width": (8, 64)})
    sweep(ablation, data, run, settings=settings, n_repeats=1, resources=ONE)
    trained = RunFolder(run).records()[large.trial_id]
    assert (trained.status, trained.n_params) == ("completed", large.n_params)


def test_a_search_that_began_with_configs_of_another_and_given_ones_goes_on_with_both(
    cluster, data, tmp_path
):
    """The earlier run is gone when it is resumed; its own records are in no table of the new one."""
    earlier, run = tmp_path / "earlier", tmp_path / "run"
    settings = {**SMALL, "training.epochs": 1}
    search = Search(name="rates", question="?", space=rates, n_trials=2, scheduler="fifo")
    sweep(search, data, earlier, settings=settings, resources=ONE)
    first = TrainConfig().override({**settings, "optim.lr": 3e-3})
    begin = {"settings": settings, "warm_start": earlier, "first_configs": [first], "resources": ONE}
    sweep(search, data, run, n_trials=1, **begin)
    there = {trial.params["optim.lr"] for trial in optuna_trials(earlier)}
    shutil.rmtree(earlier)
    sweep(search, data, run, n_trials=4, **begin)
    trials = optuna_trials(run)
    assert [t.state.name for t in trials] == ["COMPLETE"] * 4
    drawn = [trial.params["optim.lr"] for trial in trials]
    assert drawn[0] == 3e-3 and set(drawn[1:3]) == there and len(set(drawn)) == 4
    study = RunFolder(run).read_study("rates")
    assert (study["sampler"], study["n_enqueued"]) == ("tpe", 1)
    facts = {"run": str(earlier), "study": "rates", "n_outside": 0}
    assert study["warm_start"] == study["warm_start"] | facts
    runs = load([run])
    assert len(runs.trials) == 4 and set(runs.trials["trial_id"]) == set(RunFolder(run).records())
    with pytest.raises(RunFolderError, match="began with those of .*earlier.*cannot take configs of"):
        sweep(search, data, run, **{**begin, "warm_start": run})


ONE_TRIAL = Search(name="rates", question="?", space=rates, n_trials=1, grace_epochs=1)


@pytest.fixture(scope="module")
def finished(cluster, birds, cache, tmp_path_factory):
    """The run folder of a search of one trial, for tests of what is refused."""
    run = tmp_path_factory.mktemp("finished") / "run"
    few = preparation.Data(name="few", manifest=read_manifest(birds), cache=cache, workers=1)
    sweep(ONE_TRIAL, few, run, settings=SMALL, storage="sqlite", resources=ONE)
    return run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grace_epochs": 2}, "grace_epochs"),
        ({"reduction_factor": 4}, "reduction_factor"),
        ({"storage": "journal"}, "storage"),
        ({"seed": 1}, "seed"),
    ],
)
def test_a_search_whose_rules_storage_or_seed_change_is_refused(finished, data, change, words):
    run = finished
    storage = change.pop("storage", "sqlite")
    settings = {**SMALL, **({"seed": change.pop("seed")} if "seed" in change else {})}
    with pytest.raises(RunFolderError, match=f"other settings.*{words}"):
        sweep(replace(ONE_TRIAL, **change), data, run, settings=settings, storage=storage, n_trials=2)
    assert len(RunFolder(run).records()) == 1


def test_a_search_that_was_begun_under_other_defaults_is_refused(finished, data, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    there = RunFolder(run).read_study("rates")
    RunFolder(run).write_study({**there, "base_id": "0123456789"})  # as another version would have it
    with pytest.raises(RunFolderError, match="other settings.*base_id"):
        sweep(ONE_TRIAL, data, run, settings=SMALL, storage="sqlite", n_trials=2)


def test_trials_are_trained_while_the_data_of_others_are_made(cluster, data, tmp_path, monkeypatch):
    """Half of the trials want windows that take as long to make as it takes to train the others."""

    def space(trial):
        n_mfcc = (16, 12)[trial.number % 2]
        return {"features.n_mfcc": n_mfcc, **rates(trial)}

    settings = {k: v for k, v in SMALL.items() if k != "features.n_mfcc"}
    data.folder(TrainConfig().override({**SMALL, "training.monitor": "val/f1_macro"}))
    n_epochs_when = {}

    def slow(manifest, config, **options):
        if config.flat()["features.n_mfcc"] == 12:
            n_epochs_when["begun"] = len(events(run, "epoch"))
            wait_for(lambda: len(events(run, "epoch")) >= n_epochs_when["begun"] + 2, 60)
            n_epochs_when["ended"] = len(events(run, "epoch"))
        return prepare(manifest, config, **options)

    run = tmp_path / "run"
    monkeypatch.setattr(preparation, "prepare", slow)
    search = Search(name="rates", question="?", space=space, n_trials=6, scheduler="fifo")
    summary = sweep(search, data, run, settings=settings, resources=ONE)
    assert summary.counts == {"completed": 6}
    assert n_epochs_when["ended"] >= n_epochs_when["begun"] + 2


def test_a_search_that_halts_does_not_wait_for_data_that_are_being_made(cluster, data, tmp_path, monkeypatch):
    def space(trial):
        return {"features.n_mfcc": (16, 11)[trial.number % 2], **rates(trial)}

    def endless(manifest, config, progress, **options):
        if config.flat()["features.n_mfcc"] == 11:
            end = time.monotonic() + 120
            while time.monotonic() < end:
                progress("features", 1, 2)
                time.sleep(0.05)
        return prepare(manifest, config, progress=progress, **options)

    monkeypatch.setattr(preparation, "prepare", endless)
    settings = {k: v for k, v in SMALL.items() if k != "features.n_mfcc"}
    search = Search(name="rates", question="?", space=space, n_trials=40, scheduler="fifo")
    start = time.monotonic()
    until = Budget(until="train/loss<=100")
    summary = sweep(search, data, tmp_path / "run", settings=settings, resources=ONE, budget=until)
    assert summary.halted.startswith("train/loss <= 100") and time.monotonic() - start < 60


# One node cannot read datasets; the other is slow to until that one is put aside, and leaves it trials.
SICK_NODE = """
import os
if node := os.environ.get("NODE"):
    import io, time
    whole = io.open
    def opened(file, *arguments, **options):
        if f"{os.sep}datasets{os.sep}" in str(file):
            if node == "sick":
                raise OSError(5, "Input/output error", str(file))
            end = time.monotonic() + 4
            while str(file).endswith("dataset.json") and time.monotonic() < end:
                if os.path.exists(os.environ["ASIDE"]):
                    break
                time.sleep(0.05)
        return whole(file, *arguments, **options)
    io.open = opened
"""

TWO_NODES = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tests.tuning.engine import driver

run, birds, aside = map(Path, sys.argv[1:])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
for node in ("sick", "sound"):
    nodes.add_node(num_cpus=1, env_vars={"NODE": node, "ASIDE": str(aside)})
ray.init(address=nodes.address, log_to_driver=False)

def observe(event):
    driver.print_note(event)
    if "is given no more trials" in event.get("text", ""):
        aside.touch()

try:
    driver.run(run, birds, observer=observe)
finally:
    ray.shutdown()
    nodes.shutdown()
"""


def test_a_node_whose_disk_fails_is_put_aside_and_takes_no_trial_with_it(cache, birds, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SICK_NODE)
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, run, birds, tmp_path / "aside"],
        capture_output=True, text=True, cwd=ROOT, timeout=400,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "is given no more trials" in done.stdout and "Input/output error" in done.stdout
    records = RunFolder(run).records()
    assert [r.status for r in records.values()] == ["completed"] * 12
    assert len(events(run, "restart")) == 3

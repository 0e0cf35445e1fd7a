"""What a search survives: its Optuna study, its records and its journal agree whatever was killed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from birdnet_core.records import RunFolder
from tests.tuning import driver
from tests.tuning.test_faults import events, wait_for
from tuning.searcher import open_storage
from tuning.status import run_status

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
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
    command = [sys.executable, "-m", "tests.tuning.driver", run, birds, "search", str(concurrent)]
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
from tests.tuning import driver

run, birds = map(Path, sys.argv[1:])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
ones = [nodes.add_node(num_cpus=1) for _ in range(3)]
ray.init(address=nodes.address, log_to_driver=False)
n_epochs = 0

def harm(event):
    global n_epochs
    n_epochs += event["event"] == "epoch"
    if event["event"] != "epoch" or n_epochs not in (2, 4, 6):
        return
    (actor,) = [a for a in state.actors().values() if a["State"] == "ALIVE"]
    if n_epochs == 2:
        os.kill(actor["Pid"], signal.SIGKILL)
    elif n_epochs == 4:
        (node,) = [n for n in ones if n.node_id == actor["Address"]["NodeID"]]
        nodes.remove_node(node, allow_graceful=False)
    else:
        os.kill(os.getpid(), signal.SIGKILL)

driver.search(run, birds, observer=harm)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_ten_kills_of_the_driver_one_of_a_worker_one_of_a_node_and_a_full_disk_change_nothing(
    undisturbed, birds, tmp_path
):
    dice = random.Random(5)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "none", small], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        run, ballast = small / "run", small / "ballast"
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
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_kills_of_a_driver_with_two_trials_side_by_side_lose_and_repeat_nothing(undisturbed, birds, tmp_path):
    run = tmp_path / "run"
    kill_drivers(run, birds, random.Random(6), 4, concurrent=2)
    _, complaints = start(run, birds, 2).communicate(timeout=300)
    check_agreement(run)
    # Who is stopped depends on who came first; what a trial's epochs give does not.
    for number, (params, _, _, values, *_) in table(run).items():
        expected_params, _, _, expected, *_ = undisturbed[number]
        assert params == expected_params
        both = set(values) & set(expected)
        assert both and all(values[epoch] == expected[epoch] for epoch in both)

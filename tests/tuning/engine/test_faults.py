"""What a sweep survives: kills of the driver, of a worker and of a node, Ctrl-C, a full disk, a hang."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from birdnet_core.errors import RunFolderError
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.usage import Usage
from reports import write_report
from search_spaces.study import Ablation
from tests.settings import SMALL
from tests.tuning.engine import driver
from tests.tuning.engine.driver import EPOCHS, TWELVE, descendants
from tuning.engine.halt import Budget
from tuning.engine.launch import Resources, sweep

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[3]
LOSSES = Ablation(name="losses", question="Loss?", factors={"loss.name": ("cross_entropy", "focal")})


def start(run, birds, *more):
    """Start a driver of the twelve cells in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tuning.engine.driver", run, birds, *map(str, more)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def events(run, kind):
    return [e for e in RunFolder(run).events() if e["event"] == kind]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def scores(run, out):
    """Return what a report says of every cell, without what depends on the clock."""
    (study,) = write_report([run], out)["studies"]
    return [
        {k: v for k, v in cell.items() if k not in ("hours", "gpu_hours", "cpu_hours", "seconds")}
        for cell in study["cells"]
    ]


def check_whole(run, n_cells=12, epochs=EPOCHS):
    """Every trial has a record and each of its epochs once in the journal."""
    records = RunFolder(run).records()
    assert Counter(r.status for r in records.values()) == {"completed": n_cells}
    trained = Counter((e["trial_id"], e["epoch"]) for e in events(run, "epoch"))
    assert set(trained.values()) == {1}
    assert len(trained) == n_cells * epochs


@pytest.fixture(scope="module")
def undisturbed(cluster, birds, cache, tmp_path_factory):
    """The report of the twelve cells, run without an accident."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIRDTUNE_CACHE", str(cache))  # that of the tests: this fixture is made before theirs
        driver.run(folder / "run", birds)
    return scores(folder / "run", folder / "report")


@pytest.mark.slow
def test_kills_of_the_driver_lose_and_repeat_nothing(undisturbed, birds, tmp_path):
    dice = random.Random(4)
    run = tmp_path / "run"
    n_kills = 0
    while n_kills < 4:
        known = len(events(run, "epoch"))
        driver = start(run, birds)
        if dice.random() < 0.2:  # while it starts
            time.sleep(dice.uniform(0.5, 8))
        else:
            more = dice.randint(0, 5)
            wait_for(lambda n=known + more, d=driver: len(events(run, "epoch")) >= n or d.poll() is not None)
            time.sleep(dice.uniform(0, 0.5))
        if driver.poll() is not None:
            break  # it was done
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        n_kills += 1
    assert n_kills == 4  # of a search ten: tests/tuning/engine/test_search_faults.py
    print(f"{n_kills} kills, {len(events(run, 'epoch'))} epochs so far")
    driver = start(run, birds)
    _, complaints = driver.communicate(timeout=300)
    assert driver.returncode == 0, complaints
    check_whole(run)
    assert scores(run, tmp_path / "report") == undisturbed
    assert not list((run / "checkpoints").glob("*-s*"))


def test_a_second_driver_is_refused_with_the_name_of_the_first(cluster, data, tmp_path):
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from birdnet_core.records.run_folder import RunFolder\n"
            "with RunFolder(sys.argv[1]).driven('birdtune sweep twelve'):\n"
            "    print('held', flush=True)\n"
            "    time.sleep(600)\n",
            run,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=rf"another driver: process {holder.pid} on .*, started 20"):
            sweep(TWELVE, data, run, settings=SMALL)
    finally:
        holder.kill()
        holder.communicate()
    with RunFolder(run).driven():  # a dead driver's lock keeps nobody out
        pass


def test_ctrl_c_finishes_the_epoch_and_the_run_goes_on_later(undisturbed, birds, tmp_path):
    run = tmp_path / "run"
    interrupted = start(run, birds)
    wait_for(lambda: len(events(run, "epoch")) >= 4)
    interrupted.send_signal(signal.SIGINT)
    printed, complaints = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 0, complaints
    assert "interrupted (Ctrl-C)" in printed
    assert events(run, "halt")[-1]["reason"] == "interrupted (Ctrl-C)"
    records = RunFolder(run).records().values()
    assert len(records) < 12
    # A trial whose epoch was its last has completed; the others say why they have not.
    for record in [r for r in records if r.status != "completed"]:
        assert record.status == "killed"
        assert "interrupted (Ctrl-C); it can be resumed" in record.error
        told_epochs = [e["epoch"] for e in events(run, "epoch") if e["trial_id"] == record.trial_id]
        assert told_epochs == list(range(1, record.epochs + 1))
    driver.run(run, birds)
    check_whole(run)
    assert scores(run, tmp_path / "report") == undisturbed


def test_ctrl_c_twice_stops_at_once_and_leaves_no_process(birds, tmp_path):
    run = tmp_path / "run"
    driver = start(run, birds, 50)
    wait_for(lambda: len(events(run, "epoch")) >= 1)
    workers = descendants(driver.pid)
    driver.send_signal(signal.SIGINT)
    # Two signals that come before the first is dealt with are one to Python.
    assert any("once more to stop now" in line for line in driver.stdout)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert driver.returncode != 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)


NODES = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tests.tuning.engine import driver
from tuning.engine.journal import Journal
from tuning.engine.schedulers import Fifo

run, birds = map(Path, sys.argv[1:])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
ones = [nodes.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=nodes.address, log_to_driver=False)
Fifo.decisions = lambda rule, trial: list(range(1, 1000))  # no step trains a trial to its end
reported = []  # the nodes of the epochs so far
whole = Journal.on_trial_result

def on_trial_result(journal, iteration, trials, trial, result, **info):
    reported.append(result["node"])
    whole(journal, iteration, trials, trial, result, **info)

def kill_a_node(event):
    # In the middle of a trial of that node.
    if event["event"] == "epoch" and event["epoch"] == 1 and len(reported) >= 4 and len(ones) == 2:
        (lost,) = [node for node in ones if node.node_id == reported[-1]]
        ones.remove(lost)
        nodes.remove_node(lost, allow_graceful=False)

Journal.on_trial_result = on_trial_result
try:
    driver.run(run, birds, observer=kill_a_node)
finally:
    ray.shutdown()
    nodes.shutdown()
"""


def test_a_node_that_is_lost_costs_no_finished_epoch(undisturbed, birds, tmp_path):
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", NODES, run, birds], capture_output=True, text=True, cwd=ROOT, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert events(run, "restart")
    check_whole(run)
    assert scores(run, tmp_path / "report") == undisturbed


@pytest.mark.usefixtures("an_epoch_a_step")
def test_a_budget_ends_the_sweep_within_an_epoch_and_holds_over_sessions(cluster, data, tmp_path):
    run, settings = tmp_path / "run", {**SMALL, "training.epochs": 3}
    one = Resources(concurrent=1)
    budget = Budget(until="train/loss<=100")
    summary = sweep(TWELVE, data, run, settings=settings, n_repeats=1, resources=one, budget=budget)
    assert summary.halted.startswith("train/loss <= 100 is reached")
    assert summary.counts == {"killed": 1}
    assert len(events(run, "epoch")) == 1
    usage = Usage.of(RunFolder(run).events())
    assert usage.n_epochs == 1 and usage.hours > 0 and usage.cpu_hours > 0
    used_up = Budget(hours=usage.hours / 2)
    summary = sweep(TWELVE, data, run, settings=settings, n_repeats=1, resources=one, budget=used_up)
    assert "hours is used up" in summary.halted
    assert len(events(run, "epoch")) == 1  # nothing was started


def test_a_longer_budget_goes_on_from_kept_checkpoints_with_the_numbers_of_a_fresh_run(
    cluster, data, tmp_path
):
    run = tmp_path / "run"
    settings = {**SMALL, "optim.schedule": "constant"}
    keep = Resources(checkpoints=1, concurrent=1)
    sweep(LOSSES, data, run, settings=settings, n_repeats=1, resources=keep)
    assert len(list((run / "checkpoints").glob("*/session.pt"))) == 1
    longer = dataclasses.replace(LOSSES, name="losses-4-epochs")
    settings["training.epochs"] = 4
    seen = []
    sweep(longer, data, run, settings=settings, n_repeats=1, shorter=2, observer=seen.append)
    assert "1 of 2 trials continue from their checkpoints" in next(e["text"] for e in seen if "text" in e)
    trained = RunFolder(run).records()
    extended = {name: r for name, r in trained.items() if r.config["training"]["epochs"] == 4}
    fresh = driver.train_alone(extended.values(), data, tmp_path / "fresh").records()
    assert {n: r.metrics for n, r in extended.items()} == {n: r.metrics for n, r in fresh.items()}
    # What the checkpoint held was not trained again: its first two epochs took the seconds they took then.
    took = {}
    for event in events(run, "epoch"):
        took.setdefault(event["trial_id"], []).append(event["epoch_s"])
    assert sorted(len(seconds) for seconds in took.values()) == [2, 2, 4, 4]
    first = {r.config["loss"]["name"]: took[n] for n, r in trained.items() if n not in fresh}
    gone_on = [took[n][:2] == first[r.config["loss"]["name"]] for n, r in extended.items()]
    assert sorted(gone_on) == [False, True]


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
def test_a_full_disk_stops_the_sweep_and_room_lets_it_go_on(cluster, data, small_disk):
    run, ballast = small_disk / "run", small_disk / "ballast"
    ballast.write_bytes(bytes(2_300_000))
    with pytest.raises(RunFolderError, match=r"(?s)the sweep was stopped: cannot write .*resume"):
        sweep(LOSSES, data, run, settings=SMALL, n_repeats=2)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    sweep(LOSSES, data, run, settings=SMALL, n_repeats=2)
    check_whole(run, n_cells=4, epochs=SMALL["training.epochs"])

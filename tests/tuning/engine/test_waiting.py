"""Clusters on which no trial fits yet: what is said, and what ends a sweep that waits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from birdnet_core.records.run_folder import RunFolder
from tuning.engine.packing import Node
from tuning.engine.waiting import REPEAT_EVERY_S, SLOW_START_S, Waiting

ROOT = Path(__file__).parents[3]


class Watched:
    """A `Waiting` with a clock and nodes that a test sets."""

    def __init__(self, *nodes):
        self.now, self.nodes, self.told = 0.0, list(nodes), []
        self.waiting = Waiting(
            lambda event: self.told.append(event["text"]), nodes=lambda: self.nodes, clock=lambda: self.now
        )

    def steps(self, seconds, *statuses, cpu=2.0, gpu=0.0):
        """Let Ray's loop turn ten times a second over trials of these statuses; return what was told."""
        config = {"resources": {"cpu": cpu, "gpu": gpu}}
        trials = [SimpleNamespace(status=status, config=config) for status in statuses]
        before = len(self.told)
        for _ in range(int(10 * seconds)):
            self.now += 0.1
            self.waiting.on_step_end(1, trials)
        return self.told[before:]


def test_what_trials_wait_for_is_a_note_once_and_rarely_again():
    watched = Watched(Node(cpus=1), Node(cpus=1))
    (text,) = watched.steps(REPEAT_EVERY_S - 20, "PENDING", "TERMINATED")
    assert text == (
        "waiting for a node with 2 CPUs: of the cluster, the largest of its 2 nodes has 1 CPU; "
        "Ctrl-C ends the sweep"
    )
    assert watched.steps(40, "PENDING") == [text]
    watched.nodes.append(Node(cpus=1, gpus=4))
    (other,) = watched.steps(20, "PENDING")
    assert "the largest of its 3 nodes has 1 CPU and 4 GPUs" in other
    watched.nodes.append(Node(cpus=2))
    assert watched.steps(20, "PENDING") == []  # it is there, and a worker starts


def test_there_is_no_note_while_a_trial_runs_or_starts():
    watched = Watched(Node(cpus=1))
    assert watched.steps(100, "RUNNING", "PENDING") == []
    assert watched.steps(100, "TERMINATED") == []
    watched = Watched(Node(cpus=2))
    assert watched.steps(SLOW_START_S - 10, "PENDING") == []


def test_a_cluster_that_is_busy_is_a_note_after_a_minute():
    watched = Watched(Node(cpus=4, gpus=1), Node(cpus=4))
    (text,) = watched.steps(200, "PENDING", gpu=0.5)
    assert "1 of 2 nodes could give one 2 CPUs and 0.5 GPUs" in text


# --------------------------------------------------------------------------------- on two nodes of 1 CPU

CLUSTER = """
import signal, sys
from ray.cluster_utils import Cluster

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
try:
    print(cluster.address, flush=True)
    for line in sys.stdin:
        cluster.add_node(num_cpus=int(line))
        print("added", flush=True)
finally:
    cluster.shutdown()
"""

SWEEP = """
import json, sys
from pathlib import Path
import ray
from birdnet_core.data.manifest import read_manifest
from search_spaces.study import Ablation, Search
from tests.settings import SMALL
from tuning.engine.halt import Budget
from tuning.engine.preparation import Data
from tuning.engine.launch import Resources, sweep

run, birds, address, given = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
if given.get("own_ray"):
    ray.init(address=address, log_to_driver=False)
    address = None
space = lambda trial: {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)}
summary = sweep(
    Search(name="rates", question="Which?", space=space, n_trials=2, scheduler="fifo"),
    Data(name="few", manifest=read_manifest(birds), workers=1),
    run,
    settings={**SMALL, "training.epochs": given.get("epochs", 1), "training.patience": 0},
    resources=Resources(**given["resources"]),
    budget=Budget(**given.get("budget", {})),
    address=address,
    observer=lambda event: print(event.get("text", event["event"]), flush=True),
)
print("counts", json.dumps(summary.counts), "halted", summary.halted, flush=True)
print("after the sweep", ray.is_initialized(), flush=True)
"""


@pytest.fixture(scope="module")
def ones():
    """A cluster of two nodes of 1 CPU; a number of CPUs on its standard input adds one."""
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    cluster.address = cluster.stdout.readline().strip()
    yield cluster
    cluster.terminate()
    cluster.communicate(timeout=60)


@pytest.fixture
def swept(ones, birds, tmp_path):
    """Start a sweep of two trials on the cluster; whatever is left of it ends with the test."""
    started = []

    def start(run="run", **given):
        arguments = [tmp_path / run, birds, ones.address, json.dumps(given)]
        driver = subprocess.Popen(
            [sys.executable, "-c", SWEEP, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        started.append(driver)
        return driver

    yield start
    for driver in started:
        driver.kill()
        driver.communicate()


def until(driver, words):
    """Return the line of the driver that has `words`."""
    seen = []
    for line in driver.stdout:
        seen.append(line)
        if words in line:
            return line
    raise AssertionError("".join(seen))


@pytest.mark.ray
def test_trials_larger_than_every_node_are_refused(swept):
    driver = swept(resources={"cpus": 2})
    words = (
        "a trial asks for 2 CPUs, and no node of the cluster has that: the largest of its 2 nodes has 1 CPU"
    )
    assert "--concurrent N to wait" in until(driver, words)
    assert driver.wait(60) == 1


@pytest.mark.ray
def test_ctrl_c_ends_a_sweep_in_a_session_of_ray_that_the_caller_began_and_keeps_it(swept, tmp_path):
    driver = swept(resources={}, epochs=1_000_000, own_ray=True)  # more than one ends before the other starts
    for event in ("trial", "trial", "epoch"):
        until(driver, f"{event}\n")
    driver.send_signal(signal.SIGINT)
    until(driver, "Ctrl-C: finishing the epochs in progress")
    assert until(driver, "counts") == 'counts {"killed": 2} halted interrupted (Ctrl-C)\n'
    assert until(driver, "after") == "after the sweep True\n"
    assert driver.wait(60) == 0
    records = RunFolder(tmp_path / "run").records().values()
    assert all("interrupted (Ctrl-C); it can be resumed" in r.error for r in records)


@pytest.mark.ray
def test_a_sweep_that_waits_for_a_node_ends_by_ctrl_c_or_its_budget_and_goes_on(swept, ones, tmp_path):
    driver = swept(resources={"cpus": 2, "concurrent": 1})
    until(driver, "waiting for a node with 2 CPUs: of the cluster, the largest of its 2 nodes has 1 CPU")
    start = time.monotonic()
    driver.send_signal(signal.SIGINT)
    assert until(driver, "counts") == "counts {} halted interrupted (Ctrl-C)\n"
    assert driver.wait(60) == 0
    assert time.monotonic() - start < 15
    assert RunFolder(tmp_path / "run").records() == {}

    budget = swept("other", resources={"cpus": 2, "concurrent": 1}, budget={"hours": 0.002})
    until(budget, "waiting for a node")
    assert "halted the budget of 0.002 hours is used up" in until(budget, "counts")
    assert budget.wait(60) == 0

    joined = swept(resources={"cpus": 2, "concurrent": 1})
    until(joined, "waiting for a node")
    ones.stdin.write("2\n")
    ones.stdin.flush()
    assert until(joined, "counts") == 'counts {"completed": 2} halted None\n'
    numbers = [e["number"] for e in RunFolder(tmp_path / "run").events() if e["event"] == "trial"]
    assert sorted(numbers) == [0, 1]  # those that waited are no trials of their own

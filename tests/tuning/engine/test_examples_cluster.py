"""A cluster whose nodes do not see the driver's files: each node has file systems of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
from ruamel.yaml import YAML

from birdnet_core.records.run_folder import RunFolder
from tests.tuning.engine.driver import EPOCHS

ROOT = Path(__file__).parents[3]

EXAMPLES = ROOT / "examples" / "cluster"


def test_the_example_of_rays_cluster_launcher_is_what_ray_takes():
    launcher = YAML(typ="safe").load(EXAMPLES / "ray-cluster.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)


def test_the_example_for_slurm_is_bash():
    assert subprocess.run(["bash", "-n", EXAMPLES / "sweep.slurm"]).returncode == 0


# Empty file systems over the folders to hide, seen by this node alone.
NODE = 'for folder in $HIDDEN; do mount -t tmpfs none "$folder"; done; exec "$@"'

DRIVER = """
import os, signal, subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tests.tuning.engine import driver

run, birds, node = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
ray_command = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=2", "--block"]
other = subprocess.Popen(
    ["unshare", "--mount", "bash", "-ec", node, "node", *ray_command, f"--address={nodes.address}"],
    start_new_session=True,
)
try:
    ray.init(address=nodes.address, log_to_driver=False)
    for _ in range(120):
        if ray.cluster_resources().get("CPU"):
            break
        time.sleep(0.5)
    ray.shutdown()
    driver.run(run, birds, address=nodes.address)
finally:
    os.killpg(other.pid, signal.SIGKILL)
    nodes.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide folders from a node")
def test_a_node_that_does_not_see_the_cache_makes_the_dataset_and_informs_the_driver(birds, cache, tmp_path):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no process can have file systems of its own here")
    run = tmp_path / "run"
    run.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, run, birds, NODE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, "HIDDEN": f"{cache} {run}"},
    )
    assert done.returncode == 0, done.stderr
    records = RunFolder(run).records()
    assert [r.status for r in records.values()] == ["completed"] * 12
    assert {r.epochs for r in records.values()} == {EPOCHS}
    # The node kept its checkpoints to itself: here is nothing but the mark that it did not see.
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["run_id"]


def test_the_example_of_rays_cluster_launcher_starts_its_workers():
    launcher = YAML(typ="safe").load(EXAMPLES / "ray-cluster.yaml")
    (head,) = [line for line in launcher["head_start_ray_commands"] if "--head" in line]
    # The autoscaler on the head starts the workers; `ray up` writes this file there for it.
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    starts = [head, *(line for line in launcher["worker_start_ray_commands"] if " start " in line)]
    caches = {word for line in starts for word in line.split() if word.startswith("BIRDTUNE_CACHE=")}
    assert len(caches) == 1
    assert f"export {caches.pop()}" in (EXAMPLES / "README.md").read_text()

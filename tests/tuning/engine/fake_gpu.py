"""GPUs that are not there, in real Ray actors: python -m tests.tuning.engine.fake_gpu SCENE RUN BIRDS.

In a worker, torch.cuda tells of a GPU of ten GiB, while trials compute on the CPU; how a scene goes wrong is
decided by the settings of a trial. What a sweep makes of it lies in the run folder.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import ray

from birdnet_core.data.manifest import read_manifest
from search_spaces.study import Ablation
from tests.settings import SMALL
from tests.spellings import OUT_OF_MEMORY
from tuning.engine.cluster import scratch_folder
from tuning.engine.launch import Resources, sweep
from tuning.engine.preparation import Data

GIB = 2**30
SPELLINGS = (OUT_OF_MEMORY[0], OUT_OF_MEMORY[1], OUT_OF_MEMORY[3])  # torch's, CUDA's, cuBLAS's
RATES = (1e-3, 2e-3, 3e-3)
"""The learning rates of trials that meet the spellings, in their order."""
FITS, NEVER_FITS, NEEDS_ALL, LEAVES = 4e-3, 5e-3, 6e-3, 7e-3


def install() -> None:
    """Put the stand-in into this worker, before the first trial comes."""
    import torch

    from birdnet_core.training import session as training
    from birdnet_core.training.session import Session

    training.may_run_out = lambda device: True
    scene = os.environ["FAKE_GPU_SCENE"]
    state = {"held": 0, "cap": 1.0}
    others = 6 * GIB if scene == "little" else 0

    def free_and_total() -> tuple[int, int]:
        return 10 * GIB - GIB // 2 - others - state["held"], 10 * GIB

    for name, value in {
        "is_available": lambda: True,
        "empty_cache": lambda: None,
        "memory_allocated": lambda: state["held"],
        "memory_reserved": lambda: state["held"],
        "get_device_properties": lambda device: types.SimpleNamespace(total_memory=10 * GIB),
        "mem_get_info": free_and_total,
        "set_per_process_memory_fraction": lambda share: state.update(cap=share),
    }.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_clearCublasWorkspaces = lambda: None
    # Asks the driver of the GPU whether a graph is captured, before each step of an optimizer on the CPU too.
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda optimizer: None
    real = Session._logits

    def logits(session: Session, model: Any, features: torch.Tensor) -> torch.Tensor:
        state["held"] = max(state["held"], 8 * 2**20)  # cuBLAS's workspace, which nothing clears here
        rate = session.config.optim.lr
        if rate == LEAVES:
            state["held"] = 3 * GIB
        fits = 10**6
        if rate in RATES:
            fits = 4
        elif rate == NEVER_FITS or (rate == NEEDS_ALL and state["cap"] < 1):
            fits = 0
        if len(features) > fits and model.training:
            kind, text = SPELLINGS[RATES.index(rate) if rate in RATES else 1]
            raise kind(text)
        return real(session, model, features)

    Session._logits = logits


STUDIES = {
    "little": Ablation(name="gpu", question="Rate?", factors={"optim.lr": (*RATES, FITS, NEVER_FITS)}),
    "shared": Ablation(name="gpu", question="Rate?", factors={"optim.lr": (LEAVES, NEEDS_ALL, FITS)}),
}

if __name__ == "__main__":
    scene, run, birds = sys.argv[1], *map(Path, sys.argv[2:])
    os.environ["FAKE_GPU_SCENE"] = scene
    with scratch_folder() as folder:
        ray.init(
            address="local",  # as `tuning.engine.cluster` does, and with GPUs that it would not find
            num_cpus=1,
            num_gpus=1,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": "tests.tuning.engine.fake_gpu.install"},
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
        try:
            summary = sweep(
                STUDIES[scene],
                Data(name="few", manifest=read_manifest(birds), workers=1),
                run,
                settings={**SMALL, "runtime.device": "cpu"},
                n_repeats=1,
                resources=Resources(gpus=0.5 if scene == "shared" else None),
            )
            print(summary.counts)
        finally:
            ray.shutdown()

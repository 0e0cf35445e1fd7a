"""The arithmetic of sharing: how many trials fit on a machine, and what each may take of a GPU.

Pure functions: nothing here asks the hardware, so all of it holds, and is tested, without a GPU.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from birdnet_core.errors import ConfigError

Gpus = float | Literal["auto"] | None

RAY_UNITS = 10_000  # Ray counts resources in steps of 0.0001
RESERVE = 0.05  # the share of a GPU that is given to nobody


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial may use.

    Args:
        cpus: also the number of torch's threads.
        gpus: fractions share a GPU; None takes a whole one where Ray sees any, ``auto`` what each arm needs.
        concurrent: the most trials side by side; None takes as many as fit.
        restarts: deaths of its process or node that a trial survives in a row, without an epoch between them.
        timeout_s: the most that an epoch may take; a trial that hangs longer has failed.
        checkpoints: how many completed trials, the best of the study, keep theirs.
    """

    cpus: int = 1
    gpus: Gpus = None
    concurrent: int | None = None
    restarts: int = 3
    timeout_s: float | None = None
    checkpoints: int = 0


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one trial takes of a GPU.

    Args:
        trials_per_gpu: how many of it fit side by side.
        fraction: what to ask Ray for: 1 / trials_per_gpu, cut to the four decimals that Ray counts.
        memory_cap: the share of the GPU's memory that torch may take in a trial, for
            `torch.cuda.set_per_process_memory_fraction`; the CUDA context is not under it.
    """

    trials_per_gpu: int
    fraction: float
    memory_cap: float


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of a cluster, or the only one: what a trial is given has to come from one of them."""

    cpus: float
    gpus: float = 0.0

    def n_fitting(self, *, cpus: float, gpus: float) -> int:
        """Return how many trials of `cpus` and `gpus` fit side by side.

        A fraction of a GPU is of one GPU: of two, 0.4 serves four trials and not five.
        """
        fits = [int(self.cpus / cpus + 1e-9)] if cpus else []
        if gpus:
            fits.append(int(self.gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(self.gpus / gpus + 1e-9))
        return min(fits)


def n_concurrent(nodes: Sequence[Node], *, cpus: float, gpus: float = 0.0, is_open: bool = False) -> int:
    """Return how many trials of `cpus` and `gpus` fit side by side on `nodes`, by CPUs and GPUs jointly.

    Where none fits, Ray would wait for ever: that is a ConfigError, but for a cluster that `is_open`, which
    other nodes may join.
    """
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"a trial asks for {gpus:g} GPUs; it takes a fraction of one, or whole ones")
    if not cpus and not gpus:
        raise ConfigError("a trial needs some CPU or GPU: give --cpus-per-trial or --gpus-per-trial")
    n = sum(node.n_fitting(cpus=cpus, gpus=gpus) for node in nodes)
    if n or is_open:
        return n
    options = [f"--{name}-per-trial" for name, wanted in (("cpus", cpus), ("gpus", gpus)) if wanted]
    if len(nodes) == 1:
        for option, name, wanted, has in (
            ("cpus", "CPUs", cpus, nodes[0].cpus),
            ("gpus", "GPUs", gpus, nodes[0].gpus),
        ):
            if wanted > has:
                raise ConfigError(
                    f"a trial asks for {wanted:g} {name} and there are {has:g}; lower --{option}-per-trial"
                )
    raise ConfigError(
        f"a trial asks for {in_words(cpus=cpus, gpus=gpus)}, and no node of the cluster has that: "
        f"{largest_in_words(nodes, cpus=cpus, gpus=gpus)}; lower {' or '.join(options)}, or give "
        "--concurrent N to wait for nodes that join"
    )


def in_words(*, cpus: float, gpus: float) -> str:
    """Return what a trial asks for, or a node has: ``2 CPUs and 0.5 GPUs``."""
    named = [(cpus, "CPU"), (gpus, "GPU")]
    parts = [f"{amount:g} {name}{'' if amount == 1 else 's'}" for amount, name in named if amount]
    return " and ".join(parts) or "0 CPUs"


def largest_in_words(nodes: Sequence[Node], *, cpus: float, gpus: float) -> str:
    """Return the number of `nodes` and what that one has which comes nearest to a trial's needs."""
    if not nodes:
        return "it has no node"

    def share(node: Node) -> float:
        return min(has / wanted for has, wanted in ((node.cpus, cpus), (node.gpus, gpus)) if wanted)

    nearest = max(nodes, key=lambda node: (share(node), node.gpus, node.cpus))
    has = in_words(cpus=nearest.cpus, gpus=nearest.gpus)
    return (
        f"its only node has {has}" if len(nodes) == 1 else f"the largest of its {len(nodes)} nodes has {has}"
    )


def fraction_of(trials_per_gpu: int) -> float:
    """Return 1 / `trials_per_gpu` cut to Ray's four decimals, so that as many always fit: 0.3333 for 3."""
    return (RAY_UNITS // trials_per_gpu) / RAY_UNITS


def memory_cap(trials_per_gpu: int, *, gpu_bytes: int, context_bytes: int) -> float:
    """Return the share of a GPU's memory that torch may take in each of `trials_per_gpu` processes.

    The caps and the CUDA contexts of all of them add up to all but `RESERVE` of the GPU. Raises ConfigError
    where the contexts alone fill it.
    """
    cap = ((1 - RESERVE) * gpu_bytes / trials_per_gpu - context_bytes) / gpu_bytes
    if cap <= 0:
        raise ConfigError(
            f"{trials_per_gpu} trials on a GPU of {as_size(gpu_bytes)} leave nothing to train in: the CUDA "
            f"context of each takes {as_size(context_bytes)}; raise --gpus-per-trial"
        )
    return cap


def pack(
    peaks: Mapping[str, int],
    nodes: Sequence[Node],
    *,
    gpu_bytes: int,
    context_bytes: int,
    cpus_per_trial: float,
) -> dict[str, Share]:
    """Return the largest number of trials on a GPU for each arm, and what each may then take.

    Args:
        peaks: the most bytes that torch takes on the GPU in a trial, by arm.
        nodes: what there is to train on.
        gpu_bytes: memory of a GPU; of the smallest, where they differ.
        context_bytes: of the CUDA context of a process, which comes on top of its peak.

    No more trials than the CPUs of a GPU's node can feed: what is left then raises the cap of each. Raises
    ConfigError that lists every arm larger than a GPU, and by how much.
    """
    with_gpus = [node for node in nodes if node.gpus >= 1]
    if not with_gpus:
        raise ConfigError("no GPU to share: there is none here; leave out --gpus-per-trial")
    n_concurrent(with_gpus, cpus=cpus_per_trial)
    fed = (math.ceil(node.n_fitting(cpus=cpus_per_trial, gpus=0) / int(node.gpus)) for node in with_gpus)
    at_most = min(max(fed), RAY_UNITS)
    usable = (1 - RESERVE) * gpu_bytes
    shares: dict[str, Share] = {}
    faults = []
    for arm, peak in peaks.items():
        needed = peak + context_bytes
        if needed > usable:
            faults.append(
                f"{arm}: a trial needs {as_size(needed)} of GPU memory ({as_size(context_bytes)} of it the "
                f"CUDA context), {as_size(needed - usable)} more than a GPU of {as_size(gpu_bytes)} has to "
                "give; lower training.micro_batch_size, or training.batch_size"
            )
            continue
        n = max(1, min(at_most, int(usable // needed) if needed else at_most))
        cap = memory_cap(n, gpu_bytes=gpu_bytes, context_bytes=context_bytes)
        shares[arm] = Share(trials_per_gpu=n, fraction=fraction_of(n), memory_cap=cap)
    if faults:
        raise ConfigError("\n".join(faults))
    return shares


def makespan(
    jobs: Sequence[tuple[float, float]], *, cpus: int, cpus_per_trial: int, n_gpus: int, concurrent: int
) -> float:
    """Return the seconds until the last of `jobs` ends, each (its seconds, its GPUs).

    A job starts when those before it have started and there is room: CPUs, at most `concurrent` side by side,
    and its fraction on one GPU, or as many whole GPUs. List scheduling, as Ray does it, of jobs that are as
    fast next to others as alone. Raises ConfigError where one never fits.
    """
    free = [RAY_UNITS] * n_gpus
    running: list[tuple[float, list[tuple[int, int]]]] = []  # when it ends, and what it holds of which GPUs
    now = end = 0.0
    slots = min(concurrent, cpus // cpus_per_trial)
    for seconds, gpus in jobs:
        n_concurrent([Node(cpus=cpus, gpus=n_gpus)], cpus=cpus_per_trial, gpus=gpus)
        while len(running) >= slots or (held := _placed(free, gpus)) is None:
            now, given_back = heapq.heappop(running)
            for gpu, units in given_back:
                free[gpu] += units
        for gpu, units in held:
            free[gpu] -= units
        heapq.heappush(running, (now + seconds, held))
        end = max(end, now + seconds)
    return end


def _placed(free: Sequence[int], gpus: float) -> list[tuple[int, int]] | None:
    """Return which GPUs of `free` units would serve `gpus`, and with how much; None where none can."""
    units = round(gpus * RAY_UNITS)
    if units == 0:
        return []
    each = min(units, RAY_UNITS)
    able = [(gpu, each) for gpu, room in enumerate(free) if room >= each]
    n = math.ceil(units / RAY_UNITS)
    return able[:n] if len(able) >= n else None


def as_size(n_bytes: float) -> str:
    """Return bytes as people say them: ``340 B``, ``12.3 MiB``, ``1.4 GiB``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} B"

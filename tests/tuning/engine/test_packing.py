"""The arithmetic of sharing, by hand and over random machines."""

import math
import random

import pytest

from birdnet_core.errors import ConfigError
from tuning.engine.packing import (
    RESERVE,
    Node,
    as_size,
    fraction_of,
    makespan,
    memory_cap,
    n_concurrent,
    pack,
)

GIB = 2**30
BIG = [Node(cpus=64, gpus=1)]
MACHINE = {"nodes": BIG, "gpu_bytes": 80 * GIB, "context_bytes": GIB // 2, "cpus_per_trial": 1}


def test_shares_by_hand():
    # 80 GiB less 5 % are 76; 12 and a half go six times, 38 and a half once: two would be 77.
    shares = pack({"small": 12 * GIB, "large": 38 * GIB}, **MACHINE)
    assert (shares["small"].trials_per_gpu, shares["small"].fraction) == (6, 0.1666)
    assert (shares["large"].trials_per_gpu, shares["large"].fraction) == (1, 1.0)
    assert shares["small"].memory_cap == pytest.approx((76 / 6 - 0.5) / 80)
    assert shares["large"].memory_cap == pytest.approx(75.5 / 80)


def test_cpus_limit_the_trials_on_a_gpu_and_raise_the_cap_of_each():
    packed = {
        n_gpus: pack({"a": GIB}, **{**MACHINE, "cpus_per_trial": 5, "nodes": [Node(cpus=16, gpus=n_gpus)]})[
            "a"
        ]
        for n_gpus in (1, 2, 4)
    }
    # Three trials of five CPUs: on one GPU, two and one, or one each.
    assert [packed[n].trials_per_gpu for n in (1, 2, 4)] == [3, 2, 1]
    assert packed[4].memory_cap > packed[2].memory_cap > packed[1].memory_cap > 1 / 80


def test_the_cpus_of_one_node_do_not_feed_the_gpu_of_another():
    nodes = [Node(cpus=64), Node(cpus=2, gpus=1), Node(cpus=6, gpus=2)]
    # Two trials beside the one GPU, three on each of the two.
    assert pack({"a": GIB}, **{**MACHINE, "nodes": nodes})["a"].trials_per_gpu == 3


def test_arms_larger_than_a_gpu_are_all_named_with_what_is_missing_and_what_to_lower():
    with pytest.raises(ConfigError) as caught:
        pack({"ok": GIB, "ast": 90 * GIB, "vit": 76 * GIB}, **MACHINE)
    ast, vit = str(caught.value).split("\n")
    assert ast.startswith("ast: a trial needs 90.5 GiB") and "14.5 GiB more" in ast
    assert vit.startswith("vit") and "512.0 MiB more than a GPU of 80.0 GiB has to give" in vit
    assert "training.micro_batch_size" in ast and "training.batch_size" in ast


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": [Node(cpus=8)]}, "no GPU to share"),
        ({"cpus_per_trial": 65}, "65 CPUs and there are 64"),
    ],
)
def test_machines_that_cannot_be_shared(change, words):
    with pytest.raises(ConfigError, match=words):
        pack({"a": GIB}, **{**MACHINE, **change})


@pytest.mark.parametrize("seed", range(200))
def test_on_any_machine_all_fit_and_one_more_would_not(seed):
    rng = random.Random(seed)
    size = rng.choice([8, 16, 24, 80, 141]) * GIB
    context = int(rng.uniform(0.2, 1.0) * GIB)
    n_gpus, cpus, per_trial = rng.randint(1, 8), rng.randint(8, 256), rng.randint(1, 8)
    usable = (1 - RESERVE) * size
    peaks = {str(i): int(rng.uniform(1e6, usable - context)) for i in range(4)} | {"tiny": 1}
    shares = pack(
        peaks, [Node(cpus=cpus, gpus=n_gpus)], gpu_bytes=size, context_bytes=context,
        cpus_per_trial=per_trial,
    )  # fmt: skip
    for arm, share in shares.items():
        k = share.trials_per_gpu
        assert k * round(share.fraction * 10_000) <= 10_000
        assert n_concurrent([Node(cpus=0, gpus=n_gpus)], cpus=0, gpus=share.fraction) >= k * n_gpus
        taken = share.memory_cap * size
        assert taken >= peaks[arm] * (1 - 1e-9)
        assert k * (taken + context) <= usable * (1 + 1e-9)
        no_memory = (k + 1) * (peaks[arm] + context) > usable
        no_cpus = k * n_gpus >= cpus // per_trial
        assert no_memory or no_cpus


@pytest.mark.parametrize("k", [*range(1, 200), 9_999, 10_000])
def test_k_trials_of_one_kth_fit_and_are_of_rays_steps(k):
    units = round(fraction_of(k) * 10_000)
    assert fraction_of(k) == round(fraction_of(k), 4)
    assert k * units <= 10_000 < (k + 1) * (units + 1)


def test_contexts_that_fill_a_gpu_are_an_error():
    with pytest.raises(ConfigError, match=r"100 trials on a GPU of 8.0 GiB.*raise --gpus-per-trial"):
        memory_cap(100, gpu_bytes=8 * GIB, context_bytes=GIB // 2)


ONE, TWO = Node(cpus=1), Node(cpus=1, gpus=1)


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "n"),
    [
        ([Node(cpus=8)], 3, 0, 2),
        ([Node(cpus=64, gpus=1)], 1, 0.3333, 3),
        ([Node(cpus=64, gpus=2)], 1, 0.4, 4),  # a fraction is of one GPU
        ([Node(cpus=64, gpus=8)], 1, 0.0142, 64),
        ([Node(cpus=64, gpus=5)], 1, 2, 2),
        ([Node(cpus=3), Node(cpus=3)], 2, 0, 2),  # and not three: what is left over is on two nodes
        ([ONE, Node(cpus=5), ONE], 2, 0, 2),
        ([TWO, TWO], 1, 0.4, 2),  # two would fit on each GPU, and one beside each CPU
        ([Node(cpus=8), Node(cpus=1, gpus=4)], 1, 1, 1),  # CPUs and GPUs of the same node
        ([Node(cpus=8, gpus=2), Node(cpus=1, gpus=4)], 2, 2, 1),
    ],
)
def test_how_many_trials_fit_side_by_side(nodes, cpus, gpus, n):
    assert n_concurrent(nodes, cpus=cpus, gpus=gpus) == n


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "words"),
    [
        ([Node(cpus=2, gpus=4)], 3, 0, "asks for 3 CPUs and there are 2; lower --cpus-per-trial"),
        ([Node(cpus=2, gpus=4)], 0, 0, "needs some CPU or GPU"),
        ([Node(cpus=2, gpus=4)], 1, 1.5, "fraction of one, or whole ones"),
        (
            [ONE, ONE],
            2,
            0,
            "asks for 2 CPUs, and no node .*the largest of its 2 nodes has 1 CPU; lower --cpus",
        ),
        ([TWO, TWO], 1, 2, "1 CPU and 2 GPUs, and no node .* 2 nodes has 1 CPU and 1 GPU; .* or --gpus-per"),
        ([Node(cpus=8), TWO], 2, 1, "2 CPUs and 1 GPU, and no node .* 2 nodes has 1 CPU and 1 GPU"),
        ([Node(cpus=0)] * 3, 1, 0, "largest of its 3 nodes has 0 CPUs; .*--concurrent N to wait for nodes"),
        ([], 1, 0, "it has no node"),
    ],
)
def test_trials_that_never_fit(nodes, cpus, gpus, words):
    with pytest.raises(ConfigError, match=words):
        n_concurrent(nodes, cpus=cpus, gpus=gpus)


def test_nodes_may_join_an_open_cluster_and_what_makes_no_sense_is_refused_all_the_same():
    assert n_concurrent([ONE, ONE], cpus=2, is_open=True) == 0
    assert n_concurrent([], cpus=2, is_open=True) == 0
    with pytest.raises(ConfigError, match="fraction of one, or whole ones"):
        n_concurrent([], cpus=1, gpus=1.5, is_open=True)


def span(jobs, *, cpus=64, cpus_per_trial=1, n_gpus=0, concurrent=64):
    return makespan(jobs, cpus=cpus, cpus_per_trial=cpus_per_trial, n_gpus=n_gpus, concurrent=concurrent)


def test_makespans_by_hand():
    assert span([]) == 0
    assert span([(3, 0), (2, 0), (2, 0)], cpus=2) == 4  # 3 beside 2, and 2 more
    assert span([(3, 0), (2, 0), (2, 0)], cpus=4, cpus_per_trial=3) == 7
    assert span([(3, 0), (2, 0), (2, 0)], concurrent=1) == 7
    assert span([(5, 1), (5, 1), (5, 1)], n_gpus=2) == 10
    assert span([(5, 0.5)] * 4, n_gpus=2) == 5
    assert span([(5, 0.4)] * 5, n_gpus=2) == 10  # two on a GPU: four at once, and one more
    assert span([(5, 0.3333)] * 3, n_gpus=1) == 5
    # A half leaves no room for a whole one, which waits, and those behind it wait with it.
    assert span([(4, 0.5), (2, 1.0), (1, 0.5)], n_gpus=1) == 7
    assert span([(4, 2.0), (2, 1.0)], n_gpus=2) == 6
    with pytest.raises(ConfigError, match="2 GPUs and there are 1"):
        span([(1, 2.0)], n_gpus=1)


@pytest.mark.parametrize("seed", range(50))
def test_a_makespan_is_between_its_bounds(seed):
    """Graham 1969: a list schedule takes at most the mean load and (1 - 1/m) of the longest job."""
    rng = random.Random(seed)
    m = rng.randint(1, 9)
    jobs = [(rng.uniform(1, 10), 0.0) for _ in range(rng.randint(1, 60))]
    load, longest = sum(s for s, _ in jobs) / m, max(s for s, _ in jobs)
    assert max(load, longest) - 1e-9 <= span(jobs, cpus=m) <= load + (1 - 1 / m) * longest + 1e-9
    # Slots of a GPU are slots all the same.
    shared = [(s, fraction_of(m)) for s, _ in jobs]
    assert math.isclose(span(shared, n_gpus=1), span(jobs, cpus=m))


def test_sizes_have_the_unit_that_people_use():
    assert [as_size(n) for n in (0, 340, 2048, 1.5 * 2**20, 80 * GIB)] == [
        "0 B", "340 B", "2.0 KiB", "1.5 MiB", "80.0 GiB"
    ]  # fmt: skip

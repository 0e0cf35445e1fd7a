"""What a sweep will take, for machines that need not be here."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from birdnet_core.training.probe import Probe
from birdnet_core.training.session import Session
from search_spaces.designs import FractionalFactorial
from search_spaces.study import Ablation, Search, base_config, trial_config
from tests.settings import SMALL
from tuning.engine.packing import Resources
from tuning.engine.placement import Machine, place, this_machine
from tuning.planning import plan, simulated_epochs

GIB = 2**30
FOUR_CPUS = Machine(cpus=4)
LOSSES = Ablation(
    name="losses",
    question="?",
    factors={"loss.name": ("cross_entropy", "focal"), "optim.lr": (1e-3, 1e-2)},
    base={"training.patience": 0},
    n_repeats=2,
)
RATES = Search(
    name="rates",
    question="?",
    space=lambda trial: {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)},
    n_trials=30,
    base={"training.epochs": 27},
)
PROBE = Probe(
    device="cpu", setup_s=1.0, step_s=0.5, val_batch_s=0.5, epoch_s=9.0, n_steps=17, n_val_batches=1,
    gpu_peak_bytes=None, gpu_context_bytes=None, rss_growth_bytes=1000, n_params=10, checkpoint_bytes=5_000,
    micro_batch_size=8,
)  # fmt: skip


def measured(config: TrainConfig, dataset: Dataset) -> Probe:
    """Cross-entropy takes 9 s an epoch, focal loss twice that."""
    return replace(PROBE, epoch_s=18.0) if config.loss.name == "focal" else PROBE


def on_gpu(config: TrainConfig, dataset: Dataset) -> Probe:
    peak = 30 * GIB if config.loss.name == "focal" else 9 * GIB
    return replace(measured(config, dataset), device="A GPU", gpu_peak_bytes=peak, gpu_context_bytes=GIB // 2)


@pytest.fixture
def planned(data, tmp_path):
    def run(
        study, *, settings=None, machine=FOUR_CPUS, measure=measured,
        cpus_per_trial=1, gpus_per_trial=None, concurrent=None, **options,
    ):  # fmt: skip
        resources = Resources(cpus=cpus_per_trial, gpus=gpus_per_trial, concurrent=concurrent)
        return plan(
            study,
            data.folder,
            tmp_path / "run",
            settings={**SMALL, **(settings or {})},
            machine=machine,
            measure=measure,
            resources=resources,
            **options,
        )

    return run


def test_an_ablation_by_hand(planned, tmp_path):
    got = planned(LOSSES)
    # 4 cells x 2 repeats; 2 epochs of 9 s and a second before, or of 18 s.
    assert (got.kind, got.n_trials, got.n_left, got.epochs_each, got.worst.epochs) == (
        "ablation",
        8,
        8,
        2,
        16,
    )
    assert [(arm.settings, arm.n_trials) for arm in got.arms] == [
        ({"loss.name": "cross_entropy"}, 4),
        ({"loss.name": "focal"}, 4),
    ]
    assert [arm.trial_hours for arm in got.arms] == [pytest.approx(19 / 3600), pytest.approx(37 / 3600)]
    assert got.worst.cpu_hours == pytest.approx(4 * (19 + 37) / 3600)
    # Four side by side, in the order 19 19 37 37 of each seed: two start at 19, the last two at 37.
    assert got.worst.hours == pytest.approx((37 + 37) / 3600)
    assert got.expected == got.worst and got.worst.gpu_hours == 0
    assert got.disk.checkpoints == 2 * 4 * 5_000
    assert not (tmp_path / "run").exists()


def test_a_plan_has_the_notes_of_its_design_and_names_equal_configs(planned):
    factors = {
        "augment.mixup.p": (0.0, 0.6),
        "augment.mixup.alpha": (0.2, 0.4),
        "loss.name": LOSSES.factors["loss.name"],
    }
    got = planned(replace(LOSSES, factors=factors, design=FractionalFactorial("III")))
    assert got.design["resolution"] == "III" and got.design["aliases"]["A"] == ["-BC"]
    assert got.design["notes"][0].startswith("2^(3-1), 4 of 8 combinations, resolution III")
    assert got.n_trials == 8 and got.notes == ()  # without mixup the two losses differ still

    both = planned(replace(LOSSES, factors={k: factors[k] for k in list(factors)[:2]}))
    assert both.n_trials == 6
    assert both.notes[0].startswith("4 cells are only 3 configs")
    assert planned(RATES).design is None


def test_cpus_of_a_trial_and_concurrent_lengthen_it(planned):
    assert planned(LOSSES, concurrent=1).worst.hours == pytest.approx(4 * (19 + 37) / 3600)
    two = planned(LOSSES, cpus_per_trial=2)
    assert (two.concurrent, two.cpus_per_trial) == (2, 2)
    assert two.worst.cpu_hours == pytest.approx(2 * 4 * (19 + 37) / 3600)
    with pytest.raises(ConfigError, match="5 CPUs and there are 4; lower --cpus-per-trial"):
        planned(LOSSES, cpus_per_trial=5)


def settle(run, study, config, status, number):
    run.append({"event": "trial", "study": study, "trial_id": config.trial_id, "number": number,
                "factors": {}, "reused": False})  # fmt: skip
    run.write_record(
        TrialRecord(
            trial_id=config.trial_id, config_id=config.config_id, repeat=config.repeat,
            seed=config.seed, status=status, config=config.to_dict(),
        )
    )  # fmt: skip


def test_what_the_run_folder_holds_is_not_trained_again(planned, tmp_path):
    run = RunFolder(tmp_path / "run")
    base = base_config(LOSSES, TrainConfig())
    for number, (cell, status) in enumerate(
        zip(LOSSES.cells(), ("completed", "failed", "killed", "completed"), strict=True)
    ):
        settle(run, "losses", trial_config(base, SMALL, cell), status, number)
    got = planned(LOSSES)
    assert (got.n_trials, got.n_done, got.n_left) == (8, 2, 6)

    base = base_config(RATES, TrainConfig())
    for number, status in enumerate(["completed", "pruned", "failed", "killed", "diverged"]):
        settle(run, "rates", base.override({"optim.lr": 0.01 * (number + 1)}), status, number)
    assert planned(RATES).n_left == 28
    none = planned(replace(RATES, n_trials=2))
    assert (none.n_left, none.arms, none.worst.hours, none.expected.hours) == (0, (), 0, 0)


def test_repeats_and_seeds_begin_where_the_user_sets_them(planned, tmp_path):
    run = RunFolder(tmp_path / "run")
    for number, cell in enumerate(LOSSES.cells()):
        config = trial_config(base_config(LOSSES, TrainConfig()), SMALL, cell).override(
            {"repeat": 1, "seed": 1}
        )
        settle(run, "losses", config, "completed", number)
    assert planned(LOSSES).n_left == 4  # repeats 0 and 1
    assert planned(LOSSES, settings={**SMALL, "repeat": 1, "seed": 1}).n_left == 4  # repeats 1 and 2
    assert planned(LOSSES, settings={**SMALL, "repeat": 2, "seed": 2}).n_left == 8  # repeats 2 and 3
    assert planned(LOSSES, settings={**SMALL, "seed": 1}).n_left == 8  # the same repeats with other seeds


def test_a_run_folder_on_other_data_is_refused(planned, tmp_path):
    RunFolder(tmp_path / "run").write_study(
        {"name": "x", "kind": "search", "metric": "val/loss", "direction": "minimize", "epochs": 4,
         "repeats": [0], "seed": 0, "n_trials": 3, "data": {"name": "owls", "data_id": "other"}}
    )  # fmt: skip
    with pytest.raises(RunFolderError, match=r"'owls' \(data other\).*another --out"):
        planned(LOSSES)


def test_settings_that_a_study_cannot_take_are_refused_before_data_are_read(planned):
    with pytest.raises(ConfigError, match="optim.lr cannot be set here"):
        planned(LOSSES, settings={"optim.lr": 0.1})
    with pytest.raises(ConfigError, match="refuses .*dropout=7"):
        planned(LOSSES, settings={"model.dropout": 7.0})


def test_a_search_expects_what_its_scheduler_leaves_and_at_worst_all(planned):
    def of(scheduler, **options):
        study = replace(RATES, scheduler=scheduler, **options)
        return planned(study, settings={"training.epochs": 27}, concurrent=2)

    got = {name: of(name) for name in ("fifo", "asha", "hyperband", "median")}
    assert {each.worst.epochs for each in got.values()} == {30 * 27}
    assert got["fifo"].expected == got["fifo"].worst
    epochs = {name: each.expected.epochs for name, each in got.items()}
    assert epochs["asha"] < epochs["hyperband"] < epochs["median"] < epochs["fifo"]
    trial = (1 + 27 * 9) / 3600
    for each in got.values():
        assert each.expected.cpu_hours == pytest.approx((30 + 9 * each.expected.epochs) / 3600)
        assert trial <= each.expected.hours <= each.worst.hours
        assert 2 * each.expected.hours >= each.expected.cpu_hours
    assert of("asha", n_trials=1).expected.hours == pytest.approx(trial)
    assert of("asha").expected == got["asha"].expected  # the same each time


def test_a_search_by_folds_trains_a_tenth_of_its_configs_on_the_further_folds(planned):
    found = planned(
        replace(RATES, n_trials=20, scheduler="fifo", folds=True),
        settings={"data.folds": 4, "training.epochs": 27},
    )
    assert (found.n_trials, found.n_left, found.n_further) == (20, 20, 2 * 3)
    assert found.worst.epochs == found.expected.epochs == 26 * 27
    assert found.expected.cpu_hours == pytest.approx(26 * (1 + 27 * 9) / 3600)
    ended_early = planned(replace(RATES, folds=True), settings={"training.epochs": 27})
    assert ended_early.expected.epochs < ended_early.worst.epochs
    with pytest.raises(ConfigError, match="one validation split: data.folds = 1"):
        planned(replace(RATES, folds=True), settings={"data.folds": 1})


def test_trials_that_compete_within_groups_are_simulated_within_them(planned):
    # In groups of one each, nobody is worse than anybody.
    alone = replace(RATES, asha_within="optim.lr")
    assert planned(alone, settings={"training.epochs": 27}).expected.epochs == 30 * 27
    assert planned(RATES, settings={"training.epochs": 27}).expected.epochs < 15 * 27


def test_what_is_trained_already_sets_the_bar_for_what_is_left(planned, tmp_path):
    run, base = RunFolder(tmp_path / "run"), base_config(RATES, TrainConfig())
    whole = planned(RATES, settings={"training.epochs": 27}).expected.epochs
    for number in range(15):
        settle(run, "rates", base.override({"optim.lr": 0.0001 * (number + 1)}), "pruned", number)
    half = planned(RATES, settings={"training.epochs": 27})
    # Later trials meet fuller rungs: the second half of a search trains less than the first.
    assert half.n_left == 15 and half.expected.epochs < 0.48 * whole


def test_of_many_arms_the_ends_of_each_network_are_measured_and_the_others_lie_between(planned):
    sizes = (8, 16, 24, 32, 40, 48)
    wide = Ablation(
        name="wide", question="?", n_repeats=1, base={"training.patience": 0},
        factors={"model.width": sizes, "training.micro_batch_size": (4, 8)},
    )  # fmt: skip
    measured = []

    def by_width(config, dataset):
        measured.append((config.model.kwargs["width"], config.training.micro_batch_size))
        return replace(PROBE, epoch_s=config.model.kwargs["width"] ** 2, rss_growth_bytes=measured[-1][1])

    got = planned(wide, measure=by_width)
    assert measured == [(48, 8), (8, 8)]
    assert len(got.arms) == 12 and sum(arm.is_measured for arm in got.arms) == 2
    for arm in got.arms:
        width = arm.settings["model.width"]
        # Parameters, and so the work, grow by the square of the width, but for the first and last layers.
        assert arm.probe.epoch_s == pytest.approx(width**2, rel=0.15)
        assert arm.probe.rss_growth_bytes == 8  # of the larger micro-batch, also where it is 4
    few = planned(replace(wide, factors={"model.width": sizes}), measure=by_width)
    assert all(arm.is_measured for arm in few.arms)


# GPUs

TWO = Machine(cpus=32, gpus=(80 * GIB, 80 * GIB))


def test_auto_packs_each_arm_by_its_own_peak(planned):
    got = planned(LOSSES, machine=TWO, measure=on_gpu, gpus_per_trial="auto")
    ce, focal = got.arms
    # Of 76 GiB: 9.5 eight times, 30.5 twice.
    assert (ce.gpus_per_trial, ce.concurrent) == (0.125, 16)
    assert (focal.gpus_per_trial, focal.concurrent) == (0.5, 4)
    assert got.worst.gpu_hours == pytest.approx(4 * (19 / 8 + 37 / 2) / 3600)
    assert got.taking_turns_hours == pytest.approx(4 * (19 + 37) / 2 / 3600)
    assert got.worst.hours < got.taking_turns_hours
    assert got.notes == ()


def test_without_a_word_each_trial_has_a_gpu_of_its_own(planned):
    got = planned(LOSSES, machine=TWO, measure=on_gpu)
    assert got.concurrent == 2 and got.taking_turns_hours is None
    assert got.worst.gpu_hours == pytest.approx(got.worst.cpu_hours)


def test_a_share_that_is_too_small_for_an_arm_is_a_note(planned):
    got = planned(LOSSES, machine=TWO, measure=on_gpu, gpus_per_trial=0.25)
    (note,) = got.notes
    assert "loss.name=focal took 30.0 GiB" in note and "0.25 of a GPU leaves it 18.5 GiB" in note


@pytest.mark.parametrize("gpus", [None, "auto", 0.25, 0.4, 1.0, 2.0, 0.0])
def test_a_plan_gives_trials_what_a_sweep_gives(planned, data, gpus):
    got = planned(LOSSES, machine=TWO, measure=on_gpu, gpus_per_trial=gpus)
    base = base_config(LOSSES, TrainConfig(), SMALL)
    configs = [trial_config(base, SMALL, cell) for cell in LOSSES.cells()]
    swept = place(
        gpus, 1, [TWO.node], configs, data.folder, measure=lambda c, _: on_gpu(c, None), gpu_bytes=80 * GIB
    )
    for arm, loss in zip(got.arms, ("cross_entropy", "focal"), strict=True):
        config = next(each for each in configs if each.loss.name == loss)
        given = swept.of(config.to_dict())
        assert (arm.gpus_per_trial, arm.memory_cap) == (given["resources"]["gpu"], given["memory_cap"])
    assert got.concurrent == min(swept.concurrent, 8)


def test_an_arm_larger_than_the_gpu_is_named(planned):
    small = Machine(cpus=8, gpus=(24 * GIB,))
    with pytest.raises(ConfigError, match=r"loss.name=focal .*30.5 GiB.*training.micro_batch_size"):
        planned(LOSSES, machine=small, measure=on_gpu, gpus_per_trial="auto")


def test_gpus_that_are_requested_and_not_used_or_used_and_not_requested_are_a_note(planned):
    assert "give --gpus-per-trial 0" in planned(LOSSES, machine=TWO).notes[0]
    asked = planned(LOSSES, machine=TWO, measure=on_gpu, gpus_per_trial=0.0)
    assert "give --gpus-per-trial a share" in asked.notes[0]


def test_gpus_that_are_not_here(planned):
    assert planned(LOSSES, gpus_per_trial="auto").worst.gpu_hours == 0
    with pytest.raises(ConfigError, match="asks for 0.5 GPUs and there are 0"):
        planned(LOSSES, gpus_per_trial=0.5)


# budgets


def test_the_plan_names_the_budget_that_ends_first_with_its_trials(planned):
    gpu = {"machine": TWO, "measure": on_gpu}
    whole = planned(LOSSES, **gpu)
    hours, gpu_hours = whole.worst.hours, whole.worst.gpu_hours
    assert whole.cut is None
    assert planned(LOSSES, budget_hours=hours, budget_gpu_hours=gpu_hours, **gpu).cut is None
    half = planned(LOSSES, budget_hours=hours / 2, budget_gpu_hours=gpu_hours / 4 * 3, **gpu).cut
    assert (half.budget, half.after_trials) == ("--budget-hours", 4)
    quarter = planned(LOSSES, budget_hours=hours / 2, budget_gpu_hours=gpu_hours / 4, **gpu).cut
    assert (quarter.budget, quarter.after_trials) == ("--budget-gpu-hours", 2)
    assert planned(LOSSES, budget_gpu_hours=0.0).cut is None  # no GPU, no GPU-hours


# what is really here


def test_on_this_machine_with_real_steps(data, tmp_path, small_config, small_dataset):
    got = plan(LOSSES, data.folder, tmp_path / "run", settings=SMALL)
    assert got.machine == this_machine() and got.machine.cpus >= 1
    assert len(got.arms) == 2 and all(arm.probe.step_s > 0 for arm in got.arms)
    assert {store.n_bytes > 10_000 for store in got.stores} == {True}
    session = Session(small_config, small_dataset)
    session.step()
    record = len(json.dumps(session.record("completed").to_dict(), indent=1))
    assert record < got.disk.run_folder / got.n_trials < 5 * record


# What schedulers leave


def epochs_under_ray(n_trials, max_epochs, grace, factor, rng, *, is_lasting, concurrent):
    """Train `n_trials` under Ray's own bracket: values that last over the epochs, or are drawn anew."""
    bracket = _Bracket(grace, max_epochs, factor, 0)
    waiting = [type("T", (), {"trial_id": str(i), "value": rng.normal()})() for i in range(n_trials)]
    running, total = [], 0
    while waiting or running:
        while waiting and len(running) < concurrent:
            running.append([waiting.pop(), 0])
        for each in list(running):
            each[1] += 1
            total += 1
            value = each[0].value if is_lasting else rng.normal()
            is_stopped = bracket.on_result(each[0], each[1], value) == TrialScheduler.STOP
            if each[1] >= max_epochs or is_stopped:
                running.remove(each)
    return total


def expected_epochs(scheduler, n_trials, max_epochs, grace=3, factor=3, concurrent=2, audit=0.0):
    study = replace(RATES, scheduler=scheduler, grace_epochs=grace, reduction_factor=factor, audit=audit)
    trials = [TrainConfig().override({"training.epochs": max_epochs})] * n_trials
    return np.mean([sum(s) for s in simulated_epochs(study, trials, side_by_side=concurrent)])


@pytest.mark.parametrize(
    ("n_trials", "max_epochs", "grace", "factor", "concurrent"),
    [
        (6, 30, 3, 3, 2),
        (12, 8, 3, 3, 2),
        (40, 50, 3, 3, 4),
        (40, 27, 1, 3, 1),
        (100, 64, 4, 4, 16),
        (30, 50, 1, 2, 8),
    ],
)
def test_expected_epochs_under_asha_are_those_of_rays(n_trials, max_epochs, grace, factor, concurrent):
    def mean(*, is_lasting):
        rng = np.random.default_rng(1)
        return np.mean(
            [
                epochs_under_ray(
                    n_trials, max_epochs, grace, factor, rng, is_lasting=is_lasting, concurrent=concurrent
                )
                for _ in range(100)
            ]
        )

    expected = expected_epochs("asha", n_trials, max_epochs, grace, factor, concurrent)
    assert expected == pytest.approx(mean(is_lasting=True), rel=0.15)
    # Where a rung says nothing of the next, leaders do not last, and more are stopped.
    assert 0.95 * mean(is_lasting=False) < expected < n_trials * max_epochs


def test_hyperband_is_the_mean_of_its_brackets_by_their_weights():
    # Rungs 3, 9, 27 of 81, which is a rung too: brackets of 1 ... 4 trainings of weights 27, 12, 6, 4.
    n, whole = 400, 81
    alone = [expected_epochs("asha", n, whole, grace) / n for grace in (3, 9, 27)] + [whole]
    by_hand = n * np.average(alone, weights=[27, 12, 6, 4])
    assert expected_epochs("hyperband", n, whole) == pytest.approx(by_hand, rel=0.1)


def test_searches_that_were_measured_are_within_what_is_expected():
    # benchmarks/RESULTS.md: 2,000 epochs of three repeats, so many times fewer under each rule. Ranks that do
    # not last make real searches under ASHA and HyperBand shorter.
    measured = {"asha": (4.90, 4.41), "hyperband": (2.48, 2.38), "median": (1.87, 1.12)}
    for scheduler, (most, least) in measured.items():
        low, high = 2000 / most, 2000 / least
        assert 0.95 * low < expected_epochs(scheduler, 40, 50) < 1.25 * high


def test_audits_are_part_of_what_is_expected():
    without, some, all_of_them = (expected_epochs("asha", 40, 50, audit=share) for share in (0.0, 0.2, 1.0))
    assert all_of_them == 40 * 50
    # A fifth of what ending trials saves is given back.
    assert some - without == pytest.approx(0.2 * (2000 - without), rel=0.25)


def test_a_simulation_of_many_trials_goes_on_as_its_second_half():
    long = expected_epochs("asha", 1500, 50)
    assert 2.2 * expected_epochs("asha", 500, 50) < long < 3 * expected_epochs("asha", 500, 50)


def test_without_a_rung_below_the_budget_every_epoch_is_trained():
    assert expected_epochs("asha", 10, 3) == 30
    assert expected_epochs("asha", 10, 2, grace=5) == 20

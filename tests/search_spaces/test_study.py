import math
from collections import Counter
from dataclasses import replace

import optuna
import pytest

from birdnet_core import registry
from birdnet_core.build import input_shape, rehearse
from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.presets import PRESETS
from search_spaces.designs import (
    FractionalFactorial,
    FullFactorial,
    LatinHypercube,
    LeaveOneOut,
    Range,
    SingleConfig,
)
from search_spaces.loading import load_study
from search_spaces.study import Ablation, Gate, Search, base_config, cautions, check, group_of, trial_config

STUDIES = registry.studies.names()
SEARCHES = [name for name in STUDIES if isinstance(load_study(name), Search)]
ABLATIONS = [name for name in STUDIES if name not in SEARCHES]
SPECIES = ["Turdus merula", *(f"species {n}" for n in range(88))]


def local(name, checkpoints):
    """Return the options with which study `name` needs no network."""
    folders = {model.removeprefix("audio_"): folder for model, folder in checkpoints.items()}
    return {option: folders[option] for option in registry.studies[name].options if option in folders}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", STUDIES)
def test_every_config_of_every_study_is_valid(name, quick):
    study = load_study(name, quick=quick)
    assert check(study, base_config(study, TrainConfig()), {})


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ABLATIONS)
def test_the_cells_of_every_ablation_build_and_differ(name, quick, checkpoints):
    study = load_study(name, quick=quick, options=local(name, checkpoints))
    configs = check(study, base_config(study, TrainConfig()), {})
    assert len({config.config_id for config in configs}) == len(study.cells()) == len(configs) > 1
    for config in configs:
        assert rehearse(config, input_shape(config), SPECIES) > 0


@pytest.mark.parametrize("is_pretrained", [False, True])
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", SEARCHES)
def test_whatever_a_search_samples_builds(name, quick, is_pretrained, checkpoints):
    options = local(name, checkpoints) if is_pretrained else {}
    study = load_study(name, quick=quick, options=options)
    configs = check(study, base_config(study, TrainConfig()), {})
    assert len(configs) >= 50
    for config in configs:
        assert rehearse(config, input_shape(config), SPECIES) > 0


@pytest.mark.parametrize("base", PRESETS)
def test_the_joint_search_samples_what_builds_whatever_the_base(base, checkpoints):
    settings = dict(PRESETS[base].overrides)
    if "model.pretrained" in settings:
        settings["model.pretrained"] = checkpoints["audio_ast"]
    study = load_study("joint")
    for config in check(study, base_config(study, TrainConfig().override(settings)), {}):
        assert config.model.kwargs.get("pretrained") is None
        assert rehearse(config, input_shape(config), SPECIES) > 0


@pytest.mark.parametrize("name", ["augmentation", "regularization", "learning-rate"])
def test_studies_of_the_base_configs_network_take_a_pretrained_one(name, checkpoints):
    settings = {**PRESETS["phase3-full"].overrides, "model.pretrained": checkpoints["audio_ast"]}
    study = load_study(name, options={"backbone": True} if name == "learning-rate" else {})
    for config in check(study, base_config(study, TrainConfig().override(settings)), {}):
        assert config.model.kwargs["pretrained"] == checkpoints["audio_ast"]
        assert rehearse(config, input_shape(config), SPECIES) > 0


@pytest.mark.parametrize("name", ABLATIONS)
def test_cells_train_equally_long_but_for_the_phases(name):
    study = load_study(name)
    patience = {c.training.patience for c in check(study, base_config(study, TrainConfig()), {})}
    assert patience == ({7} if name == "phases" else {0})


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_question(name):
    assert load_study(name).question.endswith("?")


@pytest.mark.parametrize("name", STUDIES)
def test_quick_is_smaller(name):
    study, quick = load_study(name), load_study(name, quick=True)
    long, short = (base_config(s, TrainConfig()).training.epochs for s in (study, quick))
    assert short < long
    if isinstance(study, Search):
        assert quick.n_trials < study.n_trials
    else:
        assert quick.n_repeats < study.n_repeats


def test_quick_factors_replace_the_levels_that_they_name():
    study, quick = load_study("warmup"), load_study("warmup", quick=True)
    assert study.levels() == {"optim.warmup_epochs": (0, 5), "weights": ("pretrained", "scratch")}
    assert quick.levels() == {"optim.warmup_epochs": (0, 2), "weights": ("pretrained", "scratch")}


def test_a_factorial_is_balanced_and_holds_its_baseline():
    study = Ablation(factors={"loss.name": ("cross_entropy", "focal"), "optim.lr": (1e-3, 1e-4, 1e-5)})
    cells = study.cells()
    assert len(cells) == 6
    for factor, levels in study.factors.items():
        assert Counter(cell[factor] for cell in cells) == dict.fromkeys(levels, 6 // len(levels))
    assert study.baseline_cell() == {"loss.name": "cross_entropy", "optim.lr": 1e-3}
    assert study.baseline_cell() in cells


PARTS = {
    "mixup": {"with": {"augment.mixup.p": 0.6, "augment.mixup.alpha": 0.4}, "without": {}},
    "loss": {"with": {"loss.name": "focal", "loss.gamma": 1.0}, "without": {}},
}


def test_named_levels_become_their_settings_in_the_configs():
    study = Ablation(factors=PARTS, design=LeaveOneOut())
    configs = check(study, base_config(study, TrainConfig()), {})
    settings = [
        ({a.name: a.kwargs["p"] for a in c.augment}["mixup"], c.loss.name, c.loss.kwargs.get("gamma"))
        for c in configs
    ]
    assert settings == [
        (0.6, "focal", 1.0),
        (0.0, "focal", 1.0),
        (0.6, "cross_entropy", None),
        (0.0, "cross_entropy", None),
    ]


def test_ranges_become_settings_and_there_is_no_baseline():
    study = Ablation(
        factors={
            "optim.lr": Range(1e-4, 1e-2, log=True),
            "optim.warmup_epochs": Range(0, 5, integer=True),
            **PARTS,
        },
        design=LatinHypercube(8),
    )
    configs = check(study, base_config(study, TrainConfig()), {})
    assert study.baseline_cell() is None
    assert len({c.optim.lr for c in configs}) == 8
    assert [c.optim.lr for c in configs] == [cell["optim.lr"] for cell in study.cells()]
    assert {c.optim.warmup_epochs for c in configs} <= set(range(6))
    assert Counter(c.loss.name for c in configs) == {"focal": 4, "cross_entropy": 4}


def test_faults_of_factors_are_listed_all_at_once_before_any_config_is_made():
    study = Ablation(
        factors={"loss.name": ("focal", "focal"), "optim.lr": Range(1e-4, 1e-2)},
        baseline={"loss.nam": "focal"},
    )
    with pytest.raises(ConfigError) as caught:
        check(study, base_config(study, TrainConfig()), {})
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    for words in ("'focal' twice", "'optim.lr' is a range", "did you mean 'loss.name'?"):
        assert sum(words in line for line in lines) == 1


def test_the_facts_of_a_design_begin_with_its_kind_and_size():
    factors = {f"augment.{name}.p": (0.0, 0.5) for name in registry.augmentations.names()[:5]}
    facts = Ablation(factors=factors, design=FractionalFactorial("III")).design_facts()
    assert (facts["kind"], facts["n_cells"], facts["n_full"]) == ("fractional factorial", 8, 32)
    assert Ablation(factors=factors).design_facts() == {"kind": "full factorial", "n_cells": 32, "notes": []}


def test_cells_that_are_the_same_config_are_named():
    # Without mixup its alpha has no meaning.
    factors = {"augment.mixup.p": (0.0, 0.6), "augment.mixup.alpha": (0.2, 0.4)}
    study = Ablation(factors=factors)
    configs = check(study, base_config(study, TrainConfig()), {})
    (caution,) = cautions(study, configs)
    assert caution.startswith("4 cells are only 3 configs")
    assert (
        "(augment.mixup.p=0.0, augment.mixup.alpha=0.2) and (augment.mixup.p=0.0, augment.mixup.alpha=0.4)"
        in caution
    )
    apart = Ablation(factors=factors | {"augment.mixup.p": (0.3, 0.6)}, design=FullFactorial())
    assert cautions(apart, check(apart, base_config(apart, TrainConfig()), {})) == []


def test_cautions_of_the_configs_are_listed_once_each():
    settings = {"model.name": "efficientnet", "model.pretrained": "google/efficientnet-b0"}
    settings["optim.backbone_lr"] = 1e-4
    study = Ablation(factors={"loss.name": ("cross_entropy", "focal")})
    found = cautions(study, check(study, base_config(study, TrainConfig()), settings))
    assert len(found) == 1 and "warmup_epochs" in found[0]


def test_capacity_is_two_networks_by_two_losses_at_full_budget():
    study = load_study("capacity")
    base = base_config(study, TrainConfig())
    configs = [trial_config(base, {}, cell) for cell in study.cells()]
    assert {(c.model.name, c.loss.name) for c in configs} == {
        (m, loss) for m in ("audio_cnn", "audio_cnn_v2") for loss in ("cross_entropy", "focal")
    }
    assert {c.training.patience for c in configs} == {0}
    assert len({c.config_id for c in configs}) == 4


def test_gamma_0_is_the_baseline_of_both_networks():
    study = load_study("gamma-sensitivity")
    assert study.baseline_cell() == {"loss.gamma": 0.0, "model.name": "audio_cnn"}
    gammas = {(c["model.name"], c["loss.gamma"]) for c in study.cells()}
    assert gammas == {(m, g) for m in ("audio_cnn", "audio_cnn_v2") for g in (0, 0.5, 1, 2, 3, 5)}


def test_width_and_depth_span_the_two_networks_of_the_earlier_work():
    study = load_study("width-depth")
    configs = check(study, base_config(study, TrainConfig()), {})
    sizes = {}
    for config in configs:
        key = config.model.kwargs["depth"], config.model.kwargs["width"]
        sizes[key] = rehearse(config, input_shape(config), SPECIES) / len(SPECIES)
    stated = {
        (3, 32): 3860,
        (3, 40): 5950,
        (3, 56): 11_460,
        (4, 32): 15_180,
        (4, 40): 23_590,
        (4, 56): 45_820,
    }
    assert sizes == pytest.approx(stated, rel=0.002)


def test_transfer_leaves_out_a_network_without_a_checkpoint():
    study = load_study("transfer", options={"vit": None, "ast": "checkpoints/ast"})
    networks = study.factors["network"]
    assert list(networks) == ["audio_ast", "efficientnet", "convnext"]
    assert networks["audio_ast"] == {"model.name": "audio_ast", "model.pretrained": "checkpoints/ast"}
    assert networks["convnext"]["model.pretrained"] == "facebook/convnext-tiny-224"


def test_phases_are_the_presets_as_they_were_with_another_checkpoint_at_most():
    study = load_study("phases")
    base = base_config(study, TrainConfig())
    for cell in study.cells():
        preset = TrainConfig().override(PRESETS[cell["phase"]].overrides)
        assert trial_config(base, {}, study.overrides(cell)) == preset.override(
            {"training.monitor": "val/accuracy"}
        )
    assert [cell["phase"] for cell in study.cells()] == list(PRESETS)
    assert not any(
        "ast" in str(c) for c in load_study("phases", options={"ast": None}).factors["phase"].values()
    )
    there = load_study("phases", options={"ast": "checkpoints/ast"}).factors["phase"]
    assert [p for p, level in there.items() if level.get("model.pretrained") == "checkpoints/ast"] == [
        "phase3-baseline", "phase3-full"
    ]  # fmt: skip


def test_an_unknown_option_of_a_study_is_refused_with_the_near_one():
    with pytest.raises(
        ConfigError, match=r"study 'transfer' has no option 'vitt'; did you mean 'vit'\? .*ast"
    ):
        load_study("transfer", options={"vitt": "x"})
    with pytest.raises(ConfigError, match=r"study 'capacity' has no option 'ast' \(it takes none\)"):
        load_study("capacity", options={"ast": "x"})
    with pytest.raises(ConfigError, match=r"option 'ast' of study 'warmup' = 3 .*; it takes str"):
        load_study("warmup", options={"ast": 3})


@pytest.mark.parametrize(
    ("metric", "target", "stretch"), [("val/f1_macro", 0.25, 0.3), ("val/loss", 2.0, 1.0)]
)
def test_the_stretch_of_a_gate_is_better_than_its_target(metric, target, stretch):
    Gate(metric=metric, target=target, stretch=stretch)
    with pytest.raises(ConfigError, match=rf"gate on {metric}: stretch = .* is no better than target"):
        Gate(metric=metric, target=stretch, stretch=target)


def test_only_the_earlier_experiments_come_with_gates():
    assert [name for name in registry.studies.names() if load_study(name).gates] == ["phases"]


def test_a_gate_on_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match=r"unknown metric 'val/f1_rear'; did you mean 'val/f1_rare'"):
        Gate(metric="val/f1_rear", target=0.1)


def test_gamma_is_sampled_only_under_focal():
    study = load_study("learning-rate")
    sampler = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    sampled = [study.space(sampler.ask()) for _ in range(60)]
    assert {s["loss.name"] for s in sampled} == {"cross_entropy", "focal"}
    assert all(("loss.gamma" in s) == (s["loss.name"] == "focal") for s in sampled)
    assert all(1e-4 <= s["optim.lr"] <= 1e-2 for s in sampled)


def test_the_users_settings_win_over_the_study_and_the_base_comes_first():
    study = load_study("capacity")
    base = base_config(study, TrainConfig().override({"optim.lr": 0.1, "training.patience": 9}))
    config = trial_config(base, {"optim.weight_decay": 0.5}, study.cells()[0])
    assert (config.optim.lr, config.training.patience, config.optim.weight_decay) == (0.1, 0, 0.5)


def test_setting_what_a_study_varies_is_refused():
    for name, key in (("capacity", "model.name"), ("learning-rate", "optim.lr")):
        study = load_study(name)
        with pytest.raises(ConfigError, match=f"{key} cannot be set"):
            check(
                study, base_config(study, TrainConfig()), {key: "audio_cnn" if key == "model.name" else 0.1}
            )


def test_faults_of_all_cells_are_listed_once_each():
    study = load_study("capacity")
    with pytest.raises(ConfigError) as caught:
        check(study, base_config(study, TrainConfig()), {"model.widht": 3})
    lines = str(caught.value).split("\n")
    assert len(lines) == 2  # one a model, not one a cell
    assert all("widht" in line for line in lines)


def test_an_unknown_study_is_refused_with_the_near_one():
    with pytest.raises(ConfigError, match=r"'capacty'; did you mean 'capacity'"):
        load_study("capacty")


def models(trial):
    return {"model.name": trial.suggest_categorical("model.name", ["audio_cnn", "efficientnet"])}


def test_a_search_over_the_split_is_refused():
    def space(trial):
        return {"data.split": trial.suggest_categorical("data.split", ["grouped", "random-windows"])}

    with pytest.raises(ConfigError, match="'leak' searches over data.split"):
        check(Search(name="leak", space=space), TrainConfig(), {})
    assert check(Search(name="leak", space=lambda trial: {}), TrainConfig(), {"data.split": "random-windows"})


def test_a_search_over_the_budget_of_a_trial_is_refused():
    def space(trial):
        return {"training.epochs": trial.suggest_categorical("training.epochs", [5, 10])}

    with pytest.raises(ConfigError, match="'long' searches over the budget of a trial, 5 to 10 epochs"):
        check(Search(name="long", space=space), TrainConfig(), {})
    assert check(Search(name="long", space=lambda trial: {}), TrainConfig(), {"training.epochs": 5})


def test_a_rung_metric_is_a_validation_metric():
    with pytest.raises(ConfigError, match=r"rung_metric = 'val/f1' is no validation metric; did you mean"):
        Search(space=models, rung_metric="val/f1")
    with pytest.raises(ConfigError, match="'train/loss' is no validation metric"):
        Search(space=models, rung_metric="train/loss")


def test_asha_within_is_refused_where_no_trial_has_the_setting():
    with pytest.raises(ConfigError, match=r"asha_within = 'model.nam' .*; did you mean 'model.name'\?"):
        check(Search(space=models, asha_within="model.nam"), TrainConfig(), {})
    assert check(Search(space=models, asha_within="model.name"), TrainConfig(), {})
    # An option that only one of the two models has is enough.
    assert check(Search(space=models, asha_within="model.pretrained"), TrainConfig(), {})


def test_a_trial_competes_in_the_group_of_its_setting():
    configs = check(Search(space=models), TrainConfig(), {})
    assert {group_of(c, "model.name") for c in configs} == {"audio_cnn", "efficientnet"}
    assert {group_of(c, None) for c in configs} == {None}
    by_epochs = [group_of(c.override({"training.epochs": 7}), "training.epochs") for c in configs]
    assert set(by_epochs) == {"7"}
    for config in configs:
        assert (group_of(config, "model.pretrained") is None) == (config.model.name == "audio_cnn")


@pytest.mark.parametrize("name", STUDIES)
def test_a_built_in_search_over_models_stops_trials_within_a_model(name):
    study = load_study(name)
    configs = check(study, base_config(study, TrainConfig()), {})
    if isinstance(study, Search) and len({c.model.name for c in configs}) > 1:
        assert study.asha_within == "model.name"


FRONT = Search(space=lambda trial: {}, scheduler="fifo", also=("n_params", "val/loss"))


def test_a_search_of_several_objectives_names_them_all_and_passes_its_check():
    assert FRONT.objectives == ("val/f1_macro", "n_params", "val/loss")
    assert check(FRONT, base_config(FRONT, TrainConfig()), {})


@pytest.mark.parametrize(
    ("also", "words"),
    [
        (
            ("n_param",),
            r"unknown objective 'n_param'; did you mean 'n_params'\? \(known: n_params, hours, train/",
        ),
        (("val/f1_macro",), "has an objective twice"),
        (("hours", "hours"), "has an objective twice"),
    ],
)
def test_objectives_that_cannot_be_used_are_refused(also, words):
    study = Search(name="front", space=lambda trial: {}, also=also)
    with pytest.raises(ConfigError, match=words):
        check(study, base_config(study, TrainConfig()), {})


def test_only_fifo_takes_several_objectives():
    base = base_config(FRONT, TrainConfig())
    with pytest.raises(
        ConfigError, match=r"scheduler 'asha' compares trials by one value.*3 objectives .*'fifo'"
    ):
        check(replace(FRONT, scheduler="asha"), base, {})


def test_trials_that_are_not_validated_cannot_be_compared():
    learns_all = {"training.train_on": "train+val"}
    alone = Ablation(name="final", factors={}, design=SingleConfig())
    (config,) = check(alone, base_config(alone, TrainConfig()), learns_all)
    assert (config.training.train_on, alone.cells(), alone.baseline_cell()) == ("train+val", [{}], {})
    for study in (load_study("capacity"), load_study("learning-rate")):
        with pytest.raises(ConfigError, match="decides by val/f1_macro.*nothing to validate on"):
            check(study, base_config(study, TrainConfig()), learns_all)


@pytest.mark.parametrize("name", ["a/b", "../x", "a b", "a\0", ".x", "x" * 101])
def test_a_study_whose_name_cannot_name_files_is_refused_where_it_is_defined(name):
    factors = {"optim.lr": (1e-3, 1e-4)}
    for make in (
        lambda: Ablation(factors=factors, name=name),
        lambda: Search(space=lambda trial: {}, name=name),
        lambda: replace(Ablation(factors=factors), name=name),
    ):
        with pytest.raises(ConfigError, match=r"a study cannot be named .*; a name holds letters, digits"):
            make()


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Ablation, {"n_repeats": 3.0}, "n_repeats = 3.0 is not accepted; it takes int"),
        (Ablation, {"quick_repeats": True}, "quick_repeats = True is not accepted; it takes int"),
        (Ablation, {"n_repeats": 0}, "n_repeats = 0 is out of range; it takes 1 or more"),
        (Search, {"n_trials": 1e2}, "n_trials = 100.0 is not accepted; it takes int"),
        (Search, {"grace_epochs": math.nan}, "grace_epochs = nan is not a finite number; it takes int"),
        (Search, {"reduction_factor": 1}, "reduction_factor = 1 is out of range; it takes 2 or more"),
    ],
)
def test_counts_of_a_study_are_whole_numbers(kind, given, message):
    with pytest.raises(ConfigError, match=message):
        kind(**{"factors": {}} if kind is Ablation else {"space": lambda trial: {}}, **given)


def test_a_repeat_is_a_fresh_fold_and_seed_and_a_seed_a_fresh_seed_alone():
    first = TrainConfig().override({"repeat": 2, "seed": 7})
    study = Ablation(factors={}, n_repeats=3)
    assert study.repeats(first) == [
        {"repeat": 2, "seed": 7}, {"repeat": 3, "seed": 8}, {"repeat": 4, "seed": 9}
    ]  # fmt: skip
    assert replace(study, vary="seed").repeats(first) == [{"repeat": 2, "seed": 7 + i} for i in range(3)]
    with pytest.raises(ConfigError, match="vary = 'fold' is not accepted; it takes 'repeat'"):
        replace(study, vary="fold")


def test_a_gate_takes_finite_numbers():
    with pytest.raises(ConfigError, match="target = nan is not a finite number; it takes float"):
        Gate(metric="val/f1_macro", target=math.nan)


@pytest.mark.parametrize("labels", [True, False])
def test_probe_starts_linear_heads_from_the_backbones_labels_unless_these_are_left_out(labels):
    study = load_study("probe", options={"labels": labels})
    starts = {
        (config.model.name, config.model.kwargs.get("start"))
        for config in check(study, base_config(study, TrainConfig()), {})
    }
    assert (("linear", "labels") in starts) is labels
    assert {("linear", "random"), ("mlp", None), ("prototype", None)} <= starts


def test_folds_are_a_fidelity_of_one_objective():
    with pytest.raises(ConfigError, match="has 3 objectives .*; folds are a fidelity of searches with one"):
        check(replace(FRONT, folds=True), TrainConfig(), {})

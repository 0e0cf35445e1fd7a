"""A study in YAML: good ones are read as written, bad ones refused with all faults."""

from pathlib import Path

import pytest

from birdnet_core import registry
from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.bounds import Bound
from search_spaces.designs import (
    FractionalFactorial,
    FullFactorial,
    LatinHypercube,
    LeaveOneOut,
    OneAtATime,
    Range,
)
from search_spaces.files.study_plain import to_yaml
from search_spaces.files.study_yaml import culprits, parse_study
from search_spaces.loading import load_study
from search_spaces.space import Parameter, Space, sample
from search_spaces.study import QUICK, Ablation, Gate, Search, base_config, check, in_quick_size, trial_config

ABLATION = """
question: Does MixUp help with focal loss?
base: {training.patience: 0}
epochs: 12
factors:
  loss.name: [cross_entropy, focal]
  optim.lr: [1e-3, 1e-4]
  mixup:
    off: {}
    on: {augment.mixup.p: 0.6, augment.mixup.alpha: 0.2}
baseline: {mixup: on, optim.lr: 1e-4}
design: one-at-a-time
repeats: 5
metric: val/map
gates:
  - {metric: val/map, target: 0.4}
  - {metric: val/loss, target: 1, stretch: 0.5}
"""

SEARCH = """
name: rates
question: Which rates?
kind: search
base: {model.name: audio_cnn_v2}
space:
  optim.lr: {low: 1e-4, high: 1e-2, log: true}
  optim.warmup_epochs: {low: 0, high: 4, step: 2}
  loss.gamma: {low: 0.5, high: 5, when: {loss.name: focal}}
  loss.name: [cross_entropy, focal]
  augment.mixup.alpha: {values: [0.2, 0.4], when: {augment.mixup.p: [0.5, 1]}}
  augment.mixup.p: [0, 0.5, 1]
trials: 9
scheduler: hyperband
grace_epochs: 2
reduction_factor: 4
folds: true
rung_metric: val/loss
asha_within: loss.name
quick: {training.epochs: 2, trials: 3}
"""


def parse(text, path="mine.yaml"):
    return parse_study(text.lstrip("\n"), Path(path))


def configs(study):
    base = base_config(study, TrainConfig())
    return [trial_config(base, {}, study.overrides(cell)).config_id for cell in study.cells()]


def test_an_ablation_is_read_as_written():
    assert parse(ABLATION) == Ablation(
        name="mine",
        question="Does MixUp help with focal loss?",
        base={"training.patience": 0, "training.epochs": 12},
        factors={
            "loss.name": ("cross_entropy", "focal"),
            "optim.lr": (0.001, 0.0001),
            "mixup": {"off": {}, "on": {"augment.mixup.p": 0.6, "augment.mixup.alpha": 0.2}},
        },
        baseline={"mixup": "on", "optim.lr": 0.0001},
        design=OneAtATime(),
        n_repeats=5,
        metric="val/map",
        gates=(
            Gate(metric="val/map", target=0.4),
            Gate(metric="val/loss", target=1, stretch=0.5),
        ),
        quick=QUICK,
    )


def test_quick_changes_settings_seeds_and_levels_of_an_ablation():
    study = parse(
        "question: Is it?\nfactors: {optim.lr: [1, 2, 3], loss.name: [focal, cross_entropy]}\nrepeats: 4\n"
        "quick: {training.epochs: 2, repeats: 1, factors: {optim.lr: [1, 3]}}"
    )
    assert isinstance(study, Ablation)
    assert study.quick == {"training.epochs": 2}
    quick = in_quick_size(study)
    assert (quick.base, quick.n_repeats) == ({"training.epochs": 2}, 1)
    assert [cell["optim.lr"] for cell in quick.cells()] == [1, 1, 3, 3]
    assert in_quick_size(parse(to_yaml(study))).cells() == quick.cells()


def test_quick_changes_settings_trials_and_space_of_a_search():
    study = parse(
        "question: Which?\nspace: {optim.lr: {low: 0.1, high: 1}}\n"
        "quick: {training.epochs: 2, trials: 3, space: {optim.lr: [0.1]}}"
    )
    quick = in_quick_size(study)
    assert (quick.base, quick.n_trials) == ({"training.epochs": 2}, 3)
    assert [trial.settings for trial in sample(quick.space, 2)] == [{"optim.lr": 0.1}] * 2
    again = in_quick_size(parse(to_yaml(study)))
    assert (again.n_trials, again.space) == (3, quick.space)


def test_quick_is_never_larger_than_the_study():
    ablation = parse("question: Is it?\nfactors: {optim.lr: [1, 2]}\nrepeats: 1")
    search = parse("question: Which?\nspace: {optim.lr: [1, 2]}\ntrials: 5")
    assert (in_quick_size(ablation).n_repeats, in_quick_size(search).n_trials) == (1, 5)


def test_a_parameter_that_is_not_sampled_is_left_as_it_is_or_set_to_else():
    text = """
question: Which?
space:
  optim.schedule: [cosine, one_cycle]
  optim.warmup_epochs: {low: 1, high: 5, when: {optim.schedule: cosine}, else: 0}
  optim.weight_decay: {low: 0.1, high: 1, when: {optim.schedule: cosine}}
"""
    for trial in sample(parse(text).space, 50):
        if trial.settings["optim.schedule"] == "cosine":
            assert trial.settings["optim.warmup_epochs"] in range(1, 6)
            assert 0.1 <= trial.settings["optim.weight_decay"] <= 1
        else:
            assert trial.settings == {"optim.schedule": "one_cycle", "optim.warmup_epochs": 0}


def test_a_search_is_read_as_written():
    study = parse(SEARCH)
    assert study == Search(
        name="rates",
        question="Which rates?",
        base={"model.name": "audio_cnn_v2"},
        space=Space(
            {
                "optim.lr": Parameter(values=Range(1e-4, 1e-2, log=True)),
                "optim.warmup_epochs": Parameter(values=Range(0, 4, integer=True), step=2),
                "loss.gamma": Parameter(values=Range(0.5, 5), when={"loss.name": ("focal",)}),
                "loss.name": Parameter(values=("cross_entropy", "focal")),
                "augment.mixup.alpha": Parameter(values=(0.2, 0.4), when={"augment.mixup.p": (0.5, 1)}),
                "augment.mixup.p": Parameter(values=(0, 0.5, 1)),
            }
        ),
        n_trials=9,
        quick_trials=3,
        scheduler="hyperband",
        grace_epochs=2,
        reduction_factor=4,
        folds=True,
        rung_metric="val/loss",
        asha_within="loss.name",
        quick={"training.epochs": 2},
    )
    assert check(study, base_config(study, TrainConfig()), {})


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        ("full", FullFactorial()),
        ("one-at-a-time", OneAtATime()),
        ("leave-one-out", LeaveOneOut()),
        ("{leave-one-out: {include_none: false}}", LeaveOneOut(include_none=False)),
        ("fractional", FractionalFactorial()),
        ("{fractional: {resolution: III}}", FractionalFactorial(resolution="III")),
        ("{latin-hypercube: {n: 6, seed: 3}}", LatinHypercube(n=6, seed=3)),
    ],
)
def test_a_design_is_named_with_its_options(design, expected):
    text = "question: Is it?\nfactors: {optim.lr: [1e-3, 1e-4], loss.name: [focal, cross_entropy]}\n"
    assert parse(f"{text}design: {design}").design == expected


def test_a_latin_hypercube_takes_ranges_of_whole_numbers_where_the_setting_is_one():
    study = parse(
        "question: Which?\n"
        "factors: {optim.lr: {low: 1e-4, high: 1e-2, log: true}, optim.warmup_epochs: {low: 0, high: 5}}\n"
        "design: {latin-hypercube: {n: 8}}\n"
    )
    assert study.factors == {
        "optim.lr": Range(1e-4, 1e-2, log=True),
        "optim.warmup_epochs": Range(0, 5, integer=True),
    }
    assert len(study.cells()) == 8


@pytest.mark.parametrize("level", ["on", "true", "1", "1e-3", "2.50", "~"])
def test_the_name_of_a_level_is_text_whatever_it_looks_like(level):
    study = parse(
        f"question: Is it?\nfactors: {{own: {{{level}: {{optim.lr: 1e-3}}, other: {{}}}}}}\n"
        f"baseline: {{own: {level}}}"
    )
    assert study.baseline_cell() == {"own": level}


def test_a_folder_next_to_the_file_does_not_depend_on_where_a_trial_runs(tmp_path):
    (tmp_path / "rain").mkdir()
    study = parse_study(
        "question: Is it?\nbase: {augment.noise.folder: rain}\n"
        "factors: {augment.noise.p: [0, 0.5], n: {a: {}, b: {augment.noise.folder: none_such}}}",
        tmp_path / "mine.yaml",
    )
    assert study.base == {"augment.noise.folder": str(tmp_path / "rain")}
    assert study.factors["n"]["b"] == {"augment.noise.folder": "none_such"}


def test_a_component_that_is_left_open_is_the_users_to_choose():
    study = parse("question: Which gamma?\nfactors: {loss.gamma: [1, 2]}")
    focal = TrainConfig().override({"loss.name": "focal"})
    assert [c.loss.kwargs["gamma"] for c in check(study, base_config(study, focal), {})] == [1, 2]
    with pytest.raises(ConfigError, match="'cross_entropy' has no option 'gamma'"):
        check(study, base_config(study, TrainConfig()), {})


# written and read back


# Its pieces decode one parameter into several settings.
NO_YAML = ("joint", "probe")


def test_constraints_are_the_same_when_written_and_read():
    study = parse(f"{SPACE}  optim.lr: [1, 2]\nconstraints: [n_params<=5e6, ' val/f1_rare >= 0.1']")
    assert study.constraints == (Bound("n_params", "<=", 5e6), Bound("val/f1_rare", ">=", 0.1))
    assert parse(to_yaml(study)).constraints == study.constraints


@pytest.mark.parametrize("name", [name for name in registry.studies.names() if name not in NO_YAML])
def test_a_built_in_study_is_the_same_when_written_and_read(name):
    study = load_study(name)
    again = parse(to_yaml(study))
    assert (again.name, again.question, again.base) == (study.name, study.question, study.base)
    assert (again.metric, again.gates, again.quick) == (study.metric, study.gates, study.quick)
    assert again.constraints == study.constraints
    if isinstance(study, Ablation):
        assert again.cells() == study.cells()
        assert again.baseline_cell() == study.baseline_cell()
        assert configs(again) == configs(study)
    else:
        base = base_config(study, TrainConfig())
        assert [c.config_id for c in check(again, base, {})] == [c.config_id for c in check(study, base, {})]
        assert (again.n_trials, again.quick_trials) == (study.n_trials, study.quick_trials)


@pytest.mark.parametrize("text", [ABLATION, SEARCH])
def test_a_file_is_the_same_when_written_and_read(text):
    study = parse(text)
    again = parse(to_yaml(study))
    if isinstance(study, Ablation):
        assert again == Ablation(**{**vars(study), "baseline": study.baseline_cell()})
    else:
        assert vars(again) == {**vars(study), "space": again.space}
        assert dict(again.space.parameters) == dict(study.space.parameters)
        assert [t.settings for t in sample(again.space, 50)] == [t.settings for t in sample(study.space, 50)]


@pytest.mark.parametrize("name", NO_YAML)
def test_a_built_in_study_without_a_form_in_yaml_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match=rf"study '{name}' cannot be written as YAML: .* is computed from"):
        to_yaml(load_study(name))


def test_what_cannot_be_written_is_refused_with_the_reason():
    def space(trial):
        return {"optim.lr": 10 ** trial.suggest_float("exponent", -4, -2)}

    with pytest.raises(ConfigError) as caught:
        to_yaml(Search(name="powers", space=space))
    assert str(caught.value) == (
        "study 'powers' cannot be written as YAML: optim.lr is computed from what was sampled"
    )


# what is wrong

FACTORS = "question: Is it?\nfactors:\n"
SPACE = "question: Which?\nspace:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # keys
        (
            "question: Is it?",
            "1: the ablation has no `factors`: one factor or more, settings with lists of values or "
            "own names with "
            "named levels; without factors, a search has a space",
        ),
        (
            "factors: {optim.lr: [1, 2]}",
            "1: the ablation has no `question`: the question in words, with which reports open",
        ),
        (
            "question: Is it?\nfactrs: {optim.lr: [1, 2]}",
            "2: unknown key 'factrs'; did you mean 'factors'? (known: name, question, kind,",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nspace: {{optim.lr: [1, 2]}}",
            "4: unknown key 'space' of the ablation (known: name, question, kind, base, epochs, "
            "metric, gates, constraints, "
            "quick, factors, design, baseline, repeats)",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ntrials: 20",
            "4: unknown key 'trials' of the ablation (known: name, question, kind, base, epochs, "
            "metric, gates, constraints,",
        ),
        (
            f"{SPACE}  optim.lr: [1, 2]\nrepeats: 3",
            "4: unknown key 'repeats' of the search (known: name, question, kind, base, epochs, "
            "metric, gates, constraints, quick,",
        ),
        (
            f"{SPACE}  optim.lr: [1, 2]\nkind: ablation",
            "4: kind = 'ablation' is not accepted; it takes 'search'",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nrepeats: three",
            "4: repeats = 'three' is not accepted; it takes a whole number",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nrepeats: 0",
            "4: repeats = 0 is not accepted; it takes a whole number of 1 or more",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nrepeats: 3.0",
            "4: repeats = 3.0 is not accepted; it takes a whole number of 1 or more: the repeats of "
            "every cell; write 3",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nepochs: 5.5",
            "4: epochs = 5.5 is not accepted; it takes a whole number",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nrepeats: true",
            "4: repeats = true is not accepted; it takes a whole number",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ndesign: {{latin-hypercube: {{n: 4.0}}}}",
            "4: n = 4.0 is not accepted; it takes a whole number; write 4",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nquick: {{repeats: 2.0}}",
            "4: repeats = 2.0 is not accepted; it takes a whole number of 1 or more: the repeats of "
            "every cell; write 2",
        ),
        (
            f"{SPACE}  optim.lr: [1, 2]\ntrials: 1e2",
            "4: trials = 100.0 is not accepted; it takes a whole number of 1 or more: the configs to "
            "sample; write 100",
        ),
        (
            f"{SPACE}  optim.lr: [1, 2]\ngrace_epochs: 2.0",
            "4: grace_epochs = 2.0 is not accepted; it takes a whole number of 1 or more: the epochs "
            "that every "
            "trial may train before the scheduler compares it; write 2",
        ),
        (
            f"{SPACE}  optim.lr: [1, 2]\nreduction_factor: .inf",
            "4: reduction_factor = .inf is not accepted; it takes a whole number",
        ),
        (
            f"{FACTORS}  optim.warmup_epochs: [0, 5.0]",
            "3: optim.warmup_epochs = 5.0 is not accepted; it takes a whole number; write 5",
        ),
        (f"{FACTORS}  optim.lr: [1, .nan]", "3: optim.lr = .nan is not accepted; it takes a number"),
        (
            f"{SPACE}  optim.lr: {{low: 1e-4, high: .inf}}",
            "3: high = .inf is not accepted; it takes a number",
        ),
        (
            f"{SPACE}  optim.lr: {{low: 0.5, high: 1, step: .nan}}",
            "3: step = .nan is not accepted; it takes a number",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ngates: [{{metric: val/f1_macro, target: .nan}}]",
            "4: target = .nan is not accepted; it takes a number",
        ),
        (f'{FACTORS}  optim.lr: [1, 2]\nname: "a/b"', "4: name = 'a/b' is not accepted; it takes a name"),
        (
            f'{FACTORS}  optim.lr: [1, 2]\nname: "a\\n"',
            "4: name = 'a\\n' is not accepted; it takes a name for the run folder and the report, "
            "which holds",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nmetric: val/f1_mcro",
            "4: metric = 'val/f1_mcro' is not accepted; it takes 'val/loss', 'val/accuracy', 'val/f1_macro', "
            "'val/f1_weighted', 'val/map', 'val/f1_rare', 'val/f1_medium' or 'val/f1_common'; did you mean "
            "'val/f1_macro'?",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nname: my study",
            "4: name = 'my study' is not accepted; it takes a name for the run folder and the report, which "
            "holds letters, digits, dots, dashes and underscores",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nbase: {{training.epochs: 3}}\nepochs: 4",
            "5: epochs is the same as training.epochs in base; leave one out",
        ),
        # settings
        (f"{FACTORS}  optim.lrr: [1, 2]", "3: unknown setting 'optim.lrr'; did you mean 'optim.lr'?"),
        (f"{SPACE}  lr: [1, 2]", "3: unknown setting 'lr'; did you mean 'optim.lr'?"),
        (f"{SPACE}  optm.lr: [1, 2]", "3: unknown setting 'optm.lr'; did you mean 'optim.lr'?"),
        (
            f"{SPACE}  optim.momentum: [1, 2]",
            "3: unknown setting 'optim.momentum' (optim has lr, backbone_lr, weight_decay, warmup_epochs,",
        ),
        (
            f"{SPACE}  augment.mixup: [1, 2]",
            "3: unknown setting 'augment.mixup' (augment.mixup has p, alpha)",
        ),
        (
            f"{FACTORS}  mixup: [on, off]",
            "3: mixup = [on, off] is not accepted; it takes two or more named levels, each with settings: "
            "{on: {augment.mixup.p: 0.6}, off: {}}",
        ),
        (
            f"{FACTORS}  lr: [1, 2]",
            "3: lr = [1, 2] is not accepted; it takes two or more named levels, each with settings: "
            "{on: {augment.mixup.p: 0.6}, off: {}}; did you mean 'optim.lr'?",
        ),
        (
            f"{FACTORS}  loss.gamma: 2",
            "3: loss.gamma = 2 is not accepted; it takes a list of two or more different values to "
            "compare, or for a",
        ),
        (
            f"{FACTORS}  loss.gamma: 1, 2",
            "3: loss.gamma = '1, 2' is not accepted; it takes a list of two or more different values "
            "to compare, or for a "
            "latin-hypercube {low: ..., high: ...}; a list is written [a, b]",
        ),
        (
            f"{FACTORS}  loss.gamma: [2]",
            "3: loss.gamma = [2] is not accepted; it takes a list of two or more different values",
        ),
        (
            f"{FACTORS}  loss.gamma:\n  - 1\n  - 2\n  - 1.0",
            "3: loss.gamma = [1, 2, 1.0] is not accepted; it takes a list of two or more different values",
        ),
        (
            f"{FACTORS}  loss.name:\n    - focal\n    - focl",
            "5: loss.name = 'focl' is not accepted; it takes 'cross_entropy', 'focal' or 'logit_adjusted'; "
            "did you mean 'focal'?",
        ),
        (
            f"{FACTORS}  optim.lr: [1e-3, '1e-4']",
            "3: optim.lr = '1e-4' is not accepted; it takes a number; leave the quotes out",
        ),
        (
            f"{FACTORS}  model.freeze_backbone: [true, no]",
            "3: model.freeze_backbone = 'no' is not accepted; it takes true or false",
        ),
        (
            f"{FACTORS}  loss.alpha: [null, invers]",
            "3: loss.alpha = 'invers' is not accepted; it takes a number, null, 'inverse', 'balanced', "
            "'sqrt' or 'effective'; did you mean 'inverse'?",
        ),
        (
            f"{FACTORS}  seed: [1, 2]",
            "3: seed is not accepted here: every cell has the same repeats and seeds; `repeats` is how many",
        ),
        (
            f"{FACTORS}  runtime.device: [cpu, cuda]",
            "3: runtime.device is not accepted here: trials do not differ in it; it belongs in base",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nbase:\n  training.monitor: val/loss",
            "5: training.monitor is not accepted here: it is the study's metric; set `metric`",
        ),
        # what configs refuse, at the line of the value
        (
            f"{FACTORS}  optim.lr:\n    - 0.1\n    - 20",
            "5: optim.lr = 20.0 is out of range; it takes above 0, at most 10",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nepochs: 5\nbase:\n  optim.grad_clip: -1",
            "6: optim.grad_clip = -1.0 is out of range; it takes 0 (off) to 1000000",
        ),
        (
            f"{FACTORS}  own:\n    a: {{}}\n    b:\n      training.batch_size: 1",
            "6: training.batch_size = 1 is out of range; it takes 2 (batch norm) to 1000000",
        ),
        (
            f"{FACTORS}  loss.name: [focal, cross_entropy]\n  loss.gamma: [1, 2]",
            "4: loss 'cross_entropy' has no option 'gamma' (it takes class_weights, label_smoothing, beta); "
            "levels of a factor of your own can set both, such as focal: {loss.name: focal, loss.gamma: ...}",
        ),
        (
            f"{SPACE}  loss.name: [cross_entropy, focal]\n  loss.gamma: {{low: 1, high: 3}}",
            "4: loss 'cross_entropy' has no option 'gamma' (it takes class_weights, label_smoothing, beta); "
            "sample it only then, with `when: {loss.name: focal}`",
        ),
        (
            f"{SPACE}  optim.lr: {{low: 0.1, high: 20}}",
            "3: optim.lr = 20.0 is out of range; it takes above 0, at most 10",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nquick: {{training.epochs: 0}}",
            "4: training.epochs = 0 is out of range; it takes 1 to 1000000",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nbase: {{training.batch_size: 16, training.micro_batch_size: 32}}",
            "4: training.micro_batch_size = 32 is out of range; it takes none, or 1 to "
            "training.batch_size = 16",
        ),
        # factors
        (
            f"{FACTORS}  optim.lr: [1, 2]\n  own: {{a: {{optim.lr: 0.1}}, b: {{}}}}",
            "3: factors 'optim.lr' and 'own' both set optim.lr; a setting takes one factor",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nbaseline:\n  optim.lr: 3",
            "5: the baseline's optim.lr = 3 is no level of that factor (it has 1, 2)",
        ),
        (
            f"{FACTORS}  own: {{a: {{}}, b: {{}}}}\nbaseline:\n  onw: a",
            "5: the baseline has 'onw', which is no factor; did you mean 'own'? (factors: own)",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ndesign: fractionl",
            "4: design = 'fractionl' is not accepted; it takes 'full', 'one-at-a-time', 'leave-one-out', "
            "'fractional' or {latin-hypercube: {n: 20}}; did you mean 'fractional'?",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ndesign: latin-hypercube",
            "4: design = 'latin-hypercube' is not accepted; it takes 'full', 'one-at-a-time', "
            "'leave-one-out', "
            "'fractional' or {latin-hypercube: {n: 20}}",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ndesign: {{full: {{}}, fractional: {{}}}}",
            "4: design = {full: {}, fractional: {}} is not accepted; it takes one of full, one-at-a-time, "
            "leave-one-out, fractional, or with options {latin-hypercube: {n: 20}}",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2, 3]\ndesign: leave-one-out",
            "3: factor 'optim.lr' has 3 levels, and a leave one out design takes factors of exactly two",
        ),
        (
            f"{FACTORS}  optim.lr: {{low: 0.1, high: 1}}",
            "3: factor 'optim.lr' is a range, and a full factorial design takes levels; list them, or use a "
            "Latin hypercube design",
        ),
        # spaces
        (
            f"{SPACE}  optim.lr: {{low: 1e-3}}",
            "3: optim.lr has no `high`: a number",
        ),
        (
            f"{SPACE}  optim.lr: {{low: 2, high: 1}}",
            "3: optim.lr: the range from 2 to 1 is empty; it takes two finite numbers, low below high",
        ),
        (
            f"{SPACE}  optim.lr: {{low: 0, high: 1, log: true}}",
            "3: optim.lr: the range from 0 to 1 has no logarithm; with log, low is above 0",
        ),
        (
            f"{SPACE}  optim.lr: {{values: [1, 2], low: 1}}",
            "3: unknown key 'low' (known: values, when, else)",
        ),
        (
            f"{SPACE}  optim.lr: {{low: 1, high: 2, stp: 0.1}}",
            "3: unknown key 'stp'; did you mean 'step'? (known: low, high, log, integer, step, when, else)",
        ),
        (
            f"{SPACE}  loss.name: [focal, cross_entropy]\n  loss.gamma:\n    low: 1\n    high: 2\n    when:\n"
            "      loss.name: foca",
            "8: loss.name = 'foca' is not accepted; it takes 'cross_entropy', 'focal' or 'logit_adjusted'; "
            "did you mean 'focal'?",
        ),
        (
            f"{SPACE}  loss.name: [focal, cross_entropy]\n  optim.lr:\n    values: [1, 2]\n    when:\n"
            "      loss.name: logit_adjusted",
            "7: `when` of optim.lr needs loss.name = logit_adjusted, which never occurs (it takes "
            "focal, cross_entropy)",
        ),
        (
            f"{SPACE}  optim.lr: {{values: [1, 2], when: {{optim.weight_decay: 1}}}}\n"
            "  optim.weight_decay: {values: [1, 2], when: {optim.lr: 1}}",
            "3: the conditions of optim.lr, optim.weight_decay depend on each other; one has to go "
            "without `when`",
        ),
        (
            f"{SPACE}  optim.lr: [1, 2]\nalso: [hours]",
            "4: scheduler 'asha' compares trials by one value, and study 'mine' has 2 objectives "
            "(val/f1_macro, hours); it takes 'fifo'",
        ),
        (
            f"{SPACE}  optim.lr: [1, 2]\nasha_within: loss.gamma",
            "4: asha_within = 'loss.gamma' is no setting of any trial",
        ),
        (
            f"{SPACE}  optim.lr: {{low: 0.1, high: 1, else: 0.5}}",
            "3: optim.lr: a value for trials that do not sample it needs a `when`",
        ),
        (
            f"{SPACE}  loss.name: [focal, cross_entropy]\n"
            "  optim.lr:\n    values: [0.1, 0.2]\n    when: {loss.name: focal}\n    else: 11",
            "7: optim.lr = 11.0 is out of range; it takes above 0, at most 10",
        ),
        # quick
        (
            f"{FACTORS}  optim.lr: [1, 2]\nquick:\n  factors:\n    optim.weight_decay: [0, 1]",
            "6: optim.weight_decay is no factor (factors: optim.lr); quick takes other levels of factors",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nquick:\n  factors:\n    optim.lr: [1, 20]",
            "6: optim.lr = 20.0 is out of range; it takes above 0, at most 10",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nbaseline: {{optim.lr: 2}}\n"
            "quick: {factors: {optim.lr: [1, 3]}}",
            "5: under --quick, the baseline's optim.lr = 2 is no level of that factor (it has 1, 3)",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\nquick: {{trials: 3}}",
            "4: unknown key 'trials' (known: repeats, factors, and settings such as optim.lr)",
        ),
        (
            f"{SPACE}  optim.lr: [1, 2]\nquick:\n  space:\n    optim.lr: [1, 20]",
            "6: optim.lr = 20.0 is out of range; it takes above 0, at most 10",
        ),
        # constraints
        (
            f"{SPACE}  optim.lr: [1, 2]\nconstraints: [n_params<=5e6, n_parms<=5e6]",
            "4: constraint 'n_parms<=5e6' names an unknown 'n_parms'; did you mean 'n_params'? (known: "
            "val/loss, val/accuracy, val/f1_macro, val/f1_weighted, val/map, val/f1_rare, val/f1_medium, "
            "val/f1_common, n_params, hours)",
        ),
        # gates
        (
            f"{FACTORS}  optim.lr: [1, 2]\ngates:\n- {{metric: val/f1_macro, target: 0.3, stretch: 0.2}}",
            "5: gate on val/f1_macro: stretch = 0.2 is no better than target = 0.3",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ngates:\n  val/f1_macro: 0.2",
            "4: gates = {val/f1_macro: 0.2} is not accepted; it takes a list of values for the best cell "
            "to reach, each {metric: ..., target: ...}",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ngates:\n- metric: val/f1_macro",
            "5: an item of gates has no `target`: a number",
        ),
        (
            f"{FACTORS}  optim.lr: [1, 2]\ngates:\n- metric: val/f1_macro\n  target: 20 %",
            "6: target = '20 %' is not accepted; it takes a number",
        ),
    ],
)
def test_a_fault_has_its_line_the_value_given_and_what_is_accepted(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    first, *others = str(caught.value).split("\n")
    assert first.startswith(f"mine.yaml:{message}")
    assert not others


def test_all_faults_are_listed_at_once_in_the_order_of_their_lines():
    text = """
question: Is it?
repaets: 3
base:
  optim.lr: fast
  optim.lr: 0.1
factors:
  loss.name: [focal, cross_entropy]
  optim.weight_decay: [0.1, 11]
  mixup: {on: {augment.mixup.p: 0.6}, off: {}}
baseline: {mixup: maybe}
gates:
  - {metric: val/f1_macro, target: much}
"""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert [line.split(": ")[:2] for line in str(caught.value).split("\n")] == [
        ["mine.yaml:2", "unknown key 'repaets'; did you mean 'repeats'? (known"],
        ["mine.yaml:4", "optim.lr = 'fast' is not accepted; it takes a number"],
        ["mine.yaml:5", "'optim.lr' is given twice, first in line 4; leave one out"],
        ["mine.yaml:10", "the baseline's mixup = 'maybe' is no level of that factor (it has 'on', 'off')"],
        ["mine.yaml:12", "target = 'much' is not accepted; it takes a number"],
    ]


def test_a_fault_that_follows_from_another_is_not_listed():
    # With the name unknown, gamma cannot be checked; without that factor, the baseline cannot.
    text = (
        "question: Is it?\nfactors: {loss.name: [focl, focal]}\nbase: {loss.gamma: 9}\n"
        "baseline: {loss.name: focal}"
    )
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).count("\n") == 0


def test_a_file_without_a_name_is_named_by_the_file():
    assert parse(ABLATION, "some/where/mix-up.v2.yaml").name == "mix-up.v2"
    with pytest.raises(
        ConfigError, match=r"my study.yaml:1: the file's name 'my study' cannot name a study; give"
    ):
        parse(ABLATION, "my study.yaml")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optim.lr": 20.0, "optim.weight_decay": 0.1}, ["optim.lr"]),
        ({"optim.weight_decay": -1.0, "optim.lr": 20.0}, ["optim.lr", "optim.weight_decay"]),
        ({"loss.name": "logit_adjusted", "loss.gamma": 1.0, "loss.tau": 1.0}, ["loss.gamma"]),
        ({"loss.name": "focl", "loss.gamma": 1.0}, ["loss.name"]),
        ({"model.dropot": 1.0, "model.widht": 1, "seed": -1}, ["model.dropot", "model.widht", "seed"]),
        ({"augment.mixup": 1, "augment.mixp.p": 1}, ["augment.mixp.p", "augment.mixup"]),
        ({"optim.lr": 0.1}, []),
    ],
)
def test_the_culprit_is_the_setting_without_which_there_is_no_fault(settings, expected):
    assert sorted(key for key, _ in culprits(TrainConfig(), settings)) == expected

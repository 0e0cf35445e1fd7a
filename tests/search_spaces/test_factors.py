import pytest

from search_spaces.designs import (
    FractionalFactorial,
    FullFactorial,
    LatinHypercube,
    LeaveOneOut,
    OneAtATime,
    Range,
    SingleConfig,
)
from search_spaces.factors import faults_of
from search_spaces.faults import Fault

MIXUP = {"on": {"augment.mixup.p": 0.6}, "off": {}}
SOUND = {"loss.name": ("cross_entropy", "focal"), "mixup": MIXUP}


@pytest.mark.parametrize("design", [FullFactorial(), OneAtATime(), LeaveOneOut(), FractionalFactorial()])
def test_sound_factors_have_no_faults(design):
    assert faults_of(SOUND, {"mixup": "off"}, design) == []


def test_ranges_and_levels_are_sound_for_a_latin_hypercube():
    assert faults_of({**SOUND, "optim.lr": Range(1e-4, 1e-2, log=True)}, {}, LatinHypercube(5)) == []


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({}, "takes at least one factor"),
        ({"optim.lr": ()}, "factor 'optim.lr' has no level; it takes two or more"),
        ({"optim.lr": (0.1,)}, "has only one level (0.1); it takes two or more, and what does not vary goes"),
        ({"mixup": {"on": {}}}, "has only one level ('on')"),
        ({"loss.name": "focal"}, "factor 'loss.name' = 'focal' has no levels; it takes a tuple of values"),
        ({"optim.lr": 0.1}, "factor 'optim.lr' = 0.1 has no levels"),
        (
            {"mixup": {"on": 0.6, "off": {}}},
            "level 'on' of factor 'mixup' is 0.6; it takes settings, such as",
        ),
        ({"loss.name": ("focal", "focal")}, "factor 'loss.name' has level 'focal' twice; leave one out"),
        ({"optim.warmup_epochs": (1, 2, 1.0)}, "has level 1.0 twice"),
        ({"model.widths": ([8, 16], [8, 16])}, "has level [8, 16] twice"),
        (
            {"optim.lr": Range(1e-4, 1e-2)},
            "is a range, and a full factorial design takes levels; list them, or",
        ),
        (
            {"mixup": MIXUP, "augment.mixup.p": (0.1, 0.2)},
            "factors 'mixup' and 'augment.mixup.p' both set augment.mixup.p; a setting takes one factor",
        ),
        (
            {"mixup": MIXUP, "gentle": {"yes": {"augment.mixup.p": 0.1}, "no": {}}},
            "factors 'mixup' and 'gentle' both set augment.mixup.p",
        ),
    ],
)
def test_malformed_factors_are_refused(factors, words):
    (fault,) = faults_of(factors, {}, FullFactorial())
    assert words in fault.text


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ({"los.name": "focal"}, "the baseline has 'los.name', which is no factor; did you mean 'loss.name'?"),
        (
            {"loss.name": "focl"},
            "the baseline's loss.name = 'focl' is no level of that factor; did you mean 'focal'? (it has "
            "'cross_entropy', 'focal')",
        ),
        ({"mixup": 0.6}, "mixup = 0.6 is no level of that factor (it has 'on', 'off')"),
    ],
)
def test_a_baseline_that_is_no_cell_is_refused_with_the_near_one(baseline, words):
    (fault,) = faults_of(SOUND, baseline, OneAtATime())
    assert words in fault.text


def test_a_latin_hypercube_takes_no_baseline():
    (fault,) = faults_of({"optim.lr": Range(1e-4, 1e-2)}, {"optim.lr": 1e-3}, LatinHypercube(5))
    assert "a Latin hypercube has no baseline" in fault.text


def test_all_faults_are_found_at_once():
    factors = {
        "loss.name": ("focal", "focal", "cross_entropy"),
        "optim.lr": (1e-3,),
        "mixup": MIXUP,
        "augment.mixup.p": (0.1, 0.2),
    }
    found = "\n".join(f.text for f in faults_of(factors, {"mixup": "of", "los": 1}, LeaveOneOut()))
    for words in ("'focal' twice", "'optim.lr' has only one level", "both set augment.mixup.p",
                  "did you mean 'off'", "'los', which is no factor", "'loss.name' has 3 levels"):  # fmt: skip
        assert words in found
    assert len(found.split("\n")) == 6


def test_a_single_config_takes_no_factors():
    assert faults_of({}, {}, SingleConfig()) == []
    (fault,) = faults_of({"loss.name": ("focal", "cross_entropy")}, {}, SingleConfig())
    assert fault == Fault(("factors",), "a single config varies nothing; leave out loss.name")

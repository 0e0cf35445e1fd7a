"""Faults with their places."""

import pickle

import pytest

from birdnet_core.errors import ConfigError
from search_spaces.designs import LatinHypercube, Range
from search_spaces.faults import Fault, StudyError, collected
from search_spaces.space import Parameter, Space
from search_spaces.study import Ablation, Search, check_objectives


def test_an_error_lists_its_faults_also_after_pickling():
    error = StudyError(Fault(("base", "optim.lr"), "too high"), Fault(("gates", 0), "out of order"))
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(each, ConfigError)
        assert str(each) == "too high\nout of order"
        assert [fault.place for fault in each.faults] == [("base", "optim.lr"), ("gates", 0)]


def test_what_a_block_raises_is_collected_within_a_place():
    faults = []
    with collected(faults, "quick", lead="under --quick, "):
        raise StudyError(Fault(("factors", "optim.lr"), "no level"))
    with collected(faults, "gates", 1):
        raise ConfigError("unknown metric")
    assert faults == [
        Fault(("quick", "factors", "optim.lr"), "under --quick, no level"),
        Fault(("gates", 1), "unknown metric"),
    ]
    with pytest.raises(TypeError), collected(faults):
        raise TypeError


LR = {"optim.lr": (0.1, 0.2)}


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: Ablation(factors={"optim.lr": (0.1,)}).cells(), ("factors", "optim.lr")),
        (lambda: Ablation(factors={"optim.lr": (0.1, 0.2, 0.1)}).cells(), ("factors", "optim.lr", 2)),
        (lambda: Ablation(factors=LR, baseline={"optim.lr": 3}).cells(), ("baseline", "optim.lr")),
        (
            lambda: Ablation(factors={"optim.lr": Range(0.1, 1)}, design=LatinHypercube(1)).cells(),
            ("design",),
        ),
        (
            lambda: Space({"a": Parameter(values=(1, 2), when={"b": (1,)})}),
            ("a", "when", "b"),
        ),
        (lambda: check_objectives(Search(space=lambda trial: {}, also=("hours",))), ("also",)),
    ],
)
def test_a_fault_of_a_study_has_the_place_where_it_is(make, place):
    with pytest.raises(StudyError) as caught:
        make()
    assert [fault.place for fault in caught.value.faults] == [place]

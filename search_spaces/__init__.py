"""Studies: ablations with their designs, and searches with their Optuna spaces.

A study of your own in Python imports what it needs from here: ``from search_spaces import Ablation,
register_study``.
"""

from birdnet_core.records.bounds import Bound
from birdnet_core.registry import studies as _studies
from search_spaces.designs import (
    FractionalFactorial,
    FullFactorial,
    LatinHypercube,
    LeaveOneOut,
    OneAtATime,
    Range,
)
from search_spaces.loading import load_study
from search_spaces.study import QUICK, Ablation, Gate, Search

register_study = _studies.register

__all__ = [
    "QUICK",
    "Ablation",
    "Bound",
    "FractionalFactorial",
    "FullFactorial",
    "Gate",
    "LatinHypercube",
    "LeaveOneOut",
    "OneAtATime",
    "Range",
    "Search",
    "load_study",
    "register_study",
]

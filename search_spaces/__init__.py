"""What to try: ablation designs and Optuna search spaces, as pure functions of a trial or a base config.

A study of your own in Python needs ``from search_spaces import Ablation, register_study`` and no more.
"""

from birdnet_core.registry import studies as _studies
from search_spaces.designs import (
    FractionalFactorial,
    FullFactorial,
    LatinHypercube,
    LeaveOneOut,
    OneAtATime,
    Range,
)
from search_spaces.study import QUICK, Ablation, Gate, Search

register_study = _studies.register

__all__ = [
    "QUICK",
    "Ablation",
    "FractionalFactorial",
    "FullFactorial",
    "Gate",
    "LatinHypercube",
    "LeaveOneOut",
    "OneAtATime",
    "Range",
    "Search",
    "register_study",
]

"""What was learnt: run folders become cell tables, comparisons, figures and one report. No Ray, no torch.

`runs` loads, `aggregate` and `compare` compute, `selection` chooses, `plots` and `tables` draw, `report`
writes.
"""

from reports.page.report import write_report
from reports.runs import Runs, load
from reports.selection.choice import choose

__all__ = ["Runs", "choose", "load", "write_report"]

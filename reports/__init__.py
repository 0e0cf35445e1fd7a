"""Run folders become statistics, a choice, and one report with tables and figures. No Ray, no torch.

`runs` loads; `statistics` and `selection` compute, and `study_report` holds what they return for one study;
`figures` and `page` show it; `model` writes the card of a model folder, `earlier` reads work of other
programs.
"""

from reports.page.report import write_report
from reports.runs import Runs, load
from reports.selection.choice import choose

__all__ = ["Runs", "choose", "load", "write_report"]

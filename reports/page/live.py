"""The page of `birdtune dashboard`: it fetches status.json from where it was served and draws it anew.

``python -m reports.page.live`` reads the arguments of `live_page` as JSON and prints the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from reports.figures import charts
from reports.figures.cells import LEAST_SPAN
from reports.figures.colours import STATUS
from reports.figures.curves import LIVE_NAMES, live_curves
from reports.page.formats import templates

STATES = [
    {"name": name, "statuses": statuses, "colour": STATUS[statuses[0]]}
    for name, statuses in (
        ("completed", ["completed"]),
        ("ended early", ["pruned", "infeasible"]),
        ("failed", ["failed", "diverged"]),
        ("interrupted", ["killed", "interrupted"]),
        ("running", ["running"]),
    )
]
"""The parts of the bar: states of trials, what each counts, and its colour."""


def live_page(run: str, studies: Sequence[dict[str, Any]], commands: dict[str, str]) -> str:
    """Return the page of a run folder, without its numbers.

    `studies` are the contents of its study files; `commands` opens each search in optuna-dashboard.
    The page may run the scripts in it and no other, and connect to its own server alone.
    """
    environment = templates()
    words = {"names": LIVE_NAMES, "states": STATES, "least": LEAST_SPAN}
    environment.globals |= {"theme": Markup(charts.page_theme()), "words": words}
    scripts = [charts.script(), environment.get_template("live.js").render()]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    specs = {each["name"]: live_curves(each["metric"], each["epochs"]) for each in studies}
    return environment.get_template("live.html.j2").render(
        run=run,
        studies=studies,
        commands=commands,
        captions={name: drawn.caption for name, drawn in specs.items()},
        specs={name: Markup(charts.for_page(drawn)) for name, drawn in specs.items()},
        scripts=list(map(Markup, scripts)),
        sources=" ".join(f"'sha256-{each}'" for each in hashes),
    )


if __name__ == "__main__":
    sys.stdout.write(live_page(**json.load(sys.stdin)))

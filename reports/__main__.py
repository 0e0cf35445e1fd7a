"""``python -m reports [RUN ...] [--import DIR] --out DIR`` writes a report without the rest of birdtune."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from birdnet_core.errors import BirdtuneError
from reports.page.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of the arguments; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m reports", description="Write a report of run folders.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder that `birdtune sweep --out` wrote")
    parser.add_argument("--import", dest="imports", metavar="DIR", help="folder of earlier work")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the report; made if absent")
    arguments = parser.parse_args(argv)
    try:
        write_report(arguments.runs, arguments.out, imports=arguments.imports)
    except BirdtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"open {Path(arguments.out) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

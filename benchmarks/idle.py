"""How much of a run's time was not training: read from the journal of any run folder.

    birdtune demo --out demo && python benchmarks/idle.py demo/run

From the first trial's start to the last one's end, over as many slots as trials ran side by side: what is not
an epoch's own time is start of workers, building, saving, the driver, Ray, and slots with no trial left.
"""

from __future__ import annotations

import sys

from birdnet_core.records.run_folder import RunFolder


def main() -> None:
    running: set[str] = set()
    starts, ends, slots, trained = [], [], 0, 0.0
    for event in RunFolder.existing(sys.argv[1]).events():
        if event["event"] == "trial" and not event["reused"]:
            running.add(event["trial_id"])
            starts.append(event["time"])
            slots = max(slots, len(running))
        elif event["event"] == "epoch":
            trained += event["epoch_s"]
        elif event["event"] == "end":
            running.remove(event["trial_id"])
            ends.append(event["time"])
    wall = max(ends) - min(starts)
    print(f"{len(ends)} trials on {slots} slots: {wall:.1f} s, of which training {trained / slots:.1f} s")
    print(f"overhead {slots * wall / trained - 1:.1%} of the training time")


if __name__ == "__main__":
    main()
